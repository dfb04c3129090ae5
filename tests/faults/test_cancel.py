'''Cancelling `put`, `broadcast`, `results`, `join`, `stop` and a worker's `_put` at each await: nothing is lost.

There are two moments to cancel: while the thing is waited for, and when it has come, but the waiting task has not yet
run on. In the second one lesser queues lose a permit or an item.
'''

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from harness import on_each_loop
from workers import Casualty

import looppool

from .observed import ObservedPool, until


class CancellingPool(ObservedPool):
    '''Cancels `victim` in the very callback that frees the permits of the last of `strikes` tasks.'''

    victim: asyncio.Task[Any] | None = None
    strikes = 0

    def tasks_ended(self, *args: Any) -> None:
        super().tasks_ended(*args)
        if self.victim:
            self.strikes -= 1
            if not self.strikes:
                self.victim.cancel()


async def full_pool(context: str, folder: Path) -> CancellingPool:
    '''A pool of which each worker is full with one task, which ends when the file of its number is there.'''
    pool = CancellingPool(context=context, max_tasks=2)
    await pool.start()
    for number in range(2):
        pool.put_nowait(('hold_until', str(folder / str(number))), worker_num=number)
    await pool.take(2)
    return pool


Verb = Callable[[ObservedPool], Coroutine[Any, Any, None]]
VERBS: dict[str, Verb] = {
    'put': lambda pool: pool.put(('remember', 'cancelled')),
    'put to a worker': lambda pool: pool.put(('remember', 'cancelled'), worker_num=0),
    'broadcast': lambda pool: pool.broadcast(('remember', 'cancelled')),
    'retained broadcast': lambda pool: pool.broadcast(('remember', 'cancelled'), retain='key'),
}
BROADCASTS = {name: verb for name, verb in VERBS.items() if 'broadcast' in name}


async def assert_cancelled(pool: CancellingPool, task: asyncio.Task[None]) -> None:
    '''The task was cancelled, it has put nothing, and all permits are there.'''
    await asyncio.wait([task])
    assert task.cancelled()
    await pool.take(2)
    await until(lambda: pool.statistics().in_flight == 0)
    statistics = pool.statistics()
    assert (statistics.waiting, statistics.credits, statistics.bytes) == (0, 2, 0)
    await pool.broadcast(('recall',))
    assert [seen for _, seen in await pool.take(2)] == [[], []]
    assert not pool._roster.retained
    await pool.works()
    await pool.stop()


@pytest.mark.parametrize('verb', VERBS.values(), ids=VERBS.keys())
async def test_cancelled_while_waiting_for_credit(context: str, verb: Verb, tmp_path: Path) -> None:
    pool = await full_pool(context, tmp_path)
    task = asyncio.create_task(verb(pool))
    await until(lambda: pool.statistics().waiting == 1)
    task.cancel()
    await asyncio.wait([task])
    assert pool.statistics().waiting == 0
    for number in range(2):
        (tmp_path / str(number)).touch()
    await assert_cancelled(pool, task)


@pytest.mark.parametrize('verb', VERBS.values(), ids=VERBS.keys())
async def test_cancelled_as_the_credit_comes(context: str, verb: Verb, tmp_path: Path) -> None:
    pool = await full_pool(context, tmp_path)
    pool.victim, pool.strikes = asyncio.create_task(verb(pool)), 1
    await until(lambda: pool.statistics().waiting == 1)
    (tmp_path / '0').touch()
    await asyncio.wait([pool.victim])
    (tmp_path / '1').touch()
    await assert_cancelled(pool, pool.victim)


@pytest.mark.parametrize('verb', BROADCASTS.values(), ids=BROADCASTS.keys())
async def test_broadcast_cancelled_while_it_holds_one_credit_and_waits_for_the_other(
    context: str, verb: Verb, tmp_path: Path
) -> None:
    pool = await full_pool(context, tmp_path)
    task = asyncio.create_task(verb(pool))
    (tmp_path / '0').touch()
    await until(lambda: pool.statistics().done == 1)
    await until(lambda: pool.members[1].slot.waiters)
    assert pool.statistics().in_flight == 2  # One task, and one permit in the hands of the broadcast.
    task.cancel()
    await asyncio.wait([task])
    (tmp_path / '1').touch()
    await assert_cancelled(pool, task)


@pytest.mark.parametrize('verb', BROADCASTS.values(), ids=BROADCASTS.keys())
async def test_broadcast_cancelled_as_its_last_credit_comes(context: str, verb: Verb, tmp_path: Path) -> None:
    pool = await full_pool(context, tmp_path)
    pool.victim, pool.strikes = asyncio.create_task(verb(pool)), 2
    (tmp_path / '0').touch()
    await until(lambda: pool.members[1].slot.waiters)
    (tmp_path / '1').touch()
    await assert_cancelled(pool, pool.victim)


async def test_cancelled_waiter_lets_the_next_one_pass(context: str, tmp_path: Path) -> None:
    pool = await full_pool(context, tmp_path)
    pool.victim, pool.strikes = asyncio.create_task(pool.put(('remember', 'cancelled'), worker_num=0)), 1
    await until(lambda: pool.statistics().waiting == 1)
    following = asyncio.create_task(pool.put(('echo', 'next'), worker_num=0))
    await until(lambda: pool.statistics().waiting == 2)
    (tmp_path / '0').touch()
    await following
    (tmp_path / '1').touch()
    assert sorted(map(str, await pool.take(3))) == ['next', 'until', 'until']
    assert pool.victim.cancelled()
    await pool.stop()


class CancellingIterator(looppool.Pool[Any, Any]):
    '''Cancels `victim` in the callback that brings a result.'''

    victim: asyncio.Task[Any] | None = None

    def process_message(self, result: Any, result_done: Callable[[], None]) -> None:
        self._keep_result(result, result_done)
        if self.victim:
            self.victim.cancel()


async def test_results_cancelled_while_waiting(context: str) -> None:
    async with looppool.Pool[Any, Any](pool_size=1, worker_class=Casualty, context=context) as pool:
        waiting = asyncio.ensure_future(anext(pool.results()))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await pool.put(('echo', 'kept'))
        assert await anext(pool.results()) == 'kept'


async def test_results_cancelled_as_one_comes(context: str) -> None:
    async with CancellingIterator(pool_size=1, worker_class=Casualty, context=context, max_results=1) as pool:
        pool.victim = asyncio.ensure_future(anext(pool.results()))
        await pool.put(('echo', 'kept'))
        await asyncio.wait([pool.victim])
        assert pool.victim.cancelled()
        pool.victim = None
        assert await anext(pool.results()) == 'kept'
        await pool.put(('echo', 'next'))  # Its credit has come back, too.
        assert await anext(pool.results()) == 'next'


async def test_put_of_a_worker_cancelled_while_waiting(context: str) -> None:
    async with looppool.Pool[Any, Any](pool_size=1, worker_class=Casualty, context=context, max_results=1) as pool:
        await pool.put(('cancel_a_put',))
        await pool.put(('echo', 'fourth'))
        results = pool.results()
        assert [await anext(results) for _ in range(3)] == ['first', 'third', 'fourth']


async def test_put_of_a_worker_cancelled_as_its_credit_comes(context: str) -> None:
    async with looppool.Pool[Any, Any](pool_size=1, worker_class=Casualty, context=context, max_results=1) as pool:
        await pool.put(('cancel_a_put_with_its_credit',))
        await pool.put(('echo', 'fourth'))
        results = pool.results()
        assert [await anext(results) for _ in range(3)] == ['first', 'third', 'fourth']


@on_each_loop
async def test_cancelled_stop_kills(context: str) -> None:
    pool = ObservedPool(context=context)
    await pool.start()
    await pool.put(('hold', 'for ever'))
    await pool.result()
    stopping = asyncio.create_task(pool.stop(timeout=None))
    await until(lambda: pool.state == 'stopping')
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    assert await pool.join() is None
    task, error = await pool.failure()
    assert task == ('hold', 'for ever')
    assert isinstance(error, looppool.PoolClosed)
    assert error.started is True
    assert [member.state for member in pool.members] == ['stopped'] * 2


async def test_cancelled_join_does_nothing(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        joining = asyncio.create_task(pool.join())
        await asyncio.sleep(0)
        joining.cancel()
        await asyncio.wait([joining])
        await pool.works()


async def test_timeout_around_a_put(context: str, tmp_path: Path) -> None:
    pool = await full_pool(context, tmp_path)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await pool.put(('remember', 'cancelled'))
    assert pool.statistics().waiting == 0
    await pool.kill()
