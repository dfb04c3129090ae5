'''`Pool`: starting and stopping it, who gets a message, and who waits for credit, for every start method.'''

import asyncio
import contextlib
import os
import queue
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from harness import Echo, Number, ResultDone, failures_of, on_each_loop, rest_of

import looppool
from looppool import Pool, Worker, task_done

# Starting and stopping


async def test_it_starts_once(context: str) -> None:
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        with pytest.raises(looppool.PoolClosed, match='only once'):
            await pool.start()
        pool.put_nowait(1)
    with pytest.raises(looppool.PoolClosed, match='only once'):
        await pool.start()
    assert await rest_of(pool) == [1]


async def test_it_takes_messages_only_while_it_runs(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Echo, context=context)
    with pytest.raises(looppool.PoolClosed, match=r"pool 'pool' was not started: await pool.start\(\) first"):
        pool.put_nowait(1)
    async with pool:
        stopping = [asyncio.create_task(pool.stop()) for _ in range(2)]
        while pool.state == 'running':
            await asyncio.sleep(0)
        with pytest.raises(looppool.PoolClosed, match='is stopping'):
            await pool.put(1)
        await asyncio.gather(*stopping)
    with pytest.raises(looppool.PoolClosed, match='has stopped'):
        await pool.broadcast(1)
    assert await rest_of(pool) == []


@pytest.mark.parametrize('count', range(16))
async def test_every_message_put_before_stop_gives_its_result(context: str, count: int) -> None:
    pool = Pool(pool_size=2, worker_class=Echo, context=context)
    await pool.start()
    for number in range(count):
        pool.put_nowait(number)
    await pool.stop()
    assert sorted(await rest_of(pool)) == list(range(count))


class TwoSteps(Worker[Any, Any]):
    '''Gives a result, and when it is done, another one. With result credit for one, the parent holds a task so.'''

    @task_done
    async def _process_message(self, message: Any) -> None:
        await self._put(message)
        await self._put(None)


class Holder:
    '''Takes the results of `TwoSteps`; each one's task is open until it is released.'''

    def __init__(self, pool: Pool[Any, Any]) -> None:
        self.begun: asyncio.Queue[tuple[Any, ResultDone]] = asyncio.Queue()
        self.on_end: Callable[[], object] = lambda: None
        pool.process_message = self._process_message

    def _process_message(self, result: Any, result_done: ResultDone) -> None:
        if result is not None:
            self.begun.put_nowait((result, result_done))
        else:
            result_done()
            self.on_end()

    async def release(self) -> Any:
        '''Wait for a task, let it end, and return its message.'''
        message, result_done = await self.begun.get()
        result_done()
        return message


@contextlib.asynccontextmanager
async def holding(context: str, pool_size: int = 1, **settings: Any) -> AsyncIterator[tuple[Pool[Any, Any], Holder]]:
    pool = Pool(pool_size=pool_size, worker_class=TwoSteps, context=context, max_results=pool_size, **settings)
    holder = Holder(pool)
    async with pool:
        yield pool, holder


async def test_results_put_after_stop_is_called_are_delivered(context: str) -> None:
    ends: list[str] = []
    async with holding(context) as (pool, holder):
        holder.on_end = lambda: ends.append(pool.state)
        pool.put_nowait('a')
        pool.put_nowait('b')
        message, result_done = await holder.begun.get()
        stopping = asyncio.create_task(pool.stop())
        while pool.state != 'stopping':
            await asyncio.sleep(0)
        result_done()
        assert (message, await holder.release()) == ('a', 'b')
        await stopping
    assert ends == ['stopping', 'stopping']


@on_each_loop
async def test_leaving_on_an_exception_stops_at_once(context: str) -> None:
    with pytest.raises(LookupError, match='mine'):
        async with holding(context) as (pool, holder):
            failures = failures_of(pool)
            pool.put_nowait('running')
            pool.put_nowait('waiting')
            await holder.begun.get()
            raise LookupError('mine')
    assert pool.state == 'stopped'
    told = [(task, error.started) for task, error in failures if isinstance(error, looppool.PoolClosed)]
    assert told == [('running', True), ('waiting', False)]


# Who gets a message


async def test_800_messages_on_8_workers_are_100_each(context: str) -> None:
    async with Pool(pool_size=8, worker_class=Number, context=context) as pool:
        for number in range(800):
            await pool.put(number)
    assert Counter(await rest_of(pool)) == dict.fromkeys(range(8), 100)


async def test_n_puts_in_turn_reach_n_workers(context: str) -> None:
    async with Pool(pool_size=5, worker_class=Number, context=context) as pool:
        for _ in range(3):
            for _ in range(5):
                pool.put_nowait('reload')
            results = pool.results()
            assert sorted([await anext(results) for _ in range(5)]) == [0, 1, 2, 3, 4]


async def test_a_message_may_be_put_to_a_chosen_worker(context: str) -> None:
    async with Pool(pool_size=3, worker_class=Number, context=context) as pool:
        for _ in range(4):
            pool.put_nowait('for two', worker_num=2)
            await pool.put('for one', worker_num=1)
        # Those were nobody's turn.
        pool.put_nowait('in turn')
    assert Counter(await rest_of(pool)) == {0: 1, 1: 4, 2: 4}


@pytest.mark.parametrize('worker_num', [-1, 2, True, '1'])
async def test_a_worker_that_is_not_there_is_a_value_error(worker_num: Any) -> None:
    async with Pool(pool_size=2, worker_class=Number) as pool:
        with pytest.raises(ValueError, match='worker_num has to be from 0 to 1'):
            pool.put_nowait(1, worker_num=worker_num)
        with pytest.raises(ValueError, match='worker_num has to be from 0 to 1'):
            await pool.put(1, worker_num=worker_num)
        assert pool.statistics().in_flight == 0


class HoldingNumber(Worker[str, int]):
    '''Tells its number for every message; it holds the task 'hold' until it gets 'end'.'''

    def _initialise(self) -> None:
        self._end = asyncio.Event()

    @task_done
    async def _process_message(self, message: str) -> None:
        self._put_nowait(self._number)
        match message:
            case 'hold':
                await self._end.wait()
            case 'end':
                self._end.set()


async def test_least_loaded_passes_a_busy_worker_over(context: str) -> None:
    async with Pool(pool_size=2, worker_class=HoldingNumber, context=context, distribution='least_loaded') as pool:
        results = pool.results()
        pool.put_nowait('hold')
        busy = await anext(results)
        for _ in range(4):
            pool.put_nowait('pass')
            # Its done comes in the same write as its result, and is seen first.
            assert await anext(results) == 1 - busy
        pool.put_nowait('end', worker_num=busy)


# Credit


async def test_put_nowait_raises_full_when_there_is_no_credit(context: str) -> None:
    async with holding(context, pool_size=2, max_tasks=4) as (pool, holder):
        for number in range(4):
            pool.put_nowait(number)
        with pytest.raises(queue.Full) as caught:
            pool.put_nowait('one more')
        assert isinstance(caught.value, looppool.Full)
        assert "pool 'pool' has no task credit now" in str(caught.value)
        with pytest.raises(looppool.Full, match='worker 1 has no task credit now'):
            pool.put_nowait('one more', worker_num=1)
        assert sorted([await holder.release() for _ in range(4)]) == [0, 1, 2, 3]


async def test_those_who_wait_for_credit_are_served_first_come_first_served(context: str) -> None:
    async with holding(context, max_tasks=1) as (pool, holder):
        pool.put_nowait(0)
        waiting = [asyncio.create_task(pool.put(number, [None, 0][number % 2])) for number in range(1, 6)]
        await asyncio.sleep(0)
        assert pool.statistics().waiting == 5
        with pytest.raises(looppool.Full):
            pool.put_nowait('overtaking')
        for number in range(6):
            # Each put returns when its message is accepted: when the one before has ended.
            assert sum(task.done() for task in waiting) <= number
            assert await holder.release() == number
        await asyncio.gather(*waiting)


async def test_a_cancelled_put_has_put_nothing_and_takes_no_credit(context: str) -> None:
    async with holding(context, max_tasks=1) as (pool, holder):
        pool.put_nowait('first')
        waiting = [asyncio.create_task(pool.put(name)) for name in ('gives up', 'second')]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert await holder.release() == 'first'
        assert await holder.release() == 'second'
        assert waiting[0].cancelled()
    assert holder.begun.empty()
    assert (pool.statistics().done, pool.statistics().credits) == (2, 1)


async def test_a_put_cancelled_just_when_it_got_credit_gives_it_back(context: str) -> None:
    async with holding(context, max_tasks=1) as (pool, holder):
        pool.put_nowait('first')
        waiting = [asyncio.create_task(pool.put(name)) for name in ('gives up', 'second')]
        # A task's last result comes with its done: the first who waits has just been granted the credit then.
        holder.on_end = waiting[0].cancel
        assert await holder.release() == 'first'
        assert await holder.release() == 'second'
        assert waiting[0].cancelled()
    assert (pool.statistics().done, pool.statistics().credits) == (2, 1)


@on_each_loop
async def test_tasks_are_bounded_in_bytes_and_a_larger_one_passes_alone(context: str) -> None:
    async with holding(context, max_bytes=1000) as (pool, holder):
        pool.put_nowait(b'a' * 600)
        with pytest.raises(looppool.Full):
            pool.put_nowait(b'b' * 600)
        pool.put_nowait(b'c' * 300)
        larger = asyncio.create_task(pool.put(b'd' * 5000))
        await asyncio.sleep(0)
        assert pool.statistics().bytes < 1000 and not larger.done()
        assert [(await holder.release())[:1] for _ in range(3)] == [b'a', b'c', b'd']
        await larger


async def test_a_message_over_the_cap_takes_no_credit(context: str) -> None:
    async with holding(context, max_tasks=1, max_message_bytes=10_000) as (pool, holder):
        big = bytes(10_000)
        for put in (pool.put_nowait, pool.put, pool.broadcast):
            with pytest.raises(looppool.MessageTooBig) as caught:
                await as_coroutine(put, big)
            assert caught.value.size > caught.value.limit == 10_000
        assert (pool.statistics().credits, pool.statistics().waiting) == (1, 0)
        pool.put_nowait(big[:9000])
        assert await holder.release() == big[:9000]


async def test_a_message_that_cannot_be_pickled_takes_no_credit(context: str) -> None:
    async with holding(context, max_tasks=1) as (pool, holder):
        for put in (pool.put_nowait, pool.put, pool.broadcast):
            with pytest.raises(TypeError, match='generator'):
                await as_coroutine(put, (number for number in range(3)))
        assert (pool.statistics().credits, pool.statistics().waiting) == (1, 0)
        pool.put_nowait('fine')
        assert await holder.release() == 'fine'


async def as_coroutine(function: Callable[[Any], Any], argument: Any) -> None:
    outcome = function(argument)
    if isinstance(outcome, Coroutine):
        await outcome


class BigResult(Worker[int, bytes]):
    @task_done
    def _process_message(self, size: int) -> None:
        self._put_nowait(bytes(size))


async def test_a_result_over_the_cap_fails_its_task_and_takes_no_credit(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=BigResult, context=context, max_results=1, max_message_bytes=10_000)
    failures = failures_of(pool)
    async with pool:
        for size in (10_000, 9000):
            pool.put_nowait(size)
    assert [len(result) for result in await rest_of(pool)] == [9000]
    assert [(task, type(error)) for task, error in failures] == [(10_000, looppool.MessageTooBig)]


# Threads


@pytest.mark.parametrize('method', ['put_nowait', 'put', 'broadcast', 'stop', 'kill'])
async def test_another_thread_is_told_to_use_add_callback(method: str) -> None:
    async with Pool(pool_size=1, worker_class=Echo) as pool:
        arguments = [1] if method in ('put_nowait', 'put', 'broadcast') else []

        def use() -> None:
            outcome = getattr(pool, method)(*arguments)
            if isinstance(outcome, Coroutine):
                asyncio.run(asyncio.wait_for(outcome, 5))

        with pytest.raises(RuntimeError, match='add_callback'):
            await asyncio.to_thread(use)
        await asyncio.to_thread(lambda: pool.ioloop.add_callback(pool.put_nowait, 'called back'))  # type: ignore[union-attr]
        assert await anext(pool.results()) == 'called back'
    assert pool.state == 'stopped'


# What a message may be


async def test_what_is_changed_after_put_does_not_travel(context: str) -> None:
    message = ['as put']
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        pool.put_nowait(message)
        message[0] = 'changed'
    assert await rest_of(pool) == [['as put']]


class Caller(Worker[Callable[[], Any], Any]):
    @task_done
    def _process_message(self, function: Callable[[], Any]) -> None:
        self._put_nowait((os.getpid(), function()))


async def test_lambdas_and_closures_travel(context: str) -> None:
    captured = 'from home'
    async with Pool(pool_size=1, worker_class=Caller, context=context) as pool:
        pid = pool.members[0].pid
        pool.put_nowait(lambda: captured)
        pool.put_nowait(lambda: sorted({2, 1}))
    assert await rest_of(pool) == [(pid, 'from home'), (pid, [1, 2])]


async def test_none_and_false_and_empty_travel_as_any_message(context: str) -> None:
    messages: list[Any] = [None, False, 0, '', b'', [], ()]
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        for message in messages:
            pool.put_nowait(message)
    assert await rest_of(pool) == messages
