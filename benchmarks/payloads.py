"""looppool's large arrays: as the arguments and values of calls, and as a broadcast."""

import asyncio
import statistics
import time
from typing import Any

import looppool
from benchmarks.arrays import blank, check, large_arrays_async, small_arrays_async
from benchmarks.load import Load, Values
from benchmarks.meters import pss_of_tree
from benchmarks.workers import Keeper

__all__ = ['broadcast', 'large', 'small']

_SMALL = 64
'''Bytes of the array that takes the place of a large one, and with which every worker has imported numpy.'''


def large(load: Load) -> Values:
    '''Measure the speed of single arrays one way, and there and back.'''
    return asyncio.run(_large(load))


def small(load: Load) -> Values:
    '''Measure the arrays a second that cross one way.'''
    return asyncio.run(_small(load))


def broadcast(load: Load) -> Values:
    '''Measure an array that workers keep: put to one, broadcast to all of them, and the memory of the latter.

    The memory is what the PSS of parent and workers grows by until each worker has the array from the first broadcast
    and has read it to its end, in arrays. The times are medians, in seconds until the answer of each worker that keeps
    it. Nobody holds an earlier one then.
    '''
    return asyncio.run(_broadcast(load))


def _pool(load: Load) -> 'looppool.Pool[Any, Any]':
    return looppool.Pool(pool_size=load.workers)


async def _large(load: Load) -> Values:
    async with _pool(load) as pool:
        return await large_arrays_async(pool.call, load)


async def _small(load: Load) -> Values:
    async with _pool(load) as pool:
        return await small_arrays_async(pool.call, load)


class _Keepers:
    '''Puts arrays and waits for the answers.'''

    def __init__(self, pool: 'looppool.Pool[Any, int]', workers: int) -> None:
        self._pool = pool
        self._workers = workers
        self._results = pool.results()

    async def put(self, message: Any) -> None:
        '''Put an array to one worker, and return when it has it.'''
        await self._pool.put(message, worker_num=0)
        check(await anext(self._results), int(message[0]))

    async def broadcast(self, message: Any) -> None:
        '''Put an array to all workers, and return when they have it.'''
        await self._pool.broadcast(message)
        for _ in range(self._workers):
            check(await anext(self._results), int(message[0]))

    async def read(self, total: int) -> None:
        '''Have every worker read all of its array, whose sum is *total*.'''
        await self._pool.broadcast(None)
        for _ in range(self._workers):
            check(await anext(self._results), total)


async def _broadcast(load: Load) -> Values:
    async with looppool.Pool(pool_size=load.workers, worker_class=Keeper) as pool:
        keepers = _Keepers(pool, load.workers)
        array, small = blank(load.payload), blank(_SMALL)
        await keepers.broadcast(small)
        await keepers.read(int(small.sum()))
        before = pss_of_tree()
        await keepers.broadcast(array)
        await keepers.read(int(array.sum()))
        copies = (pss_of_tree() - before) / load.payload
        return {**await _times(keepers, array, small, load), 'copies': copies}


async def _times(keepers: _Keepers, array: Any, small: Any, load: Load) -> Values:
    sent: list[float] = []
    to_all: list[float] = []
    for number in range(load.messages):
        array[0] = number
        for put, samples in ((keepers.put, sent), (keepers.broadcast, to_all)):
            await keepers.broadcast(small)
            before = time.perf_counter()
            await put(array)
            samples.append(time.perf_counter() - before)
    return {'send': statistics.median(sent), 'to all': statistics.median(to_all)}
