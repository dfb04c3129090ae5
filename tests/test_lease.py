'''A worker for one user alone, for every start method.'''

import asyncio
import os
from datetime import timedelta
from typing import Any

import pytest
from conftest import LogGuard
from faults.observed import ObservedPool, kill, until

import looppool


async def test_a_leased_worker_is_its_lessee_s_alone(context: str) -> None:
    async with ObservedPool(context=context, pool_size=2) as pool:
        async with pool.reserve() as lease:
            assert (lease.number, lease.pid) == (lease.member.number, lease.member.pid)
            await lease.put(('who', 'mine'))
            lease.put_nowait(('who', 'mine too'))
            for _ in range(4):
                pool.put_nowait(('who', 'others'))
            with pytest.raises(looppool.Full):
                pool.put_nowait(('who', 'addressed'), worker_num=lease.number)
            addressed = asyncio.create_task(pool.put(('who', 'addressed'), worker_num=lease.number))
            broadcast = asyncio.create_task(pool.broadcast(('who', 'all')))
            answers = await pool.take(6)
            assert {pid for _, pid, value in answers if value == 'others'}.isdisjoint({lease.pid})
            assert {pid for _, pid, value in answers if value.startswith('mine')} == {lease.pid}
            assert not addressed.done() and not broadcast.done()
            pid = lease.pid
        await addressed
        await broadcast
        answers = await pool.take(3)
        assert (lease.number, pid, 'addressed') in answers
        assert lease.pid == pid, 'it was not recycled'
        for put in (lease.put_nowait, lease.put):
            with pytest.raises(RuntimeError, match='the lease has ended'):
                await put(('who',))  # type: ignore[func-returns-value]
        await pool.works()


async def test_a_lease_begins_when_the_worker_has_ended_what_it_had() -> None:
    async with ObservedPool(pool_size=1) as pool:
        await pool.put(('hold', 'it'))
        await pool.put(('who', 'before'))
        assert {str(value) for value in await pool.take(2)} >= {"('held', 'it')"}
        reserving = asyncio.ensure_future(pool.reserve().__aenter__())
        await until(lambda: pool.members[0].slot.lease is not None)
        waiting = asyncio.create_task(pool.put(('who', 'after')))
        await asyncio.sleep(0)
        assert not reserving.done()

        assert pool.members[0].link is not None
        pool.members[0].link.end.cancel()
        lease = await reserving
        await lease.put(('who', 'mine'))
        assert (await pool.result())[2] == 'mine'
        assert not waiting.done()
        pool.end_lease(lease.member, recycle=False)
        assert (await pool.result())[2] == 'after'
        await pool.failure()


async def test_lessees_are_served_first_come_first_served(context: str) -> None:
    order: list[int] = []

    async def lessee(number: int) -> None:
        async with pool.reserve() as lease:
            order.append(number)
            await lease.put(('who', number))
            assert (await pool.result())[2] == number

    async with ObservedPool(context=context, pool_size=1) as pool:
        await asyncio.gather(*map(lessee, range(5)))
    assert order == [0, 1, 2, 3, 4]


async def test_leaving_on_an_exception_recycles_the_worker_unless_told_not_to(context: str) -> None:
    async with ObservedPool(context=context, pool_size=1, max_restarts=0) as pool:
        pids = [pool.members[0].pid]
        for recycle in (False, True):
            with pytest.raises(LookupError):
                async with pool.reserve(recycle_on_error=recycle) as lease:
                    await lease.put(('who', recycle))
                    raise LookupError
            await pool.put(('who', 'next'))
            assert [value for _, _, value in await pool.take(2)] == [recycle, 'next']
            pids.append(pool.members[0].pid)
        assert pids[0] == pids[1] != pids[2]

        lessee = asyncio.create_task(hold(pool))
        await until(lambda: pool.members[0].slot.lease is not None)
        lessee.cancel()
        await asyncio.wait([lessee])
        await until(lambda: pool.members[0].pid not in (None, *pids) and pool.members[0].state == 'ready')
        await pool.works()
        assert pool.statistics().restarts == 0


async def hold(pool: looppool.Pool[Any, Any]) -> None:
    async with pool.reserve():
        await asyncio.Event().wait()


async def test_a_task_that_outlives_a_bad_lease_is_cancelled_in_the_end() -> None:
    async with ObservedPool(pool_size=1, stop_timeout=0.05) as pool:
        with pytest.raises(LookupError):
            async with pool.reserve() as lease:
                await lease.put(('never',))
                await until(lambda: pool.link(0).page.taken_up == 1)
                raise LookupError
        assert (await pool.failure())[0] == ('never',)
        await pool.works()


async def test_all_leased_out() -> None:
    async with ObservedPool(pool_size=2) as pool, pool.reserve(), pool.reserve():
        with pytest.raises(looppool.Full, match='has no free worker now'):
            async with pool.reserve(wait=False):
                pytest.fail('there is none')
        for timeout in (0.01, timedelta(milliseconds=10)):
            with pytest.raises(TimeoutError):
                async with pool.reserve(timeout):
                    pytest.fail('there is none')
        with pytest.raises(looppool.Full):
            pool.put_nowait(('who',))
        assert not pool._lessees and pool.statistics().waiting == 0


async def test_at_once_needs_a_worker_without_tasks() -> None:
    async with ObservedPool(pool_size=2) as pool:
        await pool.put(('hold', 'it'), worker_num=0)
        async with pool.reserve(wait=False) as lease:
            assert lease.number == 1
            with pytest.raises(looppool.Full):
                async with pool.reserve(wait=False):
                    pytest.fail('it has a task')
        await pool.put(('release', 'it'), worker_num=0)


async def test_an_elastic_pool_grows_for_a_lease(context: str) -> None:
    async with ObservedPool(context=context, pool_size=None, max_size=2) as pool:
        async with pool.reserve() as one, pool.reserve() as two:
            assert {one.number, two.number} == {0, 1}
            assert len(pool.members) == 2


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async with ObservedPool(pool_size=1) as pool:
        await pool.put(('hold', 'it'))
        waiting = [asyncio.ensure_future(pool.reserve().__aenter__()) for _ in range(3)]
        await until(lambda: len(pool._lessees) == 2)
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        assert not pool._lessees and pool.members[0].slot.lease is None
        await pool.put(('release', 'it'))
        await pool.take(2)
        await pool.works()


async def test_a_leased_worker_that_dies_is_replaced_and_stays_leased(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(context=context, pool_size=2) as pool:
        async with pool.reserve() as lease:
            first = lease.pid
            await lease.put(('hold', 'it'))
            await pool.take(1)
            kill(first)
            task, error = await pool.failure()
            assert task == ('hold', 'it') and error.started
            await lease.put(('who', 'mine'))
            assert await pool.result() == (lease.number, lease.pid, 'mine')
            assert lease.pid != first
            for _ in range(2):
                pool.put_nowait(('who', 'others'))
            assert {number for number, _, _ in await pool.take(2)} == {1 - lease.number}
        await pool.works()


async def test_a_pool_that_stops_lets_no_more_worker_out() -> None:
    async with ObservedPool(pool_size=1) as pool:
        async with pool.reserve() as lease:
            waiting = asyncio.ensure_future(pool.reserve().__aenter__())
            await until(lambda: pool._lessees)
            await lease.put(('who', 'accepted'))
            await pool.stop()
            with pytest.raises(looppool.PoolClosed):
                await waiting
            with pytest.raises(looppool.PoolClosed):
                await lease.put(('who',))
        assert (await pool.result())[2] == 'accepted'
        with pytest.raises(looppool.PoolClosed):
            async with pool.reserve():
                pytest.fail('it has stopped')


async def test_a_leased_worker_leaves_when_its_lease_has_ended() -> None:
    async with ObservedPool(pool_size=2) as pool:
        await pool.put(('hold', 'it'), worker_num=0)
        async with pool.reserve() as lease:
            assert lease.number == 1
            shrinking = asyncio.create_task(pool.resize(1))
            await until(lambda: len(pool.members) == 1)
            await lease.put(('who', 'still mine'))
            assert {value[-1] for value in await pool.take(2)} == {'it', 'still mine'}
            assert not shrinking.done()
        await shrinking
        assert lease.pid is None
        await pool.put(('release', 'it'))


async def test_a_reservation_is_good_for_one_lease() -> None:
    async with ObservedPool(pool_size=1) as pool:
        reservation = pool.reserve()
        async with reservation:
            pass
        with pytest.raises(RuntimeError, match='good for one lease'):
            await reservation.__aenter__()
        with pytest.raises(ValueError, match='timeout has to be'):
            pool.reserve(-1)


async def test_the_verbs_of_calls_go_to_the_leased_worker(context: str) -> None:
    async with ObservedPool(context=context, pool_size=2) as pool:
        async with pool.reserve() as lease:
            assert await lease.call(os.getpid) == lease.pid
            assert await pool.call(os.getpid) != lease.pid
            stranger = asyncio.create_task(lease.member.call(os.getpid))
            assert [item async for item in lease.stream(range, 3)] == [0, 1, 2]
            assert not stranger.done()
        assert await stranger == lease.pid
        with pytest.raises(RuntimeError, match='the lease has ended'):
            await lease.call(os.getpid)
