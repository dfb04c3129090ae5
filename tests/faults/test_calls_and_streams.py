'''What befalls calls, streams, maps and leases: each ends once, with its value or a defined error, no permit lost.'''

import asyncio
import contextlib
import os
import pickle
import signal
import struct
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import psutil
import pytest
from conftest import LogGuard
from workers import Casualty, FailsToLoad, nested_list

import looppool
from looppool.frames import pack_header
from looppool.kinds import Kind

from .observed import ObservedPool, until

HERE: list[Casualty] = []
SIZE = 200_000
'''Bytes of an item of which many pass.'''
FLAT = 40 << 20
'''Bytes that a process may grow: the credit of a stream (16 MiB) on either side, but few of the 400 MB that pass.'''


class Findable(Casualty):
    '''Functions that run in its process find it.'''

    def _initialise(self) -> None:
        super()._initialise()
        HERE.append(self)


def write(data: bytes) -> None:
    HERE[0].write(data)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError('it lives')


def yields_and_dies_in_an_item(count: int) -> Iterator[int]:
    yield from range(count)
    HERE[0]._main._channel.flush()
    write(pack_header(1_000_000, Kind.ITEM, 1) + bytes(500_000))
    die()


async def for_ever(*_ignored: Any) -> None:
    await asyncio.Event().wait()


async def numbers() -> AsyncIterator[int]:
    number = 0
    while True:
        yield number
        number += 1
        await asyncio.sleep(0)


async def echo(stream: Any) -> None:
    async for item in stream:
        await stream.send(item)


async def first_of(items: Any) -> Any:
    async with contextlib.aclosing(items):
        async for item in items:
            return item


async def drained(items: Any) -> None:
    async for _ in items:
        pass


async def exchange(target: Any, function: Callable[..., Any] = echo) -> None:
    async with target.open_stream(function) as stream:
        await stream.send(1)
        await stream.receive()


async def reserve(pool: ObservedPool) -> None:
    async with pool.reserve() as lease:
        await lease.call(abs, -1)


Verb = Callable[[ObservedPool], Awaitable[Any]]
VERBS: dict[str, Verb] = {
    'call': lambda pool: pool.call(abs, -1),
    'call of a worker': lambda pool: pool.members[1].call(abs, -1),
    'call_all': lambda pool: pool.call_all(abs, -1),
    'stream': lambda pool: first_of(pool.stream(numbers)),
    'open_stream': exchange,
    'map': lambda pool: first_of(pool.map(abs, range(100), chunksize=1)),
    'reserve': reserve,
}
verbs = pytest.mark.parametrize('verb', VERBS.values(), ids=VERBS.keys())
ENDLESS: dict[str, Verb] = {
    'call': lambda pool: pool.call(for_ever),
    'call of a worker': lambda pool: pool.members[1].call(for_ever),
    'stream': lambda pool: drained(pool.stream(numbers)),
    'open_stream': lambda pool: exchange(pool, for_ever),
    'map': lambda pool: drained(pool.map(for_ever, range(10), chunksize=1)),
}


async def sound(pool: ObservedPool) -> None:
    '''Every permit is back, nobody waits, and all workers work.'''
    await until(lambda: pool.statistics().in_flight == 0)
    statistics = pool.statistics()
    assert (statistics.waiting, statistics.bytes, statistics.results_pending) == (0, 0, 0)
    assert statistics.credits == pool.settings.task_window * len(pool.members)
    assert not pool._lessees
    await pool.works()


# 3: death in the middle of an item


async def test_partial_item_is_dropped(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(context=context, worker_class=Findable) as pool:
        seen = []
        with pytest.raises(looppool.WorkerDied) as caught:
            async for item in pool.members[0].stream(yields_and_dies_in_an_item, 100):
                seen.append(item)
        assert seen == list(range(100))
        assert (caught.value.signal, caught.value.started) == ('SIGKILL', True)
        await pool.replaced()
        await sound(pool)


# 7: exit


def exits_behind_one() -> Iterator[int]:
    yield 1
    sys.exit(3)


async def exits(stream: Any) -> None:
    await stream.receive()
    sys.exit(3)


async def test_exit_is_the_error_of_the_stream(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        with pytest.raises(SystemExit):
            await drained(pool.stream(exits_behind_one))
        with pytest.raises(SystemExit):
            await exchange(pool, exits)
        await sound(pool)
        assert pool.statistics().restarts == 0


# 10, 11, 12: what can't be pickled or loaded


MAKERS: dict[str, Callable[[], Any]] = {'a lock': threading.Lock, 'too deep': lambda: nested_list(100_000)}
REFUSED = (TypeError, RecursionError, pickle.PicklingError)


def yields_made(kind: str) -> Iterator[Any]:
    yield 'good'
    yield MAKERS[kind]()


def made(kind: str) -> Any:
    return MAKERS[kind]()


async def sends_made(stream: Any, kind: str) -> None:
    await stream.receive()
    await stream.send(MAKERS[kind]())


@pytest.mark.parametrize('kind', MAKERS)
async def test_what_can_not_be_pickled_is_its_sender_s_error(kind: str) -> None:
    async with ObservedPool(max_tasks=2) as pool:
        bad = MAKERS[kind]()
        for verb in (pool.call, pool.members[0].call):
            with pytest.raises(REFUSED):
                await verb(print, bad)
        for ask in (pool.stream(print, bad), pool.map(print, [bad])):
            with pytest.raises(REFUSED):
                await first_of(ask)
        with pytest.raises(REFUSED):
            async with pool.open_stream(echo, bad):
                pytest.fail('it was accepted')
        with pytest.raises(REFUSED):
            await pool.call(made, kind)
        with pytest.raises(REFUSED):
            await drained(pool.stream(yields_made, kind))
        with pytest.raises(REFUSED):
            async with pool.open_stream(sends_made, kind) as stream:
                await stream.send(1)
                await stream.receive()
        async with pool.open_stream(echo) as stream:
            with pytest.raises(REFUSED):
                await stream.send(bad)
            await stream.send('good')
            assert await stream.receive() == 'good'
        await sound(pool)


async def test_what_can_not_be_loaded_is_its_receiver_s_error() -> None:
    async with ObservedPool(max_tasks=2) as pool:
        with pytest.raises(ValueError, match='not a number'):
            await pool.call(print, FailsToLoad())
        with pytest.raises(ValueError, match='not a number'):
            await pool.call(FailsToLoad)
        async with pool.open_stream(yields_unloadable) as stream:
            with pytest.raises(ValueError, match='not a number'):
                await stream.receive()
            assert await stream.receive() == 'good'
        await sound(pool)


async def yields_unloadable(stream: Any) -> None:
    await stream.send(FailsToLoad())
    await stream.send('good')


# 18: a slow consumer


def blobs(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(SIZE)


async def count_blobs(stream: Any) -> int:
    count = 0
    async for _ in stream:
        count += 1
        if count % 100 == 0:
            await asyncio.sleep(0.001)
    return count


def memory(pool: ObservedPool) -> tuple[int, ...]:
    return tuple(psutil.Process(pid).memory_info().rss for pid in [None, *(member.pid for member in pool.members)])


@pytest.mark.parametrize('way', ['from the worker', 'to the worker'])
async def test_memory_stays_flat_with_a_slow_consumer(way: str) -> None:
    sizes = []
    async with ObservedPool(pool_size=1) as pool:
        if way == 'from the worker':
            count = 0
            async for _ in pool.stream(blobs, 2000):
                count += 1
                if count % 100 == 0:
                    await pool.call(asyncio.sleep, 0.001)
                    sizes.append(memory(pool))
        else:
            async with pool.open_stream(count_blobs) as stream:
                for number in range(2000):
                    await stream.send(bytes(SIZE))
                    if number % 100 == 0:
                        sizes.append(memory(pool))
                stream.end()
                assert await stream.result() == 2000
        await sound(pool)
    for process in zip(*sizes[4:], strict=True):
        assert max(process) - min(process) < FLAT


# 19: cancelled at each await


@verbs
async def test_cancelled_at_any_time_it_costs_nothing(verb: Verb) -> None:
    async with ObservedPool(max_tasks=2, context='fork') as pool:
        for full in (False, True):
            for turns in (0, 1, 2, 3, 4, 5, 8, 20, 50):
                others = [asyncio.ensure_future(member.call(asyncio.sleep, 0.01)) for member in pool.members if full]
                asked = asyncio.ensure_future(verb(pool))
                for _ in range(turns):
                    await asyncio.sleep(0)
                asked.cancel()
                await asyncio.wait([asked])
                await asyncio.gather(*others)
                await until(lambda: pool.statistics().in_flight == 0)
        await until(lambda: all(member.state == 'ready' for member in pool.members))
        await sound(pool)


# 20: hostile bytes


def frame(kind: Kind, ident: int, body: bytes = b'') -> bytes:
    return pack_header(len(body), kind, ident) + body


HOSTILE = {
    'a value of no call': frame(Kind.VALUE, 99, pickle.dumps(1)),
    'an item of no call': frame(Kind.ITEM, 99, pickle.dumps(1)),
    'an item of a call that has none': frame(Kind.ITEM, 2, pickle.dumps(1)),
    'an end of a call that has none': frame(Kind.END, 2),
    'credit of a call that has no items': frame(Kind.MORE, 2, struct.pack('<IQ', 1, 1)),
    'credit for items that nobody sent': frame(Kind.MORE, 1, struct.pack('<IQ', 1, 1)),
    'credit without a size': frame(Kind.MORE, 1),
    'an item behind the last one': frame(Kind.END, 1) + frame(Kind.ITEM, 1, pickle.dumps(1)),
    'more items than there is credit for': frame(Kind.ITEM, 1, pickle.dumps(1)) * 1025,
    'a failure that is no pickle': frame(Kind.FAILED, 2, b'no pickle'),
    'a failure of a stream that is no pickle': frame(Kind.FAILED, 1, b'no pickle'),
    'two answers': frame(Kind.VALUE, 2, pickle.dumps(1)) * 2,
}


@pytest.mark.parametrize('data', HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_bytes_end_that_link_only(data: bytes, logs: LogGuard) -> None:
    lines = logs.expect('broke the protocol')
    async with ObservedPool(worker_class=Findable) as pool:
        other = asyncio.create_task(pool.members[1].call(asyncio.sleep, 0.2, 'fine'))
        stream = pool.members[0].open_stream(for_ever)
        await stream.__aenter__()
        call = asyncio.create_task(pool.members[0].call(for_ever))
        await until(lambda: pool.link(0).page.taken_up == 2)
        writing = asyncio.create_task(pool.members[0].call(write, data))
        await asyncio.wait([call, writing])
        ended = [stream.receive(), stream.result(), call, writing]
        errors = await asyncio.gather(*ended, return_exceptions=True)
        assert isinstance(errors[1], looppool.WorkerDied) and 'broke the protocol' in str(errors[1])
        assert await other == 'fine'
        await pool.replaced()
        await sound(pool)
    assert len(lines) == 1


# 21, 22: the end of the pool


@pytest.mark.parametrize('how', ['stop', 'kill'])
async def test_what_is_under_way_ends_with_the_pool(how: str, context: str) -> None:
    pool = ObservedPool(context=context, stop_timeout=0.05)
    await pool.start()
    asked = {name: asyncio.ensure_future(verb(pool)) for name, verb in ENDLESS.items()}
    await until(lambda: pool.statistics().in_flight >= len(ENDLESS))
    await until(lambda: all(pool.link(number).page.taken_up for number in range(2)))
    await (pool.stop() if how == 'stop' else pool.kill())
    for name, one in asked.items():
        with pytest.raises(looppool.PoolClosed):
            await one
            pytest.fail(name)
    assert pool.statistics().in_flight == 0


async def test_stop_lets_a_stream_come_to_its_end() -> None:
    pool = ObservedPool()
    await pool.start()
    stream = pool.stream(range, 5000)
    assert await anext(stream) == 0
    stopping = asyncio.create_task(pool.stop())
    assert [item async for item in stream] == list(range(1, 5000))
    await stopping


def errors_of(error: BaseException) -> list[BaseException]:
    return list(error.exceptions) if isinstance(error, BaseExceptionGroup) else [error]


@verbs
@pytest.mark.parametrize('stop', [True, False], ids=['after the end', 'before the start'])
async def test_a_pool_that_does_not_run_refuses(verb: Verb, stop: bool) -> None:
    pool = ObservedPool()
    if stop:
        await pool.start()
        await pool.stop()
    with pytest.raises((looppool.PoolClosed, BaseExceptionGroup)) as caught:
        await verb(pool)
    for error in errors_of(caught.value):
        assert isinstance(error, looppool.PoolClosed)
        assert ('has stopped' if stop else 'start() first') in str(error)


# 23: another thread


@verbs
async def test_another_thread_is_refused(verb: Verb) -> None:
    async with ObservedPool() as pool:

        async def ask() -> None:
            await verb(pool)

        with pytest.raises((RuntimeError, BaseExceptionGroup)) as caught:
            await asyncio.to_thread(asyncio.run, ask())
        assert all('add_callback' in str(error) for error in errors_of(caught.value))
        await sound(pool)


# 24: nested pools


async def squares_of_a_pool(context: str) -> list[int]:
    async with looppool.Pool[Any, Any](pool_size=2, context=context, name='inner') as inner:
        total = sum([item async for item in inner.stream(range, 10)])
        async with inner.open_stream(echo) as stream:
            await stream.send(total)
            values = [await stream.receive(), await inner.call(abs, -1)]
        return [*values, *[value async for value in inner.map(abs, range(-3, 0))]]


async def test_a_call_may_run_a_pool(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        assert await pool.call(squares_of_a_pool, context) == [45, 1, 3, 2, 1]
        await sound(pool)
