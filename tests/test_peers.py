'''Workers that find and call each other, through a parent that does not unpickle what they say.'''

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import LogGuard
from harness import Echo

import looppool
from looppool import Pool, asking


class Opaque:
    '''What only workers can unpickle.'''

    def __init__(self, value: int, parent: int) -> None:
        self.value = value
        self.parent = parent

    def __reduce__(self) -> tuple[Any, ...]:
        return opaque, (self.value, self.parent)


def opaque(value: int, parent: int) -> Opaque:
    assert os.getpid() != parent
    return Opaque(value, parent)


def name() -> str | None:
    return looppool.current_worker().name


async def there_and_back(hops: int, path: list[str | None]) -> list[str | None]:
    path.append(name())
    if not hops:
        return path
    other = await looppool.find_worker('b' if name() == 'a' else 'a')
    return await other.call(there_and_back, hops - 1, path)


async def ask(function: Any, *args: Any) -> Any:
    '''In `a`: ask `b`.'''
    return await (await looppool.find_worker('b')).call(function, *args)


async def carries(parent: int) -> int:
    return (await ask(incremented, Opaque(1, parent))).value


def incremented(one: Opaque) -> Opaque:
    return Opaque(one.value + 1, one.parent)


def count_to(limit: int) -> Iterator[int]:
    yield from range(limit)


async def slowly(ended: str) -> AsyncIterator[int]:
    try:
        while True:
            yield 1
            await asyncio.sleep(0)
    finally:
        looppool.current_worker().state[ended] = True


async def streamed(limit: int) -> list[int]:
    other = await looppool.find_worker('b')
    return [item async for item in other.stream(count_to, limit)]


async def left_early() -> int:
    other = await looppool.find_worker('b')
    stream = other.stream(slowly, 'ended')
    async for _ in stream:
        break
    await stream.aclose()
    return await other.call(state_of, 'ended')


def state_of(key: str) -> Any:
    return looppool.current_worker().state.get(key)


async def doubles(stream: Any) -> str:
    async for item in stream:
        await stream.send(2 * item)
    return 'doubled'


async def both_ways(count: int) -> tuple[list[int], str]:
    other = await looppool.find_worker('b')
    async with other.open_stream(doubles) as stream:
        # More than there is credit for, before the function has even begun.
        sending = asyncio.create_task(send_all(stream, count))
        items = [item async for item in stream]
        await sending
        return items, await stream.result()


async def send_all(stream: Any, count: int) -> None:
    for item in range(count):
        await stream.send(item)
    stream.end()


async def mapped(items: list[int]) -> list[int]:
    other = await looppool.find_worker('b')
    return [value async for value in other.map(abs, items)]


async def puts(message: Any) -> None:
    await (await looppool.find_worker('b')).put(message)


def fails() -> None:
    raise KeyError('there')


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def forever(key: str) -> None:
    state = looppool.current_worker().state
    state[key] = 'begun'
    try:
        await asyncio.sleep(1000)
    except asyncio.CancelledError:
        state[key] = 'cancelled'
        raise


async def until_state(key: str, value: Any) -> None:
    while state_of(key) != value:
        await asyncio.sleep(0.001)


def blocks() -> None:
    while True:
        pass


class TwoNamed(Pool[Any, Any]):
    '''A pool with the workers a and b, which have room for one task at a time.'''

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{'pool_size': 1, 'worker_class': Echo, 'concurrency': 1, 'max_tasks': 1} | settings)

    async def start(self) -> None:
        await super().start()
        self.a = await self.spawn('a')
        self.b = await self.spawn('b')


# What works


async def test_workers_call_each_other_in_a_circle_however_full_they_are(context: str) -> None:
    async with TwoNamed(context=context) as pool:
        assert await pool.a.call(there_and_back, 5, []) == ['a', 'b'] * 3


async def test_the_parent_does_not_unpickle_what_is_handed_on(context: str) -> None:
    async with TwoNamed(context=context) as pool:
        assert await pool.a.call(carries, os.getpid()) == 2


async def test_all_verbs(context: str) -> None:
    async with TwoNamed(context=context) as pool:
        assert await pool.a.call(streamed, 3000) == list(range(3000))
        assert await pool.a.call(left_early)
        items, result = await pool.a.call(both_ways, 3000)
        assert (items, result) == ([2 * item for item in range(3000)], 'doubled')
        assert await pool.a.call(mapped, [-1, -2]) == [1, 2]
        await pool.a.call(puts, 'put by a')
        assert await anext(pool.results()) == 'put by a'


async def test_a_worker_can_ask_while_it_initialises() -> None:
    async with TwoNamed() as pool:
        third = await pool.spawn('c', worker_class=Introduced)
        assert await third.call(state_of, 'greeted by') == 'b'


class Introduced(looppool.Worker[Any, Any]):
    async def _initialise(self) -> None:
        looppool.current_worker().state['greeted by'] = await ask(name)

    def _process_message(self, _message: Any) -> None:
        self._task_done()


async def test_many_at_once_are_bounded_and_all_answered() -> None:
    async with TwoNamed() as pool:
        assert await pool.a.call(many, 3 * asking.WINDOW) == 3 * asking.WINDOW


async def many(count: int) -> int:
    other = await looppool.find_worker('b')
    awaited = [other.call_nowait(int) for _ in range(asking.WINDOW)]
    with pytest.raises(looppool.Full):
        other.call_nowait(int)
    calls = [other.call(int) for _ in range(count - asking.WINDOW)]
    return len(await asyncio.gather(*calls, *awaited))


# Finding


async def test_nobody_has_that_name() -> None:
    async with TwoNamed() as pool:
        with pytest.raises(ValueError, match="no worker with the name 'c': wait_for_worker waits"):
            await pool.a.call(looppool.find_worker, 'c')
        with pytest.raises(TypeError, match='name has to be a string, not 1'):
            await pool.a.call(looppool.find_worker, 1)
        with pytest.raises(TimeoutError):
            await pool.a.call(looppool.wait_for_worker, 'c', 0.01)
    with pytest.raises(RuntimeError, match='does not run in a worker'):
        await looppool.find_worker('a')


async def test_who_waits_for_a_name_is_told_when_it_is_there() -> None:
    async with TwoNamed() as pool:
        waiting = asyncio.create_task(pool.a.call(wait_and_ask, 'c'))
        await pool.a.call(int)
        await pool.spawn('c')
        assert await waiting == 'c'


async def wait_and_ask(which: str) -> str | None:
    return await (await looppool.wait_for_worker(which)).call(name)


async def test_who_waits_for_a_name_learns_that_the_pool_stops() -> None:
    async with TwoNamed() as pool:
        waiting = asyncio.create_task(pool.a.call(looppool.wait_for_worker, 'c'))
        await pool.a.call(int)
        await pool.stop(timeout=None)
        with pytest.raises(looppool.PoolClosed, match='is stopping'):
            await waiting


async def test_from_a_thread_it_is_refused_with_what_to_do() -> None:
    async with TwoNamed() as pool:
        with pytest.raises(RuntimeError, match='run_coroutine_threadsafe'):
            await pool.a.call(looppool.in_thread(in_another_loop))


def in_another_loop() -> None:
    asyncio.run(looppool.find_worker('b'))


# What goes wrong


async def test_an_error_names_the_worker_that_raised_it_first(context: str) -> None:
    async with TwoNamed(context=context) as pool:
        with pytest.raises(KeyError, match='there') as caught:
            await pool.a.call(ask, fails)
        assert caught.value.__notes__ == [
            f"raised in worker b (pid {pool.b.pid}) of pool 'pool'",
            f"raised in worker a (pid {pool.a.pid}) of pool 'pool'",
        ]


async def test_the_called_worker_dies(context: str, logs: LogGuard) -> None:
    logs.expect('worker b')
    async with TwoNamed(context=context) as pool:
        pid = pool.b.pid
        with pytest.raises(looppool.WorkerDied) as caught:
            await pool.a.call(ask, dies)
        assert (caught.value.pid, caught.value.signal, caught.value.started) == (pid, 'SIGKILL', True)
        # Its replacement answers, ready or not.
        assert await pool.a.call(ask, name) == 'b'


async def test_the_asker_dies(context: str, logs: LogGuard) -> None:
    logs.expect('worker a')
    async with TwoNamed(context=context, concurrency=None, max_tasks=64) as pool:
        asked = asyncio.create_task(pool.a.call(ask, forever, 'asked'))
        await pool.b.call(until_state, 'asked', 'begun')
        assert pool.a.pid is not None
        os.kill(pool.a.pid, signal.SIGKILL)
        with pytest.raises(looppool.WorkerDied):
            await asked
        await pool.b.call(until_state, 'asked', 'cancelled')
        assert await pool.a.call(ask, name) == 'b'


async def test_a_cancel_goes_all_the_way(context: str) -> None:
    async with TwoNamed(context=context, concurrency=None, max_tasks=64) as pool:
        asked = asyncio.create_task(pool.a.call(ask, forever, 'asked'))
        await pool.b.call(until_state, 'asked', 'begun')
        asked.cancel()
        await pool.b.call(until_state, 'asked', 'cancelled')
        with pytest.raises(asyncio.CancelledError):
            await asked


async def test_what_blocks_over_there_is_interrupted(context: str) -> None:
    async with TwoNamed(context=context, cancel_grace=0.5) as pool:
        pid = pool.b.pid
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await pool.a.call(ask, blocks)
        assert await pool.a.call(ask, os.getpid) == pid


async def test_a_call_to_a_worker_that_stops_is_refused() -> None:
    async with TwoNamed() as pool:
        await pool.b.stop()
        with pytest.raises(ValueError, match="no worker with the name 'b'"):
            await pool.a.call(ask, name)


async def test_a_call_waits_for_the_replacement_and_fails_with_the_pool(logs: LogGuard) -> None:
    logs.expect('worker b')
    async with TwoNamed(restart_delay=60.0, max_restart_delay=60.0) as pool:
        for _ in range(2):
            with pytest.raises(looppool.WorkerDied):
                await pool.b.call(dies)
        # The second restart takes its time.
        waiting = asyncio.create_task(pool.a.call(ask, name))
        await pool.members[0].call(int)
        await pool.kill()
        with pytest.raises(looppool.PoolClosed):
            await waiting


async def test_accepted_tasks_may_still_ask_while_the_pool_drains(context: str) -> None:
    async with TwoNamed(context=context) as pool:
        asked = asyncio.create_task(pool.a.call(asks_later))
        await pool.a.pool.members[0].call(int)
        await pool.stop()
        assert await asked == 'b'


async def asks_later() -> str | None:
    await asyncio.sleep(0.1)
    return await ask(name)


async def test_two_pools_in_one_another(context: str) -> None:
    async with TwoNamed(context=context) as pool:
        assert await pool.a.call(in_a_pool_of_its_own) == ['a', 'b', 'a']


async def in_a_pool_of_its_own() -> list[str | None]:
    async with TwoNamed() as pool:
        return await pool.a.call(there_and_back, 2, [])
