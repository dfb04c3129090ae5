'''tractor: actors on trio, called through their portals.'''

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any

from benchmarks.load import IN_FLIGHT, Load, Values, percentiles
from benchmarks.peers.tasks import echo_async

__all__ = ['calls', 'latency']

_tractor: Any = import_module('tractor')
_trio: Any = import_module('trio')


def calls(load: Load) -> Values:
    '''Measure the calls answered a second.'''
    return _trio.run(_calls, load)  # type: ignore[no-any-return]


def latency(load: Load) -> Values:
    '''Measure one call at a time, in seconds.'''
    return _trio.run(_latency, load)  # type: ignore[no-any-return]


@asynccontextmanager
async def _portals(load: Load) -> AsyncIterator[list[Any]]:
    async with _tractor.open_nursery() as nursery:
        modules = [echo_async.__module__]
        yield [await nursery.start_actor(f'echo-{number}', enable_modules=modules) for number in range(load.workers)]
        await nursery.cancel()


async def _calls(load: Load) -> Values:
    async with _portals(load) as portals:
        await _keep_in_flight(portals, load.warm_up)
        before = perf_counter()
        await _keep_in_flight(portals, load.messages)
        return {'rate': load.messages / (perf_counter() - before)}


async def _keep_in_flight(portals: list[Any], count: int) -> None:
    messages = iter(range(count))
    async with _trio.open_nursery() as nursery:
        for number in range(min(count, IN_FLIGHT)):
            nursery.start_soon(_pull, portals[number % len(portals)], messages)


async def _pull(portal: Any, messages: Iterator[int]) -> None:
    for message in messages:
        await portal.run(echo_async, message=message)


async def _latency(load: Load) -> Values:
    samples = []
    async with _portals(load) as portals:
        call = partial(portals[0].run, echo_async)
        end = perf_counter() + load.seconds
        for message in range(load.messages + load.warm_up):
            before = perf_counter()
            await call(message=message)
            after = perf_counter()
            samples.append(after - before)
            if after > end:
                break
    return percentiles(samples, load)
