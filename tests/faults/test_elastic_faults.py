'''Workers come and go while they are killed, and whoever asked for it gives up: nothing is lost, nothing is left.'''

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import LogGuard
from workers import Casualty

import looppool

from .observed import ObservedPool, kill, until


async def reserve(pool: ObservedPool) -> None:
    async with pool.reserve() as lease:
        await lease.put(('nothing',))
        await asyncio.Event().wait()


VERBS: dict[str, Callable[[ObservedPool], Awaitable[Any]]] = {
    'grow': lambda pool: pool.resize(3),
    'shrink': lambda pool: pool.resize(1),
    'warm': lambda pool: pool.warm(3),
    'spawn': lambda pool: pool.spawn('kitty'),
    'reserve': reserve,
    'stop a worker': lambda pool: pool.members[1].stop(),
    'kill a worker': lambda pool: pool.members[1].kill(),
}


async def settled(pool: ObservedPool) -> None:
    '''Nothing is on its way, and all that is left works.'''
    await until(lambda: not pool._leaving and all(member.state == 'ready' for member in pool.everybody()))
    await until(lambda: all(len(member.running) == 1 for member in pool.everybody()))
    assert not pool._lessees and all(slot.lease is None for slot in pool._roster.everyone)
    assert pool.statistics().waiting == 0
    assert [member.number for member in pool.members] == list(range(len(pool.members)))
    await pool.works()


@pytest.mark.parametrize('verb', VERBS)
async def test_cancelled_at_any_time_it_leaves_the_pool_sound(verb: str) -> None:
    for turns in (0, 1, 2, 3, 5, 20, 200):
        async with ObservedPool(pool_size=None, min_size=2, max_size=3, idle_ttl=None, context='fork') as pool:
            for _ in range(6):
                await pool.put(('nothing',))
            asked = asyncio.ensure_future(VERBS[verb](pool))
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])

            await settled(pool)
            await pool.resize(2)
            await settled(pool)
        assert pool.failed.empty()


@pytest.mark.parametrize('seed', [0, *[pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2, 3)]])
async def test_whatever_happens_every_task_ends_once(seed: int, context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    chance = random.Random(seed)
    pool = ObservedPool(
        context=context, pool_size=None, min_size=1, max_size=3, idle_ttl=0.05, concurrency=2, max_tasks=30,
        max_tasks_per_worker=20, recycle_jitter=0.5, max_restarts=1000,
    )  # fmt: skip
    async with pool:
        work = [asyncio.create_task(put_some(pool, start, chance)) for start in range(0, 300, 100)]
        havoc = [asyncio.create_task(wreak(pool, chance)) for _ in range(2)]
        await asyncio.gather(*work)
        for one in havoc:
            one.cancel()
        await asyncio.wait(havoc)
        await until(lambda: pool.statistics().in_flight == 0)
    ended = [value for _, _, value in (pool.arrived.get_nowait() for _ in range(pool.arrived.qsize()))]
    failed = [pool.failed.get_nowait() for _ in range(pool.failed.qsize())]

    assert all(isinstance(error, looppool.WorkerDied) for _, error in failed)
    # A task that has put its result and then died with its worker has both.
    assert {*ended, *(task[1] for task, _ in failed)} == set(range(300))
    assert len(ended) == len(set(ended)) and len(failed) == len({task for task, _ in failed})
    statistics = pool.statistics()
    assert (statistics.done + statistics.failed, statistics.in_flight, statistics.waiting) == (300, 0, 0)


async def put_some(pool: ObservedPool, start: int, chance: random.Random) -> None:
    for value in range(start, start + 100):
        if chance.random() < 0.05:
            async with pool.reserve() as lease:
                await lease.put(('who', value))
        else:
            await pool.put(('who', value))


async def wreak(pool: ObservedPool, chance: random.Random) -> None:
    while True:
        member = chance.choice(pool.members)
        deed = chance.choice(['kill', 'stop', 'warm', 'reserve'])
        with contextlib.suppress(TimeoutError, looppool.WorkerStartError):
            async with asyncio.timeout(chance.random() * 0.1):
                if deed == 'kill' and member.state == 'ready':
                    kill(member.pid)
                elif deed == 'stop':
                    await member.stop(None)
                elif deed == 'warm':
                    await pool.warm(chance.randint(1, 3))
                elif deed == 'reserve':
                    async with pool.reserve():
                        await asyncio.Event().wait()
                await asyncio.Event().wait()


@pytest.mark.parametrize('end', [lambda member: member.kill(), lambda member: member.stop(0.01)], ids=['kill', 'stop'])
async def test_what_waits_for_a_replacement_that_will_not_come_is_told(end: Any, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(pool_size=1, restart_delay=60.0, max_restart_delay=60.0) as pool:
        kitty = await pool.spawn('kitty')
        # The first replacement comes at once, the second one not before the end of the test.
        kill(kitty.pid)
        await until(lambda: kitty.restarts == 1 and kitty.state == 'ready')
        kill(kitty.pid)
        await until(lambda: kitty.state == 'restarting')
        call = asyncio.create_task(kitty.call(abs, -1))
        put = asyncio.create_task(kitty.put(('echo', 1)))
        await until(lambda: len(kitty.slot.backlog) == 2)
        await end(kitty)
        with pytest.raises(looppool.WorkerDied, match='has no process') as caught:
            await call
        assert caught.value.started is False and caught.value.name == 'kitty'
        await put
        task, error = await pool.failure()
        assert (task, error.started) == (('echo', 1), False)
        await settled(pool)


async def test_a_reservation_does_not_wait_for_a_worker_that_failed_to_start(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL|did not start')
    async with ObservedPool(
        context=context, pool_size=None, min_size=1, max_size=2, idle_ttl=None, restart_delay=60.0,
        max_restart_delay=60.0, options={'on_start': ('wait_if_later', )}, worker_class=SlowLater,
    ) as pool:  # fmt: skip
        async with pool.reserve() as first:
            waiting = asyncio.ensure_future(pool.reserve().__aenter__())
            await until(lambda: len(pool.members) == 2 and pool.members[1].pid is not None)
            # Who waits for a lease looks again when something has ended.
            await first.call(abs, -1)
            await until(lambda: pool.members[1].slot.lease is not None)
            kill(pool.members[1].pid)
            await until(lambda: len(pool.members) == 1)
            assert not waiting.done() and first.number == 0
        second = await waiting
        assert second.number == 0
        assert await second.call(abs, -1) == 1
        pool.end_lease(second.member, recycle=False)
        await settled(pool)


class SlowLater(Casualty):
    '''Only the first one becomes ready.'''

    async def wait_if_later(self) -> None:
        if self._number:
            await self.never()


async def test_a_leased_worker_that_leaves_and_dies_is_replaced_until_its_lease_ends(logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(pool_size=2) as pool:
        await pool.put(('hold', 'it'), worker_num=0)
        assert await pool.result() == ('held', 'it')
        async with pool.reserve() as lease:
            assert lease.number == 1
            shrinking = asyncio.create_task(pool.resize(1))
            await until(lambda: len(pool.members) == 1)
            kill(lease.pid)
            await until(lambda: lease.member.state != 'ready')
            assert await lease.call(abs, -1) == 1
        await shrinking
        await pool.put(('release', 'it'))
        assert await pool.result() == ('released', 'it')
        await settled(pool)
