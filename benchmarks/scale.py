'''How looppool scales on one machine: from one worker to many, and from one task in flight to very many.'''

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import looppool
from benchmarks.engine import Feed
from benchmarks.load import Load, Values
from benchmarks.meters import cpu_of, mean_uss
from benchmarks.workers import Busy, Echo, Hold

__all__ = ['in_flight', 'workers']

_WORKERS: dict[str, type[looppool.Worker[int, int]]] = {'plain': Echo, 'busy': Busy}

_HEADROOM = 4096
'''Permits beyond those of the tasks in flight: a result comes a moment before its task is done.'''

_MOVING = 1000
'''Tasks on their way, at most, where the others are held by the worker; half of them where they are few.'''


def workers(load: Load) -> Values:
    '''Measure start and stop of so many workers, what a task costs with them, and what memory each has then.'''
    return asyncio.run(_workers(load))


def in_flight(load: Load) -> Values:
    '''Measure what a task costs while so many are in flight, and what memory they take.

    With 'plain' handlers they wait in line. With a 'coroutine' they have begun and wait in the worker, all but some
    that are on their way.
    '''
    return asyncio.run(_in_flight(load))


class _Circle:
    '''Keeps as many tasks in flight as were put first: each result has the next one put.'''

    def __init__(self, pool: 'looppool.Pool[int, int]') -> None:
        self._pool = pool
        self._to_come = 0
        self._closed = False
        self._finished: asyncio.Future[None] | None = None
        pool.process_message = self._result
        pool.process_failure = self._failed

    async def fill(self, count: int) -> None:
        '''Put the first *count* tasks; there is credit for all of them, so that the loop does not turn meanwhile.'''
        for number in range(count):
            await self._pool.put(number)

    async def run(self, count: int) -> None:
        '''Return when *count* results were handled, and as many tasks put in their place.'''
        self._to_come = count
        self._finished = asyncio.get_running_loop().create_future()
        await self._finished

    def close(self) -> None:
        '''Put nothing more.'''
        self._closed = True

    @looppool.task_done
    def _result(self, result: int, _result_done: Callable[[], None]) -> None:
        if self._closed:
            return
        self._pool.put_nowait(result)
        self._to_come -= 1
        if not self._to_come and self._finished:
            self._finished.set_result(None)

    def _failed(self, _task: int, error: BaseException) -> None:
        if self._finished and not self._finished.done():
            self._finished.set_exception(error)


async def _workers(load: Load) -> Values:
    pool = looppool.Pool(pool_size=load.workers, worker_class=_WORKERS[load.handlers])
    feed = Feed(pool, coroutine=False)
    before = time.perf_counter()
    await pool.start()
    started = time.perf_counter()
    costs = await _costs(feed.run, pool, load)
    uss = mean_uss(_pids(pool))
    stopping = time.perf_counter()
    await pool.stop()
    return {**costs, 'uss': uss, 'start': started - before, 'stop': time.perf_counter() - stopping}


async def _in_flight(load: Load) -> Values:
    limit = load.in_flight + _HEADROOM
    moving = min((load.in_flight + 1) // 2, _MOVING)
    settings: dict[str, Any] = {'pool_size': 1, 'max_tasks': limit, 'max_results': limit}
    if load.handlers == 'coroutine':
        pool = looppool.Pool(worker_class=Hold, options={'hold': load.in_flight - moving}, **settings)
    else:
        pool = looppool.Pool(worker_class=Echo, **settings)
    circle = _Circle(pool)
    await pool.start()
    await circle.fill(load.in_flight)
    costs = await _costs(circle.run, pool, load)
    sizes = {'uss': mean_uss(_pids(pool)), 'parent uss': mean_uss([os.getpid()])}
    circle.close()
    await pool.kill()
    return {**costs, **sizes}


async def _costs(run: Callable[[int], Awaitable[None]], pool: 'looppool.Pool[Any, Any]', load: Load) -> Values:
    '''Measure the tasks a second of ``run(n)``, and the CPU seconds that each takes in parent and workers.'''
    await run(load.warm_up)
    pids, own = _pids(pool), time.process_time()
    theirs, before = cpu_of(pids), time.perf_counter()
    await run(load.messages)
    passed, parent = time.perf_counter() - before, time.process_time() - own
    return {
        'rate': load.messages / passed,
        'parent cpu': parent / load.messages,
        'workers cpu': (cpu_of(pids) - theirs) / load.messages,
    }


def _pids(pool: 'looppool.Pool[Any, Any]') -> list[int]:
    return [member.pid for member in pool.members if member.pid is not None]
