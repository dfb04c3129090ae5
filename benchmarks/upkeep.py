'''What a pool of looppool costs while it does nothing, or does the same for long: start, memory, idle CPU.'''

import asyncio
import os
import statistics
import time
from typing import Any

import psutil

import looppool
from benchmarks.load import Load, Values
from benchmarks.meters import cpu_of_tree, memory
from benchmarks.workers import Echo

__all__ = ['flatness', 'idle_cpu', 'idle_memory', 'start']

_SETTLE = 1.0
'''Seconds after READY until a pool counts as idle.'''

_MESSAGE = 'a message of the size that an address of a page and a few fields take ' * 3
_SAMPLES = 50
_REST_EVERY = 500
_REST = 0.01
'''The slow consumer takes at most ``_REST_EVERY / _REST`` results a second, less than a worker makes.'''


def start(load: Load) -> Values:
    '''Measure the seconds from `Pool()` to READY of all workers, in a fresh process and once more.'''
    return asyncio.run(_start_twice(load))


def idle_memory(load: Load) -> Values:
    '''Measure the memory of the largest idle worker, in bytes.'''
    return asyncio.run(_idle_memory(load))


def idle_cpu(load: Load) -> Values:
    '''Measure the CPU of the parent, its workers and helpers while idle, as a share of one core.'''
    return asyncio.run(_idle_cpu(load))


def flatness(load: Load) -> Values:
    '''Measure how far the memory of parent and workers strays from its median, as a share of it.

    RSS is sampled all through the run, except for the first tenth, in which the pool fills its window.
    '''
    return asyncio.run(_flatness(load))


def _pool(load: Load) -> 'looppool.Pool[int, int]':
    return looppool.Pool(pool_size=load.workers, worker_class=Echo, context=load.context)


def _pids(pool: 'looppool.Pool[Any, Any]') -> list[int]:
    return [member.pid for member in pool.members if member.pid is not None]


async def _start_twice(load: Load) -> Values:
    return {'cold': await _start(load), 'warm': await _start(load)}


async def _start(load: Load) -> float:
    before = time.perf_counter()
    pool = _pool(load)
    await pool.start()
    ready = time.perf_counter()
    await pool.stop()
    return ready - before


async def _idle_memory(load: Load) -> Values:
    async with _pool(load) as pool:
        await asyncio.sleep(_SETTLE)
        return memory(_pids(pool))


async def _idle_cpu(load: Load) -> Values:
    async with _pool(load):
        await asyncio.sleep(_SETTLE)
        used, since = cpu_of_tree(), time.perf_counter()
        await asyncio.sleep(load.seconds)
        return {'cpu': (cpu_of_tree() - used) / (time.perf_counter() - since)}


async def _flatness(load: Load) -> Values:
    async with _pool(load) as pool:
        samples = await _consume_slowly(pool, load.messages)
    own, *workers = zip(*samples[_SAMPLES // 10:], strict=True)
    return {'parent': _strays(own), 'worker': max(_strays(worker) for worker in workers)}


async def _consume_slowly(pool: 'looppool.Pool[Any, Any]', count: int) -> list[list[int]]:
    '''Put *count* tasks as fast as possible, take the results slowly, and return samples of the RSS.'''
    processes = [psutil.Process(pid) for pid in (os.getpid(), *_pids(pool))]
    samples: list[list[int]] = []
    received = 0
    producer = asyncio.create_task(_produce(pool, count))
    async for _ in pool.results():
        received += 1
        if received % _REST_EVERY == 0:
            await asyncio.sleep(_REST)
        if received % (count // _SAMPLES) == 0:
            samples.append([process.memory_info().rss for process in processes])
        if received == count:
            break
    await producer
    return samples


async def _produce(pool: 'looppool.Pool[Any, Any]', count: int) -> None:
    for number in range(count):
        await pool.put(f'{number} {_MESSAGE}')


def _strays(sizes: tuple[int, ...]) -> float:
    middle = statistics.median(sizes)
    return max(abs(size - middle) for size in sizes) / middle
