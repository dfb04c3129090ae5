'''What a pool tells of what happens to it.'''

import asyncio
import dataclasses
import gc

import pytest
from conftest import LogGuard
from faults.observed import ObservedPool, kill

import looppool
from looppool.events import KINDS, Feed


async def test_every_iterator_gets_every_event(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    pool = ObservedPool(context=context, pool_size=1)
    events, others = pool.events(), pool.events()
    async with pool:
        first = pool.members[0].pid
        kill(first)
        await pool.replaced()
        second = pool.members[0].pid
        await pool.members[0].stop()
        await pool.resize(2)
        kitty = await pool.spawn('kitty')
        await kitty.stop()
    seen = [event async for event in events]

    assert [event.kind for event in seen if event.number == 0] == [
        'started', 'ready', 'died', 'restarted', 'started', 'ready', 'recycled', 'started', 'ready',
    ]  # fmt: skip
    died = next(event for event in seen if event.kind == 'died')
    assert died.pid == first and isinstance(died.cause, looppool.WorkerDied) and died.cause.signal == 'SIGKILL'
    assert next(event for event in seen if event.kind == 'recycled').pid == second
    assert [event.size for event in seen if event.kind == 'resized'] == [2]
    assert [event.kind for event in seen if event.name == 'kitty'] == ['started', 'ready', 'stopped']
    assert (seen[-1].kind, seen[-1].number, seen[-1].cause, seen[-1].size) == ('stopped', None, None, 2)
    assert {event.kind for event in seen} == set(KINDS)
    assert [event.time for event in seen] == sorted(event.time for event in seen)
    assert [event async for event in others] == seen
    assert [event async for event in pool.events()] == [], 'it has ended'
    with pytest.raises(dataclasses.FrozenInstanceError):
        died.kind = 'born'  # type: ignore[misc]


async def test_the_end_of_a_broken_pool_tells_why(logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL|is broken')
    pool = ObservedPool(pool_size=1, max_restarts=0)
    await pool.start()
    events = pool.events()
    kill(pool.members[0].pid)

    seen = [event async for event in events]

    assert [event.kind for event in seen] == ['died', 'stopped']
    assert isinstance(seen[-1].cause, looppool.PoolBroken)


async def test_one_that_is_slow_loses_the_oldest_and_is_told_how_many() -> None:
    feed = Feed()
    slow, quick = feed.listen(2), feed.listen(5)
    for size in range(5):
        feed.put('resized', size=size)

    first = await anext(slow)
    assert (first.size, first.missed) == (3, 3)
    assert (await anext(slow)).missed == 0
    assert [(await anext(quick)).size for _ in range(5)] == [0, 1, 2, 3, 4]
    feed.end()
    with pytest.raises(StopAsyncIteration):
        await anext(slow)


async def test_who_waits_is_woken_and_may_give_up() -> None:
    feed = Feed()
    events = feed.listen(1)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    feed.put('ready', number=1)
    assert (await waiting).number == 1


async def test_an_iterator_that_nobody_has_any_more_costs_nothing() -> None:
    feed = Feed()
    feed.listen(1)
    gc.collect()
    assert not feed._listeners


@pytest.mark.parametrize('limit', [0, -1, True, 1.5, None])
def test_a_limit_is_a_positive_whole_number(limit: int) -> None:
    with pytest.raises(ValueError, match='limit has to be'):
        Feed().listen(limit)
