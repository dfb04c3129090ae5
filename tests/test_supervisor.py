'''Workers are recycled without a loss, and replaced one by one or all together.'''

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from faults.observed import ObservedPool, kill, until
from harness import on_each_loop

import looppool


@on_each_loop
async def test_a_worker_is_recycled_after_so_many_tasks(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1, max_tasks_per_worker=3, max_restarts=0) as pool:
        for number in range(10):
            await pool.put(('who', number))
        answers = await pool.take(10)

        # The last results of one process may come beside the first of the next.
        tasks: dict[int, list[int]] = {}
        for _, pid, value in answers:
            tasks.setdefault(pid, []).append(value)
        assert sorted(tasks.values()) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
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
    assert sorted(pool.arrived.get_nowait() for _ in range(4)) == [0, 1, 2, 3]
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


# Renewing


class Gated(looppool.Worker[Any, Any]):
    '''Starts when a file is there, and fails to when it says so.'''

    async def _initialise(self, gate: str) -> None:
        while not os.path.exists(gate):
            await asyncio.sleep(0.005)
        if Path(gate).read_text() == 'broken':
            raise ValueError('the new code is broken')

    @looppool.task_done
    async def _process_message(self, message: Any) -> None:
        self._put_nowait((os.getpid(), message))
        while message == 'hold':
            await asyncio.sleep(60)


async def test_a_renewed_worker_is_ready_before_the_old_one_leaves(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1, max_restarts=0) as pool:
        await pool.broadcast(('remember', 'table'), retain='table')
        kitty = await pool.spawn('kitty')
        for member in (pool.members[0], kitty):
            first, events = member.pid, pool.events()
            await member.put(('hold', 'old'))
            assert await pool.result() == ('held', 'old')

            await pool.renew(member)

            second = member.pid
            assert second != first and member.state == 'ready' and len(member.running) == 2
            await member.put(('recall',))
            assert await pool.result() == (second, ['table'])
            member.running[0].end.cancel()
            assert (await pool.failure())[0] == ('hold', 'old')
            seen = [await anext(events) for _ in range(3)]
            assert [(e.kind, e.pid, e.name) for e in seen] == [
                ('started', seen[0].pid, member.name),
                ('recycled', first, member.name),
                ('ready', second, member.name),
            ]
            # The fork server has not told it then.
            assert seen[0].pid in (None, second)
        assert pool.named == {'kitty': kitty} and pool.statistics().restarts == 0


async def test_nothing_is_lost_while_workers_are_renewed_all_the_time(context: str) -> None:
    pool = ObservedPool(context=context, pool_size=2, max_restarts=0, stop_timeout=None)
    async with pool:
        before = [member.pid for member in pool.members]

        async def renew() -> None:
            for _ in range(2):
                for member in pool.members:
                    await pool.renew(member)

        renewing = asyncio.create_task(renew())
        count = 0
        while not renewing.done():
            await pool.put(('who', count))
            await asyncio.sleep(0)
            count += 1
        await renewing
        assert not set(before) & {member.pid for member in pool.members}
    answers = [pool.arrived.get_nowait() for _ in range(pool.arrived.qsize())]
    assert sorted(value for _, _, value in answers) == list(range(count))
    assert pool.failed.empty() and pool.statistics().restarts == 0


async def test_a_renewal_that_fails_changes_nothing(context: str, tmp_path: Path, logs: LogGuard) -> None:
    failures = logs.expect(r'worker 0 \(pid \d+\) did not start: it failed with ValueError')
    gate = tmp_path / 'gate'
    gate.touch()
    async with ObservedPool(
        worker_class=Gated, options={'gate': str(gate)}, context=context, pool_size=1, max_restarts=0
    ) as pool:
        member, first = pool.members[0], pool.members[0].pid
        await pool.put('hold')
        await pool.take(1)
        gate.write_text('broken')
        for _ in range(3):
            with pytest.raises(looppool.WorkerStartError, match='the new code is broken'):
                await pool.renew(member)
        await pool.put('more')

        assert await pool.result() == (first, 'more')
        assert len(failures) == 3 and (pool.state, member.running) == ('running', [member.link])
        member.link.end.cancel()
        await pool.failure()


async def test_a_worker_that_dies_while_it_is_renewed_is_replaced_as_any(
    context: str, tmp_path: Path, logs: LogGuard
) -> None:
    logs.expect('was killed by SIGKILL')
    gate = tmp_path / 'gate'
    gate.touch()
    async with ObservedPool(worker_class=Gated, options={'gate': str(gate)}, context=context, pool_size=1) as pool:
        member, first = pool.members[0], pool.members[0].pid
        gate.unlink()
        renewing = asyncio.create_task(pool.renew(member))
        await until(lambda: member.successor)
        kill(first)
        await renewing
        gate.touch()

        await until(lambda: member.state == 'ready')
        await pool.put('new')
        assert await pool.result() == (member.pid, 'new') and member.pid != first
        assert (member.successor, member.restarts) == (None, 1)
        await until(lambda: len(member.running) == 1)


@pytest.mark.parametrize('end', ['cancel', 'stop', 'leave', 'recycle', 'kill'])
async def test_a_renewal_that_is_overtaken_leaves_nothing(context: str, end: str, tmp_path: Path) -> None:
    gate = tmp_path / 'gate'
    gate.touch()
    async with ObservedPool(worker_class=Gated, options={'gate': str(gate)}, context=context, pool_size=2) as pool:
        member = pool.members[1]
        gate.unlink()
        renewing = asyncio.create_task(pool.renew(member))
        await until(lambda: member.successor)
        successor = member.successor
        if end == 'cancel':
            renewing.cancel()
        else:
            overtaking = asyncio.create_task({
                'stop': pool.stop, 'leave': lambda: pool.resize(1), 'recycle': member.stop, 'kill': member.kill,
            }[end]())  # fmt: skip
            if end in ('recycle', 'kill'):
                gate.touch()
            await overtaking
        await asyncio.wait([renewing])

        assert renewing.cancelled() is (end == 'cancel')
        if end == 'stop':
            assert isinstance(renewing.exception(), looppool.PoolClosed)
        await until(lambda: successor.buried and member.successor is None)
        assert member.state == {'cancel': 'ready', 'stop': 'stopped', 'leave': 'stopped'}.get(end, member.state)
        await until(lambda: all(m.state == 'ready' for m in pool.members) or end == 'stop')


async def test_a_leased_worker_is_renewed_when_its_lease_ends(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1) as pool:
        member, first = pool.members[0], pool.members[0].pid
        async with pool.reserve() as lease:
            renewing = asyncio.create_task(pool.renew(member))
            assert await lease.call(os.getpid) == first
            assert not renewing.done() and member.successor is None
        await renewing
        assert member.pid != first

        second = member.pid
        renewing = asyncio.create_task(pool.renew(member))
        await asyncio.sleep(0)
        assert member.successor
        async with pool.reserve() as lease:
            successor = member.successor
            await until(lambda: successor.was_ready)
            assert await lease.call(os.getpid) == second
            assert not renewing.done()
        await renewing
        assert member.pid == successor.process.pid
