"""What a contender is asked to do, and the clocks that all contenders share.

Rules:

1. A `Load` travels to the contender's process as JSON, so it holds plain numbers and words only.
2. A job is a function from a `Load` to named values; the name of a value fixes its unit.
3. Every job warms its contender up before the clock starts.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    'ARRAYS_IN_FLIGHT', 'IN_FLIGHT', 'WINDOW', 'Job', 'Load', 'PingPong', 'Values', 'keep_in_flight', 'percentiles',
    'rate', 'rate_async', 'rate_by_turns', 'sampled', 'sampled_async', 'windowed',
]

Values = Mapping[str, float]
'''What a job measured; `catalogue.UNITS` gives the unit of each name.'''

WINDOW = 4096
'''Messages in flight while throughput is measured: the default window of a pool.'''

IN_FLIGHT = 1000
'''Calls in flight while their throughput is measured.'''

ARRAYS_IN_FLIGHT = 16
'''Arrays in flight where several are.'''


@dataclass(frozen=True)
class Load:
    '''The size of one job.

    Args:
        messages: messages, or tasks, put while the clock runs.
        workers: worker processes.
        handlers: 'plain' functions, a 'coroutine' in the worker, or coroutines on 'both' sides.
        chunk: items of a ``map`` that travel together; 0 where the contender finds the number itself.
        ordered: whether the values of a ``map`` come in the order of the items.
        payload: bytes of one array.
        context: start method, where the job depends on it.
        in_flight: tasks that are accepted and not done all through the run; 0 where a window decides.
        seconds: how long an idle pool is watched, or after how long the sampling of latencies ends.
    '''

    messages: int = 0
    workers: int = 1
    handlers: str = 'plain'
    chunk: int = 0
    ordered: bool = True
    payload: int = 0
    context: str = 'forkserver'
    in_flight: int = 0
    seconds: float = 3.0

    @property
    def warm_up(self) -> int:
        '''Messages put before the clock starts: a tenth, but at least ten.'''
        return max(10, self.messages // 10)


Job = Callable[[Load], Values]


def percentiles(samples: list[float], load: Load) -> Values:
    '''Return median and 99th percentile of *samples* (seconds), leaving out those of the warm-up.'''
    ordered = sorted(samples[min(load.warm_up, len(samples) // 2):])
    return {'p50': ordered[len(ordered) // 2], 'p99': ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]}


def rate(run: Callable[[int], object], load: Load) -> Values:
    '''Return the messages a second of ``run(n)``, which puts n messages and waits for all results.'''
    run(load.warm_up)
    before = time.perf_counter()
    run(load.messages)
    return {'rate': load.messages / (time.perf_counter() - before)}


async def rate_async(run: Callable[[int], Awaitable[object]], load: Load) -> Values:
    '''Like `rate`, for a contender that lives on a loop.'''
    await run(load.warm_up)
    before = time.perf_counter()
    await run(load.messages)
    return {'rate': load.messages / (time.perf_counter() - before)}


def windowed(
    send: Callable[[Any], Any], receive: Callable[[Any], Any], items: Iterable[Any], in_flight: int = IN_FLIGHT
) -> Iterator[Any]:
    '''Yield ``receive(send(item))`` of all *items* in their order, *in_flight* of them sent before one is received.'''
    sent: deque[Any] = deque()
    for item in items:
        sent.append(send(item))
        if len(sent) == in_flight:
            yield receive(sent.popleft())
    while sent:
        yield receive(sent.popleft())


async def keep_in_flight(
    call: Callable[[int], Awaitable[object]], count: int, in_flight: int = IN_FLIGHT
) -> None:
    '''Await ``call(i)`` for *count* values of i, *in_flight* at once, from as many tasks that await one by one.'''
    messages = iter(range(count))
    await asyncio.gather(*(_pull(call, messages) for _ in range(min(count, in_flight))))


async def rate_by_turns(
    calls: Sequence[Callable[[int], Awaitable[object]]], load: Load, in_flight: int = IN_FLIGHT
) -> Values:
    '''Return the calls a second, made to each of *calls* by turns, *in_flight* at once.'''

    def call(message: int) -> Awaitable[object]:
        return calls[message % len(calls)](message)

    return await rate_async(lambda count: keep_in_flight(call, count, in_flight), load)


async def _pull(call: Callable[[int], Awaitable[object]], messages: Iterator[int]) -> None:
    for message in messages:
        await call(message)


def sampled(once: Callable[[int], object], load: Load) -> Values:
    '''Time ``once(i)``, one message at a time, until all are sent or ``load.seconds`` are over.'''
    samples = []
    end = time.perf_counter() + load.seconds
    for number in range(load.messages + load.warm_up):
        before = time.perf_counter()
        once(number)
        after = time.perf_counter()
        samples.append(after - before)
        if after > end:
            break
    return percentiles(samples, load)


async def sampled_async(once: Callable[[int], Awaitable[object]], load: Load) -> Values:
    '''Like `sampled`, for a contender whose answer is awaited.'''
    samples = []
    end = time.perf_counter() + load.seconds
    for number in range(load.messages + load.warm_up):
        before = time.perf_counter()
        await once(number)
        after = time.perf_counter()
        samples.append(after - before)
        if after > end:
            break
    return percentiles(samples, load)


class PingPong:
    '''Times one message at a time for a contender that calls a handler with its answer.

    Args:
        put: sends a message.
        load: what to send.
    '''

    def __init__(self, put: Callable[[int], object], load: Load) -> None:
        self._put = put
        self._load = load
        self._samples: list[float] = []
        self._before = 0.0
        self._finished = asyncio.get_running_loop().create_future()

    async def run(self) -> Values:
        '''Send all messages, one after the other.'''
        self._next()
        await self._finished
        return percentiles(self._samples, self._load)

    def answered(self) -> None:
        '''Note the time and send the next message; to be called first thing by the handler.'''
        self._samples.append(time.perf_counter() - self._before)
        if len(self._samples) < self._load.messages + self._load.warm_up:
            self._next()
        else:
            self._finished.set_result(None)

    def _next(self) -> None:
        self._before = time.perf_counter()
        self._put(len(self._samples))
