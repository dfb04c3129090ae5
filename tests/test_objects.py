'''Objects that live in a worker: what reaches them, what they are elsewhere, and when they end.'''

import asyncio
import contextvars
import gc
import os
import select
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from conftest import LogGuard
from harness import Echo

import looppool
from looppool import Pool, RemoteObject


class Counter:
    alive = 0

    def __init__(self, start: int = 0) -> None:
        self.value = start
        Counter.alive += 1
        weakref.finalize(self, died)

    def add(self, more: int, *, times: int = 1) -> int:
        self.value += more * times
        return self.value

    async def add_later(self, more: int) -> int:
        await asyncio.sleep(0)
        return self.add(more)

    def steps(self, count: int) -> Iterator[int]:
        for _ in range(count):
            yield self.add(1)

    async def steps_later(self, count: int) -> AsyncIterator[int]:
        for _ in range(count):
            await asyncio.sleep(0)
            yield self.add(1)

    def fails(self) -> None:
        raise KeyError('inside')

    def pid(self) -> int:
        return os.getpid()

    def blocks(self) -> None:
        while True:
            pass

    def dies(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def get(self) -> str:
        return 'its own'

    def itself(self) -> 'Counter':
        return self

    def __reduce__(self) -> Any:
        raise TypeError('a counter does not travel')


def died() -> None:
    Counter.alive -= 1


def alive() -> int:
    gc.collect()
    return Counter.alive


async def until_alive(count: int) -> None:
    while alive() != count:
        await asyncio.sleep(0.001)


async def made_later(start: int) -> Counter:
    await asyncio.sleep(0)
    return Counter(start)


def refused() -> None:
    raise ValueError('not made')


def kind_of(obj: Any) -> str:
    return type(obj).__name__


async def add_to(obj: Any, more: int) -> int:
    added = obj.add(more)
    return added if isinstance(added, int) else await added


async def steps_of(obj: Any) -> list[int]:
    return [step async for step in obj.steps_later(3)]


def echoes(obj: Any) -> Any:
    return obj


def keeps(obj: Any) -> None:
    looppool.current_worker().state['kept'] = obj


async def release_kept() -> None:
    looppool.current_worker().state.clear()


async def makes_one(name: str) -> RemoteObject:
    peer = await looppool.find_worker(name)
    made = looppool.current_worker().state['made'] = await peer.create(Counter, 5)
    await made.add(1)
    return made


def pool_of(**settings: Any) -> Pool[Any, Any]:
    return Pool(**{'pool_size': 2, 'worker_class': Echo} | settings)


# Using them


async def test_methods_attributes_and_iteration(context: str) -> None:
    async with pool_of(context=context) as pool:
        counter = await pool.create(Counter, start=1)
        assert await counter.add(1, times=2) == 3
        assert await counter.add_later(1) == 4
        assert await counter.get('value') == 4
        assert [step async for step in counter.steps(2)] == [5, 6]
        assert [step async for step in counter.steps_later(2)] == [7, 8]
        assert await asyncio.gather(*[counter.add(1) for _ in range(3)]) == [9, 10, 11]
        assert await counter.pid() in [member.pid for member in pool.members]


async def test_a_factory_may_be_a_coroutine_function_and_may_fail() -> None:
    async with pool_of() as pool:
        counter = await pool.create(made_later, 7)
        assert await counter.get('value') == 7
        with pytest.raises(ValueError, match='not made'):
            await pool.create(refused)
        with pytest.raises(TypeError, match='a class or a function is needed to create an object, not 5'):
            await pool.create(5)  # type: ignore[arg-type]


async def test_all_verbs_have_it() -> None:
    async with pool_of() as pool:
        member = pool.members[1]
        assert await (await member.create(Counter)).pid() == member.pid
        async with pool.reserve() as lease:
            leased = await lease.create(Counter)
            assert await leased.add(1) == 1
            assert await leased.pid() == lease.pid
            await leased.close()
        named = await pool.spawn('kitty')
        assert await (await named.create(Counter)).pid() == named.pid


async def test_errors_are_those_of_calls(context: str) -> None:
    async with pool_of(context=context, cancel_grace=0.5) as pool:
        counter = await pool.create(Counter)
        with pytest.raises(KeyError, match='inside') as caught:
            await counter.fails()
        assert 'raised in worker' in caught.value.__notes__[0]
        with pytest.raises(AttributeError, match='nothing'):
            await counter.nothing()
        with pytest.raises(AttributeError, match='nothing'):
            await counter.get('nothing')
        with pytest.raises(AttributeError, match='_private cannot be reached'):
            counter._private()
        with pytest.raises(TypeError, match='does not travel'):
            await counter.itself()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await counter.blocks()
        assert await counter.add(1) == 1, 'it was interrupted, and has lived on'


# When they end


async def test_closed_or_collected_it_ends_there(context: str) -> None:
    async with pool_of(context=context, pool_size=1) as pool:
        first, second = await pool.create(Counter), await pool.create(Counter)
        async with await pool.create(Counter):
            assert await pool.call(alive) == 3
        assert await pool.call(alive) == 2
        await first.close()
        await first.close()
        assert await pool.call(alive) == 1
        with pytest.raises(ReferenceError, match='closed'):
            await first.add(1)
        del second
        gc.collect()
        await pool.call(until_alive, 0)


VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar('VARIABLE')


async def test_it_may_be_collected_where_the_values_of_variables_can_not_travel() -> None:
    async with pool_of(pool_size=1, contextvars=[VARIABLE]) as pool:
        counter = await pool.create(Counter)
        token = VARIABLE.set(threading.Lock())
        del counter
        gc.collect()
        VARIABLE.reset(token)
        await pool.call(until_alive, 0)


async def test_a_cancelled_creation_leaves_nothing(context: str) -> None:
    async with pool_of(context=context, pool_size=1) as pool:
        for turns in range(12):
            creating = asyncio.create_task(pool.create(made_later, 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            creating.cancel()
            await asyncio.wait([creating])
            del creating
        creating = asyncio.create_task(pool.create(Counter))
        while not pool.statistics().done:
            await asyncio.sleep(0)
        # Its answer is there, and nobody has looked at it yet.
        creating.cancel()
        await asyncio.wait([creating])
        del creating
        gc.collect()
        await pool.call(until_alive, 0)


async def test_a_creation_cancelled_just_when_its_answer_comes_leaves_nothing() -> None:
    loop = asyncio.get_running_loop()
    async with pool_of(pool_size=1) as pool:
        creating = asyncio.create_task(pool.create(Counter))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

        def cancel_ahead_of_the_answer() -> None:
            link: Any = pool.members[0].link
            select.select([link.channel._sock], [], [])
            # It runs in the turn that reads the answer, ahead of the reading; its caller wakes up in the next one.
            loop.call_soon(creating.cancel)

        loop.call_soon(cancel_ahead_of_the_answer)
        with pytest.raises(asyncio.CancelledError):
            await creating
        gc.collect()
        await pool.call(until_alive, 0)
        link: Any = pool.members[0].link
        assert link.objects == 0


async def test_it_dies_with_its_worker(context: str, logs: LogGuard) -> None:
    logs.expect('worker 0')
    async with pool_of(context=context, pool_size=1) as pool:
        counter = await pool.create(Counter)
        pid = pool.members[0].pid
        with pytest.raises(looppool.WorkerDied) as caught:
            await counter.dies()
        assert (caught.value.pid, caught.value.signal) == (pid, 'SIGKILL')
        await pool.call(int)
        for use in (counter.add(1), counter.get('value')):
            with pytest.raises(looppool.WorkerDied) as caught:
                await use
            assert caught.value.pid == pid
        await counter.close()


async def test_a_replaced_worker_knows_that_it_never_had_it() -> None:
    async with pool_of(pool_size=1) as pool:
        counter = await pool.create(Counter)
        pid = pool.members[0].pid
        borrowed = await pool.call(echoes_proxy, counter)
        await pool.members[0].stop()
        with pytest.raises(looppool.WorkerDied, match='its objects ended with it') as caught:
            await borrowed.add(1)
        assert caught.value.pid == pid


def echoes_proxy(obj: Any) -> Any:
    '''In the worker that has it: what stands for it elsewhere.'''
    from looppool import objects
    from looppool.asking import asking

    home = objects._home()
    [key] = [key for key, held in home.objects.items() if held is obj]
    return _Proxy(asking().pool, looppool.current_worker().number, key)


class _Proxy:
    def __init__(self, pool: str, address: int, key: Any) -> None:
        self.arguments = pool, address, key

    def __reduce__(self) -> Any:
        from looppool import objects

        return objects._arrive, self.arguments


async def test_a_worker_with_objects_is_not_recycled_for_age_before_they_are_released() -> None:
    async with pool_of(pool_size=1, max_tasks_per_worker=3) as pool:
        counter = await pool.create(Counter)
        for expected in range(1, 10):
            assert await counter.add(1) == expected
        pid = pool.members[0].pid
        await counter.close()
        while (await pool.call(os.getpid)) == pid:
            pass


async def test_a_pool_does_not_shrink_while_there_are_objects() -> None:
    events = []
    async with pool_of(pool_size=None, min_size=1, max_size=2, idle_ttl=0.05) as pool:
        # On a busy machine it may leave before there is anything in it.
        while len(pool.members) < 2:
            await pool.warm(2)
        counter = await pool.members[1].create(Counter)
        await asyncio.sleep(0.3)
        assert await counter.add(1) == 1
        feed = pool.events()
        await counter.close()
        async for event in feed:
            events.append(event)
            if event.size == 1:
                break
    assert [event.kind for event in events][-1] == 'resized'


# Where they go


async def test_at_home_it_is_the_object_itself_and_elsewhere_a_proxy(context: str) -> None:
    async with pool_of(context=context) as pool:
        home, other = pool.members
        counter = await home.create(Counter)
        assert await home.call(kind_of, counter) == 'Counter'
        assert await other.call(kind_of, counter) == 'RemoteObject'
        assert await home.call(add_to, counter, 1) == 1
        assert await other.call(add_to, counter, 1) == 2
        assert await other.call(steps_of, counter) == [3, 4, 5]
        back = await other.call(echoes, counter)
        assert isinstance(back, RemoteObject)
        assert await back.add(1) == 6
        assert await home.call(add_to, back, 1) == 7


async def test_what_has_travelled_does_not_keep_it_alive() -> None:
    async with pool_of() as pool:
        home, other = pool.members
        counter = await home.create(Counter)
        await other.call(keeps, counter)
        await other.call(release_kept)
        assert await counter.add(1) == 1
        borrowed = await other.call(echoes, counter)
        await counter.close()
        with pytest.raises(ReferenceError, match='was released'):
            await borrowed.add(1)
        with pytest.raises(ReferenceError, match='was closed'):
            await other.call(echoes, counter)


async def test_a_worker_makes_one_in_another(context: str) -> None:
    async with pool_of(context=context, pool_size=1) as pool:
        named = await pool.spawn('home')
        borrowed = await pool.call(makes_one, 'home')
        assert await borrowed.add(1) == 7
        assert await borrowed.pid() == named.pid
        await pool.call(release_kept)
        await named.call(until_alive, 0)


async def test_elsewhere_than_in_its_pool_it_is_refused() -> None:
    async with pool_of(pool_size=1) as pool, pool_of(pool_size=1, name='stranger') as stranger:
        counter = await pool.create(Counter)
        with pytest.raises(LookupError, match='not known'):
            await stranger.call(kind_of, counter)
    with pytest.raises(looppool.PoolClosed):
        await counter.add(1)
