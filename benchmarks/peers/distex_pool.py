'''distex: a pool on asyncio, its workers started through its own script and connected by a Unix socket.'''

import asyncio
from collections.abc import Callable
from importlib import import_module

from benchmarks.load import IN_FLIGHT, WINDOW, Load, Values, keep_in_flight, rate_async, sampled_async
from benchmarks.peers.tasks import echo, nap

__all__ = ['calls', 'latency', 'mapped', 'sleepers', 'throughput']

_distex = import_module('distex')


def throughput(load: Load) -> Values:
    '''Measure the results a second of ``map_async`` with the window raised to `WINDOW`.'''
    return asyncio.run(_map_rate(echo, load, WINDOW))


def calls(load: Load) -> Values:
    '''Measure the calls of ``run_async`` answered a second, with queues that hold all `IN_FLIGHT` of them.

    Still larger ones made it slower.
    '''
    return asyncio.run(_calls(load))


def mapped(load: Load) -> Values:
    '''Measure the items a second of ``map_async`` with ``load.chunk`` items a chunk.'''
    return asyncio.run(_map_rate(echo, load, WINDOW))


def latency(load: Load) -> Values:
    '''Measure one message at a time, in seconds.'''
    return asyncio.run(_latency(load))


def sleepers(load: Load) -> Values:
    '''Measure the sleeping tasks done a second with the window open for all of them.

    A worker of distex awaits one task before it looks at the next, so the rate is workers / `NAP` for any number of
    tasks: a hundred of them show it.
    '''
    return asyncio.run(_map_rate(nap, load, load.messages))


async def _map_rate(task: Callable[[int], object], load: Load, window: int) -> Values:
    async with _distex.Pool(load.workers, qsize=max(1, window // load.workers)) as pool:

        async def run(count: int) -> None:
            async for _ in pool.map_async(task, range(count), chunksize=load.chunk or 1, ordered=load.ordered):
                pass

        return await rate_async(run, load)


async def _calls(load: Load) -> Values:
    async with _distex.Pool(load.workers, qsize=IN_FLIGHT // load.workers) as pool:
        return await rate_async(
            lambda count: keep_in_flight(lambda message: pool.run_async(echo, message), count), load
        )


async def _latency(load: Load) -> Values:
    async with _distex.Pool(load.workers) as pool:
        return await sampled_async(lambda message: pool.run_async(echo, message), load)
