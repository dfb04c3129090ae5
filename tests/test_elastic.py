'''A pool's size and its workers with names, for every start method.'''

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from faults.observed import ObservedPool, kill, until

import looppool


def numbers(pool: looppool.Pool[Any, Any]) -> list[int]:
    return [member.number for member in pool.members]


class FailsToStart(looppool.Worker[Any, Any]):
    def _initialise(self, healthy: int = 0, **_others: Any) -> None:
        if self._number not in range(healthy):
            raise ValueError(f'worker {self._number} is ill')

    @looppool.task_done
    async def _process_message(self, message: Any) -> None:
        await asyncio.sleep(message)


# Growing and shrinking


async def test_it_grows_while_every_worker_is_busy_and_shrinks_when_they_are_idle(
    context: str, tmp_path: Path
) -> None:
    flag = tmp_path / 'go'
    pool = ObservedPool(
        context=context, pool_size=None, min_size=1, max_size=3, concurrency=1, idle_ttl=0.5,
        distribution='least_loaded',
    )  # fmt: skip
    async with pool:
        await pool.broadcast(('remember', 'table'), retain='table')
        assert numbers(pool) == [0]

        for put, size in enumerate((2, 3, 3, 3)):
            # The copies of what is retained are done.
            await until(lambda put=put: pool.statistics().in_flight == put)
            await pool.put(('hold_until', str(flag)))
            await until(lambda size=size: len(pool.members) == size and pool.members[-1].state == 'ready')
        assert [member.slot.window.used for member in pool.members] == [2, 1, 1]
        pool.put_nowait(('recall',), worker_num=2)
        pid = pool.members[2].pid
        flag.touch()
        answers = await pool.take(9)
        assert (answers.count('held'), answers.count('until')) == (4, 4)
        assert (pid, ['table']) in answers, 'what is retained comes first'
        await until(lambda: numbers(pool) == [0] and not pool._leaving)

        assert pool.state == 'running'
        assert pool.members[0].state == 'ready'
        statistics = pool.statistics()
        assert (statistics.size, len(statistics.members), statistics.failed, statistics.restarts) == (1, 1, 0, 0)
        assert statistics.done == 8


async def test_a_put_that_finds_no_credit_has_the_pool_grow() -> None:
    async with ObservedPool(pool_size=None, max_size=2, max_tasks=2) as pool:
        pool.put_nowait(('hold', 'it'), worker_num=0)
        with pytest.raises(looppool.Full):
            pool.put_nowait(('who',))
        await until(lambda: len(pool.members) == 2 and pool.members[1].state == 'ready')

        await pool.put(('who', 'grown'), worker_num=1)
        assert await pool.take(2) == [('held', 'it'), (1, pool.members[1].pid, 'grown')]
        pool.members[0].slot.window.limit += 1
        await pool.put(('release', 'it'), worker_num=0)


async def test_resize_starts_and_retires_workers(context: str) -> None:
    async with ObservedPool(context=context, pool_size=2) as pool:
        kept = [member.pid for member in pool.members]

        await pool.resize(4)
        assert numbers(pool) == [0, 1, 2, 3]
        await pool.works()
        assert [member.pid for member in pool.members][:2] == kept

        gone = pool.members[2:]
        await pool.resize(2)
        assert numbers(pool) == [0, 1]
        assert [(member.state, member.pid) for member in gone] == [('stopped', None)] * 2
        await pool.works()
        with pytest.raises(ValueError, match='worker_num has to be from 0 to 1 or the name of a worker, not 2'):
            pool.put_nowait(('who',), worker_num=2)
        with pytest.raises(ValueError, match='worker 3 has left pool'):
            gone[1].put_nowait(('who',))
        assert pool.statistics().done == 6


async def test_a_worker_that_leaves_ends_what_it_has_and_its_number_is_used_again(logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(pool_size=2) as pool:
        last = pool.members[1]
        await last.put(('hold', 'it'))
        assert await pool.result() == ('held', 'it')

        shrinking = asyncio.create_task(pool.resize(1))
        await until(lambda: len(pool.members) == 1)
        assert last.leaving and last.state == 'ready'
        await pool.resize(2)
        assert pool.members[1].pid not in (None, last.pid)
        await pool.put(('who', 'new'), worker_num=1)
        assert await pool.result() == (1, pool.members[1].pid, 'new')
        assert not shrinking.done()

        kill(last.pid)
        await shrinking
        task, error = await pool.failure()
        assert task == ('hold', 'it') and isinstance(error, looppool.WorkerDied) and error.started
        assert (last.state, last.running) == ('stopped', [])
        assert pool.statistics().restarts == 0


async def test_a_worker_that_leaves_and_dies_has_what_is_left_done_by_a_replacement(logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(pool_size=2, concurrency=1) as pool:
        last = pool.members[1]
        for order in (('hold', 'it'), ('who', 'addressed')):
            await last.put(order)
        assert await pool.result() == ('held', 'it')
        first, shrinking = last.pid, asyncio.create_task(pool.resize(1))
        await until(lambda: last.leaving)

        kill(first)
        await shrinking
        number, pid, value = await pool.result()
        assert (number, value) == (1, 'addressed') and pid != first
        assert (await pool.failure())[0] == ('hold', 'it')


async def test_who_waits_for_a_worker_that_leaves_is_told() -> None:
    async with ObservedPool(pool_size=2, max_tasks=2) as pool:
        await pool.put(('hold', 'it'), worker_num=1)
        waiting = asyncio.create_task(pool.put(('who',), worker_num=1))
        broadcast = asyncio.create_task(pool.broadcast(('who', 'all')))
        await until(lambda: pool.statistics().waiting == 2)
        last = pool.members[1]

        shrinking = asyncio.create_task(pool.resize(1))

        with pytest.raises(ValueError, match='worker 1 has left pool'):
            await waiting
        await broadcast
        assert set(await pool.take(2)) == {('held', 'it'), (0, pool.members[0].pid, 'all')}
        assert last.link is not None
        last.link.end.cancel()
        await shrinking
        await pool.failure()


async def test_warm_has_workers_ready_ahead_of_the_work(context: str) -> None:
    pool = ObservedPool(context=context, pool_size=None, min_size=1, max_size=2, idle_ttl=None)
    async with pool:
        await pool.warm(2)
        assert [member.state for member in pool.members] == ['ready', 'ready']
        await pool.works()
        await pool.warm(1)
        assert numbers(pool) == [0, 1]
        with pytest.raises(ValueError, match='at most max_size, 2, not 3'):
            await pool.warm(3)


@pytest.mark.parametrize('size', [0, -1, True, 1.5, None, '2'])
async def test_a_size_that_is_none_is_refused(size: Any) -> None:
    async with ObservedPool(pool_size=1) as pool:
        for change in (pool.resize, pool.warm):
            with pytest.raises(ValueError, match='size has to be a whole number of at least 1'):
                await change(size)
        assert numbers(pool) == [0]


@pytest.mark.parametrize('grow', ['resize', 'warm'])
async def test_a_worker_that_fails_to_start_on_the_way_leaves_the_pool_as_it_was(
    context: str, grow: str, logs: LogGuard
) -> None:
    failures = logs.expect(r'worker [123] \(pid \d+\) (did not start: it failed with ValueError|was killed)')
    async with ObservedPool(
        worker_class=FailsToStart, options={'healthy': 1}, context=context, pool_size=None, min_size=1, max_size=4
    ) as pool:
        with pytest.raises(looppool.WorkerStartError, match=r'worker [123] .* is ill') as caught:
            await getattr(pool, grow)(4)

        assert isinstance(caught.value.__cause__, ValueError)
        await until(lambda: numbers(pool) == [0])
        assert failures
        await pool.put(0.0)
        assert (pool.state, pool.statistics().restarts) == ('running', 0)


async def test_growing_in_vain_never_breaks_a_pool(logs: LogGuard) -> None:
    failures = logs.expect('worker 1 .* did not start')
    async with ObservedPool(
        worker_class=FailsToStart, options={'healthy': 1}, pool_size=None, min_size=1, max_size=2, concurrency=1,
        max_restarts=1, restart_window=0.1,
    ) as pool:  # fmt: skip
        for _ in range(3):
            await pool.put(0.4)
        await until(lambda: len(failures) >= 3)
        assert numbers(pool) == [0] and pool.state == 'running'
        await until(lambda: pool.statistics().done == 3)


@pytest.mark.parametrize('verb', ['resize', 'warm', 'spawn'])
async def test_a_pool_that_stops_grows_no_more(verb: str) -> None:
    async with ObservedPool(pool_size=None, min_size=1, max_size=3) as pool:
        growing = asyncio.create_task(getattr(pool, verb)('kitty' if verb == 'spawn' else 3))
        await asyncio.sleep(0)
        assert any(member.fresh for member in pool.everybody())
        await pool.stop()
        with pytest.raises(looppool.PoolClosed):
            await growing
        with pytest.raises(looppool.PoolClosed):
            await getattr(pool, verb)('kitty' if verb == 'spawn' else 1)
    assert all(member.vacant for member in pool.everybody())


@pytest.mark.parametrize('verb', ['resize', 'warm'])
async def test_growing_goes_on_when_nobody_waits_for_it(verb: str) -> None:
    async with ObservedPool(pool_size=None, min_size=1, max_size=3, idle_ttl=None) as pool:
        growing = asyncio.create_task(getattr(pool, verb)(3))
        await asyncio.sleep(0)
        assert any(member.fresh for member in pool.members)
        growing.cancel()
        await asyncio.wait([growing])

        await until(lambda: [member.state for member in pool.members] == ['ready'] * 3)
        await pool.works()


# Workers with names


async def test_a_worker_with_a_name_gets_what_is_put_to_it_and_broadcasts(context: str) -> None:
    other = {'fork': 'spawn', 'forkserver': 'fork', 'spawn': 'forkserver'}[context]
    async with ObservedPool(context=context, pool_size=1) as pool:
        await pool.broadcast(('remember', 'before'), retain='table')
        kitty = await pool.spawn('kitty', context=other)
        assert (kitty.name, kitty.state) == ('kitty', 'ready')
        assert pool.member('kitty') is kitty and pool.named == {'kitty': kitty}
        assert kitty.number < 0 and numbers(pool) == [0]

        await kitty.put(('who', 'by its member'))
        kitty.put_nowait(('who', 'at once'))
        await pool.put(('who', 'by its name'), worker_num='kitty')
        assert await kitty.call(os.getpid) == kitty.pid
        values = await pool.take(3)
        assert values == [(kitty.number, kitty.pid, how) for how in ('by its member', 'at once', 'by its name')]

        for _ in range(4):
            pool.put_nowait(('who',))
        assert {number for number, _, _ in await pool.take(4)} == {0}
        await pool.broadcast(('remember', 'after'))
        await kitty.put(('recall',))
        assert await pool.result() == (kitty.pid, ['before', 'after'])

        statistics = pool.statistics()
        assert (statistics.size, [named.name for named in statistics.named]) == (1, ['kitty'])
        with pytest.raises(ValueError, match="there is a worker with the name 'kitty'"):
            await pool.spawn('kitty')
        with pytest.raises(ValueError, match="or the name of a worker, not 'tom'"):
            pool.put_nowait(('who',), worker_num='tom')
        with pytest.raises(ValueError, match="not 'tom'"):
            pool.member('tom')
    assert pool.statistics().done == 13
    assert kitty.state == 'stopped'


async def test_a_worker_with_a_name_is_replaced_under_it(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(context=context, pool_size=1) as pool:
        kitty = await pool.spawn('kitty')
        before = kitty.pid
        kill(before)
        await until(lambda: kitty.restarts == 1 and kitty.state == 'ready')

        await kitty.put(('who', 'again'))
        assert await pool.result() == (kitty.number, kitty.pid, 'again')
        assert kitty.pid != before


class Parrot(looppool.Worker[Any, Any]):
    def _initialise(self, word: str) -> None:
        self._word = word

    @looppool.task_done
    def _process_message(self, message: Any) -> None:
        self._put_nowait((self._word, message))


async def test_a_worker_with_a_name_may_have_a_class_and_options_of_its_own() -> None:
    async with ObservedPool(pool_size=1, options={'on_start': ('echo', 'hello')}) as pool:
        assert await pool.result() == 'hello'
        parrot = await pool.spawn('parrot', worker_class=Parrot, options={'word': 'ahoy'})
        await parrot.put(1)
        assert await pool.result() == ('ahoy', 1)
        await pool.spawn('other')
        assert await pool.result() == 'hello'


async def test_stopping_a_worker_with_a_name_ends_it_for_good(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1) as pool:
        kitty = await pool.spawn('kitty', options={'on_stop': ('echo', 'bye')})
        for number in range(10):
            kitty.put_nowait(('echo', number))
        await kitty.stop()

        assert await pool.take(11) == [*range(10), 'bye']
        assert (kitty.pid, pool.named) == (None, {})
        await kitty.stop()
        with pytest.raises(ValueError, match='worker kitty has left pool'):
            await kitty.put(('who',))
        again = await pool.spawn('kitty')
        assert again is not kitty
        await again.put(('who', 'again'))
        assert (await pool.result())[2] == 'again'


async def test_stopping_cancels_when_its_time_is_up_and_kills_a_second_later() -> None:
    async with ObservedPool(pool_size=1) as pool:
        kitty = await pool.spawn('kitty')
        await kitty.put(('hold', 'cancelled'))
        await pool.take(1)
        await kitty.stop(timeout=0.01)
        task, error = await pool.failure()
        assert task == ('hold', 'cancelled') and not isinstance(error, looppool.WorkerDied)

        tom = await pool.spawn('tom')
        for order in (('calculate',), ('who', 'never')):
            await tom.put(order)
        link = tom.link
        await until(lambda: link and link.page.taken_up == 1)
        await tom.stop(timeout=0.01)
        (_, first), (_, second) = sorted([await pool.failure(), await pool.failure()])
        assert (first.started, second.started) == (True, False)
        assert 'its time was up' in str(first)


async def test_killing_a_worker_with_a_name_fails_all_that_it_has(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1) as pool:
        kitty = await pool.spawn('kitty')
        for order in (('stop_itself',), ('who', 'never')):
            kitty.put_nowait(order)
        link, pid = kitty.link, kitty.pid
        await until(lambda: link and link.page.taken_up == 1)

        await kitty.kill()

        assert (pool.named, kitty.running) == ({}, [])
        failures = dict([await pool.failure(), await pool.failure()])
        assert failures[('stop_itself',)].started is True and failures[('stop_itself',)].name == 'kitty'
        assert str(failures[('stop_itself',)]).startswith(f'worker kitty (pid {pid}) was killed')
        assert failures[('who', 'never')].started is False
        await until(lambda: not pool._leaving)


async def test_a_numbered_worker_is_replaced_when_stopped_or_killed(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1, max_restarts=0) as pool:
        member = pool.members[0]
        first = member.pid
        await member.put(('hold', 'it'))
        await pool.take(1)
        stopping = asyncio.create_task(member.stop(timeout=None))
        await until(lambda: member.state == 'ready' and member.pid != first)
        await member.put(('who', 'new'))
        assert await pool.result() == (0, member.pid, 'new')
        assert not stopping.done()
        member.running[0].end.cancel()
        await stopping
        await pool.failure()

        second = member.pid
        await member.kill()
        await until(lambda: member.state == 'ready')
        assert len({first, second, member.pid}) == 3
        assert pool.state == 'running'


async def test_a_worker_that_nobody_waits_for_any_more_is_gone(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1) as pool:
        spawning = asyncio.create_task(pool.spawn('kitty'))
        await asyncio.sleep(0)
        assert 'kitty' in pool.named
        spawning.cancel()
        await asyncio.wait([spawning])

        assert spawning.cancelled() and not pool.named
        await until(lambda: not pool._leaving)
        assert (await pool.spawn('kitty')).state == 'ready'


async def test_a_worker_with_a_name_that_fails_to_start_is_none(logs: LogGuard) -> None:
    logs.expect('did not start')
    async with ObservedPool(pool_size=1) as pool:
        with pytest.raises(looppool.WorkerStartError, match='is ill'):
            await pool.spawn('kitty', worker_class=FailsToStart)
        assert not pool.named and pool.state == 'running'


@pytest.mark.parametrize(
    ('error', 'arguments'),
    [
        (TypeError, {'name': 7}),
        (ValueError, {'name': ''}),
        (TypeError, {'name': 'kitty', 'worker_class': int}),
        (TypeError, {'name': 'kitty', 'options': 7}),
        (ValueError, {'name': 'kitty', 'context': 'thread'}),
    ],
)
async def test_a_bad_argument_leaves_nothing(error: type[Exception], arguments: dict[str, Any]) -> None:
    async with ObservedPool(pool_size=1) as pool:
        with pytest.raises(error, match=list(arguments)[-1]):
            await pool.spawn(**arguments)
        assert not pool.named
        assert (await pool.spawn('kitty')).pid != os.getpid()
