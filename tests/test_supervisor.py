'''Workers are recycled without a loss, and replaced one by one or all together.'''

import asyncio
import itertools
from collections import Counter

import pytest
from conftest import LogGuard
from faults.observed import ObservedPool, kill, until

import looppool


async def test_a_worker_is_recycled_after_so_many_tasks(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1, max_tasks_per_worker=3, max_restarts=0) as pool:
        for number in range(10):
            await pool.put(('who', number))
        answers = await pool.take(10)

        assert [value for _, _, value in answers] == list(range(10))
        assert [len(list(group)) for _, group in itertools.groupby(pid for _, pid, _ in answers)] == [3, 3, 3, 1]
        assert len({pid for _, pid, _ in answers}) == 4
        await until(lambda: pool.statistics().in_flight == 0)
        statistics = pool.statistics()
        assert (statistics.done, statistics.failed, statistics.restarts) == (10, 0, 0)


async def test_what_is_recycled_finishes_beside_the_next(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1, max_tasks_per_worker=1) as pool:
        first = pool.members[0].pid
        await pool.put(('hold', 'first'))
        assert await pool.result() == ('held', 'first')
        await until(lambda: pool.members[0].pid not in (None, first) and pool.members[0].state == 'ready')
        await pool.put(('hold', 'second'))
        await pool.put(('who', 'third'))
        assert await pool.result() == ('held', 'second')
        assert len(pool.members[0].running) == 2, 'the third waits until the first is gone'

        pool.members[0].running[0].end.cancel()
        assert (await pool.result())[2] == 'third'
        pool.members[0].running[0].end.cancel()
        assert {(await pool.failure())[0] for _ in range(2)} == {('hold', 'first'), ('hold', 'second')}


async def test_no_task_is_lost_or_run_twice_when_workers_are_recycled_all_the_time(context: str) -> None:
    # Starting so many processes may take longer than a stop with a limit would wait for the tasks.
    pool = ObservedPool(
        context=context, pool_size=2, max_tasks_per_worker=5, recycle_jitter=0.6, concurrency=2, stop_timeout=None
    )
    async with pool:
        for number in range(60):
            await pool.put(('who', number))
    answers = [pool.arrived.get_nowait() for _ in range(pool.arrived.qsize())]

    assert sorted(value for _, _, value in answers) == list(range(60))
    assert set(Counter(pid for _, pid, _ in answers).values()) <= {1, 2, 3, 4, 5}
    assert pool.failed.empty() and pool.statistics().done == 60


async def test_a_recycled_process_that_dies_gives_back_what_had_not_started(logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(pool_size=1, concurrency=1, max_restarts=0) as pool:
        member = pool.members[0]
        first = member.pid
        for order in (('hold', 'it'), ('who', 'later'), ('who', 'last')):
            await member.put(order)
        await pool.take(1)
        stopping = asyncio.create_task(member.stop(timeout=None))
        await until(lambda: member.state == 'ready' and member.pid != first)

        kill(first)
        await stopping

        assert await pool.take(2) == [(0, member.pid, 'later'), (0, member.pid, 'last')]
        assert (await pool.failure())[0] == ('hold', 'it')
        assert pool.state == 'running'


async def test_an_old_worker_is_recycled() -> None:
    async with ObservedPool(pool_size=1, max_age=0.2, max_restarts=0) as pool:
        first = pool.members[0].pid
        await until(lambda: pool.members[0].pid not in (None, first) and pool.members[0].state == 'ready')
        await pool.put(('echo', 'alive'))
        assert await pool.result() == 'alive'


async def test_a_large_worker_is_recycled() -> None:
    events = None
    async with ObservedPool(pool_size=1, max_rss=1, max_restarts=0) as pool:
        events = pool.events()
        async for event in events:
            if event.kind == 'recycled':
                break
        assert event.number == 0


async def test_a_leased_worker_is_recycled_after_its_lease() -> None:
    async with ObservedPool(pool_size=1, max_tasks_per_worker=2, max_restarts=0) as pool:
        async with pool.reserve() as lease:
            first = lease.pid
            for number in range(4):
                await lease.put(('who', number))
            assert {pid for _, pid, _ in await pool.take(4)} == {first}
        await until(lambda: pool.members[0].pid not in (None, first) and pool.members[0].state == 'ready')


async def test_workers_with_names_are_kept() -> None:
    async with ObservedPool(pool_size=1, max_tasks_per_worker=1) as pool:
        kitty = await pool.spawn('kitty')
        for number in range(3):
            await kitty.put(('who', number))
        assert await pool.take(3) == [(kitty.number, kitty.pid, number) for number in range(3)]


async def test_a_pool_that_stops_finishes_what_recycled_workers_have(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1, max_tasks_per_worker=1, concurrency=1) as pool:
        for number in range(4):
            pool.put_nowait(('echo', number))
    assert [pool.arrived.get_nowait() for _ in range(4)] == [0, 1, 2, 3]
    assert pool.failed.empty()


async def test_one_for_all_replaces_every_worker_and_counts_once(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    pool = ObservedPool(context=context, pool_size=3, restart='one_for_all', max_restarts=1, concurrency=1)
    async with pool:
        kitty = await pool.spawn('kitty')
        everybody = [*pool.members, kitty]
        before = [member.pid for member in everybody]
        await pool.put(('hold', 'it'), worker_num=1)
        await pool.put(('who', 'later'), worker_num=1)
        await pool.take(1)
        kill(before[0])

        number, pid, value = await pool.result()
        assert (number, value) == (1, 'later') and pid not in before
        await until(lambda: all(member.state == 'ready' for member in everybody))
        task, error = await pool.failure()
        assert task == ('hold', 'it') and "restart='one_for_all'" in str(error)
        assert not set(before) & {member.pid for member in everybody}
        assert pool.state == 'running'
        await pool.works()


@pytest.mark.parametrize('delay', [0.2])
async def test_the_back_off_is_as_told(delay: float, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(pool_size=1, restart_delay=delay, max_restart_delay=delay) as pool:
        assert isinstance(pool, looppool.Pool)
        budget = pool._budget
        assert [budget.spend(100.0) for _ in range(3)] == [0.0, delay, delay]
