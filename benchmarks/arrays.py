"""Arrays that cross to one worker, by whatever means, and the clocks of that.

Rules:

1. A means is an `Exchange`: it runs a function in the worker on each of some arrays and yields the values in order.
2. Every value is checked. An array that is sent alone has a new number in it each time, so that a means that shows its
   worker what it sent earlier is found out; arrays that are in flight together differ, and nobody writes to them.
3. The memory of what is sent was touched before the clock starts, and what comes back is dropped before it stops.
4. numpy is imported by the jobs that need it: the modules of some contenders serve others that don't.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import cycle, islice
from typing import Any

from benchmarks.load import (
    ARRAYS_IN_FLIGHT,
    Load,
    Values,
    keep_in_flight,
    rate,
    rate_async,
    sampled,
    sampled_async,
    windowed,
)
from benchmarks.peers.tasks import echo, first_element

__all__ = [
    'Exchange', 'Function', 'blank', 'check', 'large_arrays', 'large_arrays_async', 'numbered', 'small_arrays',
    'small_arrays_async', 'through',
]

Function = Callable[[Any], Any]
'''What runs in the worker: `first_element`, or `echo` for there and back.'''

Exchange = Callable[[Function, Iterable[Any], int], Iterator[Any]]
'''Takes the function, the arrays, and how many of them may be in flight.'''

Call = Callable[[Function, Any], Awaitable[Any]]

_STARTING = range(-3, 0)
'''Numbers of the arrays sent before the time of `sampled` begins, which a worker that has yet to start would use up.'''


def blank(size: int) -> Any:
    '''Return an array of *size* bytes, all of them written to.'''
    numpy = import_module('numpy')
    return numpy.ones(size // 8, dtype=numpy.int64)


def numbered(size: int, count: int) -> list[Any]:
    '''Return *count* arrays of *size* bytes, each with its index as first element.'''
    arrays = [blank(size) for _ in range(count)]
    for number, array in enumerate(arrays):
        array[0] = number
    return arrays


def check(answer: Any, number: int) -> None:
    '''Raise unless *answer*, a number or an array, is or starts with *number*.'''
    found = answer if isinstance(answer, int) else int(answer[0])
    if found != number:
        raise ValueError(f'array {number} was answered with {found}')


def through(send: Callable[[Function, Any], Any], receive: Callable[[Any], Any]) -> Exchange:
    '''Exchange arrays by ``receive(send(function, array))``, the answers in the order in which they were sent.'''
    return lambda function, arrays, in_flight: windowed(partial(send, function), receive, arrays, in_flight)


def large_arrays(exchange: Exchange, load: Load) -> Values:
    '''Measure the speed of single arrays one way, and there and back, in bytes of an array a second.'''
    return {'one way': _speed(exchange, first_element, load), 'back': _speed(exchange, echo, load)}


async def large_arrays_async(call: Call, load: Load) -> Values:
    '''Like `large_arrays`, for a contender that lives on a loop.'''
    return {'one way': await _speed_async(call, first_element, load), 'back': await _speed_async(call, echo, load)}


def small_arrays(exchange: Exchange, load: Load) -> Values:
    '''Measure the arrays a second that cross one way, one at a time and `ARRAYS_IN_FLIGHT` at once.'''
    return {'single': _rate(exchange, load, 1), 'many': _rate(exchange, load, ARRAYS_IN_FLIGHT)}


async def small_arrays_async(call: Call, load: Load) -> Values:
    '''Like `small_arrays`, for a contender that lives on a loop.'''
    return {'single': await _rate_async(call, load, 1), 'many': await _rate_async(call, load, ARRAYS_IN_FLIGHT)}


def _speed(exchange: Exchange, function: Function, load: Load) -> float:
    array = blank(load.payload)

    def once(number: int) -> None:
        array[0] = number
        (answer,) = exchange(function, [array], 1)
        check(answer, number)

    for number in _STARTING:
        once(number)
    return load.payload / sampled(once, load)['p50']


async def _speed_async(call: Call, function: Function, load: Load) -> float:
    array = blank(load.payload)

    async def once(number: int) -> None:
        array[0] = number
        check(await call(function, array), number)

    for number in _STARTING:
        await once(number)
    return load.payload / (await sampled_async(once, load))['p50']


def _rate(exchange: Exchange, load: Load, in_flight: int) -> float:
    arrays = numbered(load.payload, in_flight)

    def run(count: int) -> None:
        answers = exchange(first_element, islice(cycle(arrays), count), in_flight)
        for number, answer in enumerate(answers):
            check(answer, number % in_flight)

    return rate(run, load)['rate']


async def _rate_async(call: Call, load: Load, in_flight: int) -> float:
    arrays = numbered(load.payload, in_flight)

    async def once(number: int) -> None:
        check(await call(first_element, arrays[number % in_flight]), number % in_flight)

    return (await rate_async(lambda count: keep_in_flight(once, count, in_flight), load))['rate']
