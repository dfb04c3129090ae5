'''What a pool tells of itself: frozen numbers that agree with what happened, for every start method.'''

import asyncio
import dataclasses
import os
import signal
from typing import Any

import pytest
from conftest import LogGuard
from harness import Echo, ResultDone, failures_of

from looppool import MemberStatistics, Pool, PoolStatistics, Worker, task_done

SUMS = ('restarts', 'in_flight', 'done', 'failed', 'results', 'results_pending', 'credits', 'bytes')


def checked(pool: Pool[Any, Any]) -> PoolStatistics:
    '''The statistics of a pool, when they agree with themselves.'''
    statistics = pool.statistics()
    assert [member.number for member in statistics.members] == list(range(len(pool.members)))
    assert [member.pid for member in statistics.members] == [member.pid for member in pool.members]
    for field in SUMS:
        assert getattr(statistics, field) == sum(getattr(member, field) for member in statistics.members)
    return statistics


def test_before_the_start() -> None:
    statistics = checked(Pool(pool_size=2, worker_class=Echo, name='mill', max_tasks=10))
    assert (statistics.name, statistics.state, statistics.waiting) == ('mill', 'new', 0)
    assert statistics.members == tuple(
        MemberStatistics(
            number=number, state='new', pid=None, restarts=0, in_flight=0, done=0, failed=0,
            results=0, results_pending=0, credits=5, bytes=0, heartbeat=None,
        )
        for number in range(2)
    )  # fmt: skip


def test_they_are_frozen() -> None:
    statistics = Pool(pool_size=1, worker_class=Echo).statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.done = 1  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        statistics.members[0].done = 1  # type: ignore[misc]


class TwoResults(Worker[bytes, Any]):
    @task_done
    async def _process_message(self, message: bytes) -> None:
        if message == b'fail':
            raise LookupError('as told')
        await self._put(self._number)
        await self._put(None)


async def test_while_it_works(context: str) -> None:
    pool = Pool(pool_size=2, worker_class=TwoResults, context=context, max_tasks=4, max_results=2)
    held: asyncio.Queue[tuple[Any, ResultDone]] = asyncio.Queue()
    pool.process_message = lambda result, result_done: held.put_nowait((result, result_done))
    failures = failures_of(pool)
    async with pool:
        fresh = checked(pool)
        assert (fresh.state, fresh.credits, fresh.in_flight, fresh.bytes) == ('running', 4, 0, 0)
        assert [member.state for member in fresh.members] == ['ready', 'ready']
        for message in (b'0', b'1', bytes(100), b'fail'):
            pool.put_nowait(message)
        waiting = asyncio.create_task(pool.put(b'later'))
        await asyncio.sleep(0)
        firsts = [await held.get() for _ in pool.members]
        assert sorted(result for result, _ in firsts) == [0, 1]
        busy = checked(pool)
        assert (busy.credits, busy.in_flight, busy.waiting) == (0, 4, 1)
        assert (busy.results, busy.results_pending, busy.done, busy.failed) == (2, 2, 0, 0)
        assert busy.members[0].bytes > busy.members[1].bytes > 0 and busy.members[0].bytes > 100
        pool.process_message = lambda result, result_done: result_done()
        for _, result_done in firsts:
            result_done()
        await waiting
    end = checked(pool)
    assert (end.state, end.done, end.failed, end.in_flight, end.bytes) == ('stopped', 4, 1, 0, 0)
    assert (end.results, end.results_pending, end.credits, end.waiting) == (8, 0, 4, 0)
    assert [member.state for member in end.members] == ['stopped', 'stopped']
    assert [task for task, _ in failures] == [b'fail']


async def test_a_replacement_counts_on(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with Pool(pool_size=2, worker_class=Echo, context=context) as pool:
        results = pool.results()
        pool.put_nowait('before', worker_num=1)
        assert await anext(results) == 'before'
        before = checked(pool).members[1]
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        while pool.members[1].state == 'ready':
            await asyncio.sleep(0)
        between = checked(pool)
        assert between.members[0].state == 'ready' and between.members[1].state in ('restarting', 'starting')
        assert between.state == 'running' and between.members[1].pid != before.pid
        pool.put_nowait('after', worker_num=1)
        assert await anext(results) == 'after'
        after = checked(pool)
        assert after.restarts == after.members[1].restarts == 1
        assert (after.members[1].state, after.members[1].results) == ('ready', 2)
        assert after.members[1].pid not in (None, before.pid)
    assert checked(pool).members[1].done == 2


async def test_the_heartbeat_is_how_long_ago_the_loop_turned(context: str) -> None:
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        pid = pool.members[0].pid
        assert pid is not None
        age = checked(pool).members[0].heartbeat
        assert age is not None and 0 <= age < 30
        os.kill(pid, signal.SIGSTOP)
        # It beats once a second: what is older shows that it stands still, and that nobody had to answer to tell.
        while (age := checked(pool).members[0].heartbeat) is not None and age < 1.2:
            await asyncio.sleep(0.01)
        os.kill(pid, signal.SIGCONT)
        while (age := checked(pool).members[0].heartbeat) is not None and age > 1.2:
            await asyncio.sleep(0.01)
        assert age is not None
    assert checked(pool).members[0].heartbeat is None
