'''Streams: order, credit, both ways of ending them, and every way of leaving them early.'''

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import LogGuard
from harness import on_each_loop
from test_calls import appears, begun, breathe, die, idle

import looppool
from looppool import Pool


def numbers(count: int, path: str = '') -> Iterator[int]:
    try:
        yield from range(count)
    finally:
        if path:
            with open(path, 'w'):
                pass


async def numbers_later(count: int, path: str = '') -> AsyncIterator[int]:
    try:
        for number in range(count):
            yield number
            if number % 7 == 0:
                await asyncio.sleep(0)
    finally:
        if path:
            with open(path, 'w'):
                pass


def fails_behind(count: int) -> Iterator[int]:
    yield from range(count)
    raise ValueError('behind the last')


async def echo(stream: Any, factor: int) -> str:
    async for item in stream:
        await stream.send(item * factor)
    return 'all back'


async def pairs_up(stream: Any) -> int:
    first = await stream.receive()
    second = await stream.receive()
    stream.end()
    return int(first) + int(second)


async def raises_after_one(stream: Any) -> None:
    await stream.receive()
    raise ValueError('one was enough')


async def waits(stream: Any, path: str) -> None:
    try:
        await stream.receive()
    finally:
        with open(path, 'w'):
            pass


async def waits_in_between() -> AsyncIterator[int]:
    yield 1
    await asyncio.Event().wait()
    yield 2


async def bursts(stream: Any, count: int) -> None:
    '''Answers one item with many at once.'''
    async for _ in stream:
        for number in range(count):
            await stream.send(number)


both = pytest.mark.parametrize('generator', [numbers, numbers_later])


@on_each_loop
@both
async def test_items_come_in_order(context: str, generator: Any) -> None:
    async with Pool(pool_size=2, context=context) as pool:
        assert [item async for item in pool.stream(generator, 5000)] == list(range(5000))
        assert [item async for item in pool.stream(list, 'abc')] == ['a', 'b', 'c']
        assert [item async for item in pool.members[1].stream(generator, 0)] == []
        await idle(pool)


@both
async def test_a_slow_consumer_holds_up_the_generator(generator: Any) -> None:
    async with Pool(pool_size=1) as pool:
        stream = pool.stream(generator, 10**9)
        assert [await anext(stream) for _ in range(10)] == list(range(10))
        await pool.call(asyncio.sleep, 0.05)
        assert stream._exchange is not None and len(stream._exchange._in) <= 1024
        await stream.aclose()
        await idle(pool)


@both
async def test_leaving_early_closes_the_generator(generator: Any, tmp_path: Any) -> None:
    path = str(tmp_path / 'closed')
    async with Pool(pool_size=1) as pool:
        async for item in pool.stream(generator, 10**9, path):
            if item == 3000:
                break
        gc.collect()
        await appears(path)
        await idle(pool)
        os.unlink(path)
        async with contextlib.aclosing(pool.stream(generator, 10**9, path)) as stream:
            await anext(stream)
        assert os.path.exists(path), 'aclose waits'


async def test_an_error_comes_behind_the_last_item() -> None:
    async with Pool(pool_size=1) as pool:
        items = []
        with pytest.raises(ValueError, match='behind'):
            async for item in pool.stream(fails_behind, 2000):
                items.append(item)
        assert items == list(range(2000))
        with pytest.raises(TypeError):
            await anext(pool.stream(abs, 5))


@on_each_loop
async def test_a_stream_ends_when_its_worker_dies(context: str, logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    async with Pool(pool_size=1, context=context) as pool:
        stream = pool.stream(numbers, 10**9)
        await anext(stream)
        with pytest.raises(looppool.WorkerDied):
            await pool.call(die)
        with pytest.raises(looppool.WorkerDied):
            async for _ in stream:
                pass


async def test_cancelling_who_receives_loses_no_item() -> None:
    async def slowly() -> AsyncIterator[int]:
        for number in range(20):
            await asyncio.sleep(0.002)
            yield number

    async with Pool(pool_size=1) as pool:
        stream = pool.stream(slowly)
        items: list[int] = []
        while True:
            try:
                async with asyncio.timeout(0.003):
                    items.append(await anext(stream))
            except TimeoutError:
                continue
            except StopAsyncIteration:
                break
        assert items == list(range(20))


async def test_a_stream_that_is_wanted_by_several_starts_once() -> None:
    async with Pool(pool_size=1, max_tasks=1) as pool:
        first = asyncio.create_task(pool.call(breathe, 0.05))
        await asyncio.sleep(0)
        stream = pool.stream(range, 10)
        assert sorted(await asyncio.gather(*[anext(stream) for _ in range(5)])) == list(range(5))
        assert [item async for item in stream] == list(range(5, 10))
        await first
        assert pool.statistics().done == 2


async def test_a_stream_that_was_closed_has_ended_for_everybody() -> None:
    async with Pool(pool_size=1, max_tasks=1) as pool:
        stream = pool.stream(waits_in_between)
        await anext(stream)
        waiting = asyncio.create_task(anext(stream, 'ended'))
        await asyncio.sleep(0)
        await stream.aclose()
        assert (await waiting, await anext(stream, 'ended')) == ('ended', 'ended')

        never_begun = pool.stream(numbers, 3)
        await never_begun.aclose()
        assert await anext(never_begun, 'ended') == 'ended'

        first = asyncio.create_task(pool.call(breathe, 0.05))
        await asyncio.sleep(0)
        closed_while_it_waits = pool.stream(numbers, 10**9)
        waiting = asyncio.create_task(anext(closed_while_it_waits, 'ended'))
        await asyncio.sleep(0)
        await closed_while_it_waits.aclose()
        assert await waiting == 'ended'
        await first
        await idle(pool)


async def test_many_streams_at_once_keep_apart() -> None:
    async def one(start: int) -> None:
        items = [item async for item in pool.stream(range, start, start + 3000)]
        assert items == list(range(start, start + 3000))

    async with Pool(pool_size=2) as pool:
        await asyncio.gather(*[one(start) for start in range(20)])


# Both ways


@on_each_loop
async def test_items_go_both_ways(context: str) -> None:
    async with Pool(pool_size=1, context=context) as pool:
        async with pool.open_stream(echo, 3) as stream:
            for number in range(500):
                await stream.send(number)
            stream.end()
            assert [item async for item in stream] == [number * 3 for number in range(500)]
            assert await stream.result() == 'all back'
            with pytest.raises(looppool.StreamClosed):
                await stream.send(1)
            with pytest.raises(looppool.StreamClosed):
                await stream.receive()
        async with pool.open_stream(pairs_up) as stream:
            await stream.send(1)
            await stream.send(2)
            assert await stream.result() == 3
        await idle(pool)


async def test_items_sent_before_the_function_begins_wait_for_it() -> None:
    async with Pool(pool_size=1, concurrency=1) as pool:
        first = asyncio.create_task(pool.call(asyncio.sleep, 0.05))
        await asyncio.sleep(0)
        async with pool.open_stream(echo, 1) as stream:
            for number in range(100):
                await stream.send(number)
            assert [await stream.receive() for _ in range(100)] == list(range(100))
        await first


async def test_fifty_echoes_of_a_megabyte_do_not_block_each_other() -> None:
    async def one(number: int) -> None:
        body = b'%02d' % number * 500_000
        async with pool.open_stream(echo, 1) as stream:
            await stream.send(body)
            assert await stream.receive() == body

    async with Pool(pool_size=2) as pool:
        await asyncio.gather(*[one(number) for number in range(50)])


async def test_an_item_larger_than_the_credit_passes_alone() -> None:
    async with Pool(pool_size=1) as pool, pool.open_stream(echo, 1) as stream:
        large = bytes(20 << 20)

        async def send() -> None:
            for item in (b'small', large, b'small', large):
                await stream.send(item)
            stream.end()

        sending = asyncio.create_task(send())
        assert [len(item) async for item in stream] == [5, len(large), 5, len(large)]
        await sending


async def test_the_function_s_error_is_told_where_items_are_received_and_at_the_end() -> None:
    async with Pool(pool_size=1) as pool:
        with pytest.raises(ValueError, match='one was enough'):
            async with pool.open_stream(raises_after_one) as stream:
                await stream.send(1)
                await stream.receive()
        with pytest.raises(ValueError, match='one was enough'):
            async with pool.open_stream(raises_after_one) as stream:
                await stream.send(1)
        with pytest.raises(TypeError, match='coroutine function'):
            async with pool.open_stream(repr):
                pass
        await idle(pool)


async def test_leaving_first_lets_the_function_end() -> None:
    async with Pool(pool_size=1) as pool:
        async with pool.open_stream(echo, 1) as stream:
            for number in range(2000):
                await stream.send(number) if number < 1000 else None
        assert await stream.result() == 'all back'


async def test_leaving_by_an_exception_cancels_the_function(tmp_path: Any) -> None:
    path = str(tmp_path / 'left')
    async with Pool(pool_size=1) as pool:
        with pytest.raises(KeyError):
            async with pool.open_stream(waits, path):
                await pool.call(abs, 1)
                raise KeyError
        await appears(path)
        await idle(pool)


async def test_a_worker_s_death_ends_both_ways(logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    async with Pool(pool_size=1) as pool:
        with pytest.raises(looppool.WorkerDied):
            async with pool.open_stream(echo, 1) as stream:
                await stream.send(1)
                await stream.receive()
                pid = pool.members[0].pid
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await stream.receive()
        await idle(pool)


async def test_items_that_come_together_go_to_all_who_wait_for_one() -> None:
    async with Pool(pool_size=1) as pool, pool.open_stream(bursts, 3) as stream:
        receivers = [asyncio.create_task(stream.receive()) for _ in range(3)]
        await asyncio.sleep(0)
        await stream.send('now')
        assert sorted(await asyncio.gather(*receivers)) == [0, 1, 2]


async def test_who_waits_is_told_when_a_stream_is_left_by_an_exception() -> None:
    async with Pool(pool_size=1) as pool:
        with pytest.raises(KeyError):
            async with pool.open_stream(echo, 1) as stream:
                waiting = [asyncio.create_task(stream.receive()), asyncio.create_task(stream.result())]
                await asyncio.sleep(0)
                raise KeyError
        for one in waiting:
            with pytest.raises(looppool.StreamClosed):
                await one
        for verb in (stream.receive, stream.result, lambda: stream.send(1)):
            with pytest.raises(looppool.StreamClosed):
                await verb()
        with pytest.raises(RuntimeError, match='good for one call'):
            await stream.__aenter__()
        await idle(pool)


async def test_what_was_sent_to_a_function_that_had_not_begun_is_sent_to_the_replacement(logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    async with Pool(pool_size=1, concurrency=1) as pool:
        first = asyncio.create_task(pool.call(breathe, 60))
        await begun(pool)
        async with pool.open_stream(echo, 1) as stream:
            for number in range(10):
                await stream.send(number)
            pid = pool.members[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(looppool.WorkerDied):
                await first
            await stream.send(10)
            stream.end()
            assert [item async for item in stream] == list(range(11))
            assert await stream.result() == 'all back'


async def test_sending_waits_for_a_worker_that_is_not_ready(logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    async with Pool(pool_size=1) as pool:
        pid = pool.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while pool.members[0].state == 'ready':
            await asyncio.sleep(0.001)
        async with pool.members[0].open_stream(echo, 1) as stream:
            await asyncio.gather(*[stream.send(number) for number in range(3)])
            assert [await stream.receive() for _ in range(3)] == [0, 1, 2]
        async with pool.members[0].open_stream(echo, 1) as stream:
            stream.end()
            assert [item async for item in stream] == []
