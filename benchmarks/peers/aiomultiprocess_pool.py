'''aiomultiprocess: a pool on asyncio that polls `multiprocessing.Queue`.'''

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module

from benchmarks.load import Load, Values, rate_async, sampled_async
from benchmarks.peers.tasks import echo_async, nap

__all__ = ['latency', 'sleepers', 'throughput']

_aiomultiprocess = import_module('aiomultiprocess')

_CONCURRENCY = 1000
'''Tasks that one worker runs at once; the default of 16 would only measure the polling.'''


def throughput(load: Load) -> Values:
    '''Measure the results a second of ``map``.'''
    return asyncio.run(_map_rate(echo_async, load))


def latency(load: Load) -> Values:
    '''Measure one message at a time, in seconds.'''
    return asyncio.run(_latency(load))


def sleepers(load: Load) -> Values:
    '''Measure the sleeping tasks done a second, `_CONCURRENCY` of them at once in a worker.'''
    return asyncio.run(_map_rate(nap, load))


async def _map_rate(task: Callable[[int], Awaitable[int]], load: Load) -> Values:
    async with _aiomultiprocess.Pool(
        load.workers, childconcurrency=_CONCURRENCY, queuecount=load.workers
    ) as pool:
        return await rate_async(lambda count: pool.map(task, range(count)), load)


async def _latency(load: Load) -> Values:
    async with _aiomultiprocess.Pool(load.workers, childconcurrency=_CONCURRENCY) as pool:
        return await sampled_async(lambda message: pool.apply(echo_async, (message,)), load)
