'''`map`: order, chunks, look-ahead, errors that name their item, and leaving it early.'''

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import LogGuard
from test_calls import _interrupted, breathe, die, doubled, idle, spin

import looppool
from looppool import Pool


def squared(value: int) -> int:
    return value * value


def fails_at_700(value: int) -> int:
    if value == 700:
        raise ValueError('not this one')
    return value


class Bar:
    def __init__(self) -> None:
        self.count = 0

    def update(self, count: int) -> None:
        self.count += count


async def later(count: int) -> AsyncIterator[int]:
    for number in range(count):
        if number % 10 == 0:
            await asyncio.sleep(0)
        yield number


@pytest.mark.parametrize('chunksize', [None, 1, 7, 1000])
async def test_values_come_in_order(chunksize: int | None) -> None:
    bar = Bar()
    async with Pool(pool_size=2) as pool:
        values = [value async for value in pool.map(squared, range(1000), chunksize=chunksize, progress=bar)]
        assert values == [number * number for number in range(1000)]
        assert bar.count == 1000
        assert [value async for value in pool.map(squared, [])] == []
        assert [value async for value in pool.members[1].map(squared, range(5))] == [0, 1, 4, 9, 16]
        await idle(pool)


async def test_contexts_coroutines_lambdas_and_async_items(context: str) -> None:
    async with Pool(pool_size=2, context=context) as pool:
        assert [value async for value in pool.map(doubled, later(100))] == [2 * number for number in range(100)]
        assert [value async for value in pool.map(lambda value: value + 1, range(10), chunksize=3)] == [*range(1, 11)]


async def test_unordered_values_all_come_once() -> None:
    async def sleeps(value: int) -> int:
        await asyncio.sleep(0.02 if value == 0 else 0)
        return value

    async with Pool(pool_size=2) as pool:
        values = [value async for value in pool.map(sleeps, range(200), ordered=False, chunksize=1)]
    assert sorted(values) == list(range(200)) and values[0] != 0


async def test_items_are_read_only_as_far_ahead_as_is_needed() -> None:
    read = 0

    def items() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    async with Pool(pool_size=2) as pool:
        async with contextlib.aclosing(pool.map(squared, items(), chunksize=10)) as values:
            assert await anext(values) == 1
            assert read <= 10 * 2 * 4
        await idle(pool)


async def test_an_error_names_its_item_and_ends_it() -> None:
    async with Pool(pool_size=2) as pool:
        with pytest.raises(ValueError, match='not this one') as caught:
            async for _ in pool.map(fails_at_700, range(10**9), chunksize=50):
                pass
        assert 'map: item 700, 700' in caught.value.__notes__
        await idle(pool)
        with pytest.raises(ValueError, match='chunksize'):
            pool.map(squared, [], chunksize=0)
        with pytest.raises(TypeError):
            async for _ in pool.map(squared, 5):  # type: ignore[arg-type]
                pass


async def test_cancelling_it_cancels_what_is_under_way() -> None:
    async with Pool(pool_size=2) as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async for _ in pool.map(asyncio.sleep, [60] * 100, chunksize=1):
                    pass
        await idle(pool)
        assert pool.statistics().restarts == 0


async def test_cancelling_it_before_its_first_call_is_made_leaves_nothing() -> None:
    async with Pool(pool_size=2) as pool:
        mapping = asyncio.ensure_future(anext(pool.map(squared, range(100), chunksize=1)))
        await asyncio.sleep(0)
        mapping.cancel()
        await asyncio.wait([mapping])
        gc.collect()
        await idle(pool)


async def test_what_is_about_to_stand_in_line_when_its_worker_leaves_is_refused() -> None:
    async with Pool(pool_size=2, max_tasks=2) as pool:
        first, second = (pool.members[1]._begin(squared, number) for number in range(2))
        pool._shrink_to(1)
        with pytest.raises(ValueError, match='has left pool'):
            await second.answer
        assert await first.answer == 0
        await idle(pool)


async def test_what_is_about_to_stand_in_line_when_the_pool_ends_is_refused() -> None:
    pool: Pool[Any, Any] = Pool(pool_size=1, max_tasks=1)
    await pool.start()
    calls = [pool._begin(asyncio.sleep, 60) for _ in range(2)]
    await pool.kill()
    for call in calls:
        with pytest.raises(looppool.PoolClosed):
            await call.answer


async def test_a_death_ends_it(logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    async with Pool(pool_size=1) as pool:
        with pytest.raises(looppool.WorkerDied):
            async for _ in pool.map(lambda _: die(), range(3)):
                pass
        await idle(pool)


async def test_values_come_as_credit_allows() -> None:
    async with Pool(pool_size=2, max_tasks=2) as pool:
        for ordered in (True, False):
            values = [value async for value in pool.map(squared, range(100), ordered=ordered, chunksize=3)]
            assert sorted(values) == [number * number for number in range(100)]
        await idle(pool)


async def test_leaving_it_leaves_the_line_for_credit() -> None:
    async with Pool(pool_size=1, max_tasks=1) as pool:
        values = pool.map(asyncio.sleep, [60] * 10, chunksize=1)
        first = asyncio.create_task(anext(values))
        while pool.statistics().waiting < 3:
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await idle(pool)
        assert pool.statistics().waiting == 0


async def test_what_can_not_be_pickled_fails_behind_the_values_before_it() -> None:
    values, unpicklable = [], threading.Lock()
    async with Pool(pool_size=2) as pool:
        with pytest.raises(TypeError, match='pickle'):
            async for value in pool.map(repr, [1, 2, unpicklable, 3], chunksize=2):
                values.append(value)
        assert values == ['1', '2']
        await idle(pool)


async def test_a_function_that_raises_stop_iteration_ends_no_chunk_early() -> None:
    async with Pool(pool_size=1) as pool:
        with pytest.raises(RuntimeError, match='raised StopIteration') as caught:
            async for _ in pool.map(next, [iter([1]), iter([])], chunksize=2):
                pass
        assert any('map: item 1' in note for note in caught.value.__notes__)


async def test_a_chunk_that_blocks_its_loop_is_interrupted() -> None:
    async with Pool(pool_size=1, cancel_grace=0.5) as pool:
        neighbour = asyncio.create_task(pool.call(breathe, 0.3))
        await asyncio.sleep(0)
        first = asyncio.create_task(anext(pool.map(spin, [60, 60], chunksize=1)))
        await _interrupted(pool, first, neighbour)


async def test_a_pool_that_ends_ends_it() -> None:
    pool = Pool(pool_size=1)
    await pool.start()
    values = pool.map(squared, later(10**9), chunksize=1)
    assert await anext(values) == 0
    await pool.stop()
    with pytest.raises(looppool.PoolClosed):
        async for _ in values:
            pass
