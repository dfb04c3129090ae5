'''Results: how many, when, and their credit on both sides, for every start method.'''

import asyncio
import time
from typing import Any

import pytest
from conftest import LogGuard
from harness import Echo, Failures, ResultDone, failures_of, rest_of, run
from tornado import gen

import looppool
from looppool import Pool, Worker, task_done

# The worker's side


class Publisher(Worker[Any, Any]):
    async def _initialise(self) -> None:
        self._publishing = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        number = 0
        while True:
            await self._put(number)
            number += 1


async def test_results_need_no_task_and_do_not_hinder_the_end(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Publisher, context=context, max_results=8)
    await pool.start()
    seen = []
    async for result in pool.results():
        seen.append(result)
        if result == 100:
            stopping = asyncio.create_task(pool.stop())
    await stopping
    assert seen == list(range(len(seen)))


class PutsLate(Echo):
    def _finalise(self) -> None:
        self._put_nowait('in time')
        self._ioloop.add_callback(self._put_nowait, 'late')


async def test_a_put_after_the_end_breaks_nothing(context: str) -> None:
    results, _ = await run(PutsLate, 1, context=context)
    assert results in ([1, 'in time'], [1, 'in time', 'late'])


class Several(Worker[Any, Any]):
    @task_done
    async def _process_message(self, count: int) -> None:
        for number in range(count):
            await self._put((count, number))


async def test_a_task_may_give_any_number_of_results(context: str) -> None:
    results, _ = await run(Several, 0, 1, 3, context=context, concurrency=1)
    assert results == [(1, 0), (3, 0), (3, 1), (3, 2)]


class Impatient(Worker[Any, Any]):
    @task_done
    async def _process_message(self, message: str) -> None:
        self._put_nowait(message)
        try:
            self._put_nowait('no credit')
        except looppool.Full as full:
            await self._put(str(full))


async def test_put_waits_for_credit_and_put_nowait_raises_full(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Impatient, context=context, max_results=1)
    held: asyncio.Queue[tuple[Any, ResultDone]] = asyncio.Queue()

    def hold(result: Any, result_done: ResultDone) -> None:
        assert pool.statistics().results_pending == 1
        held.put_nowait((result, result_done))

    pool.process_message = hold
    async with pool:
        pool.put_nowait('first')
        result, result_done = await held.get()
        assert result == 'first' and held.empty()
        result_done()
        result, result_done = await held.get()
        assert 'await self._put(...)' in result
        result_done()


class OneEach(Worker[Any, Any]):
    @task_done
    async def _process_message(self, message: bytes) -> None:
        await asyncio.sleep(0)
        self._put_nowait(message)


async def test_one_result_a_task_is_never_full(context: str) -> None:
    messages = list(range(300))
    results, failures = await run_with_slow_consumer(OneEach, messages, context=context, max_results=3)
    assert not failures and sorted(results) == messages


async def test_one_large_result_a_task_is_never_full(context: str) -> None:
    messages = [bytes([number]) * 5000 for number in range(50)]
    results, failures = await run_with_slow_consumer(OneEach, messages, context=context, max_bytes=12_000)
    assert not failures and sorted(results) == messages


async def run_with_slow_consumer(
    worker_class: type[Worker[Any, Any]], messages: list[Any], **settings: Any
) -> tuple[list[Any], Failures]:
    pool = Pool(pool_size=1, worker_class=worker_class, **settings)
    results: list[Any] = []
    failures = failures_of(pool)

    @task_done
    async def process_message(result: Any, result_done: ResultDone) -> None:
        await asyncio.sleep(0.0005)
        results.append(result)

    pool.process_message = process_message
    async with pool:
        for message in messages:
            await pool.put(message)
    return results, failures


class Oversized(Worker[Any, Any]):
    @task_done
    async def _process_message(self, sizes: list[int]) -> None:
        for size in sizes:
            await self._put(bytes(size))


async def test_results_are_bounded_in_bytes_and_a_larger_one_passes_alone(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Oversized, context=context, max_bytes=10_000)
    seen: list[tuple[int, int]] = []

    @task_done
    async def process_message(result: bytes, result_done: ResultDone) -> None:
        await asyncio.sleep(0)
        seen.append((len(result), pool.statistics().results_pending))

    pool.process_message = process_message
    async with pool:
        pool.put_nowait([40_000, 4_000, 4_000, 4_000, 40_000])
    assert [size for size, _ in seen] == [40_000, 4_000, 4_000, 4_000, 40_000]
    assert [pending for size, pending in seen if size == 40_000] == [1, 1]
    assert max(pending for _, pending in seen) <= 2


class WaitingInLine(Worker[Any, Any]):
    '''Starts putting from several asyncio tasks at once, and gives up some.'''

    @task_done
    async def _process_message(self, count: int) -> None:
        self._put_nowait('first')
        putting = [asyncio.create_task(self._put(number)) for number in range(count)]
        await asyncio.sleep(0)
        for task in putting[1::2]:
            task.cancel()
        await asyncio.gather(*putting, return_exceptions=True)


async def test_puts_of_a_worker_are_served_in_turn_and_cancelled_ones_put_nothing(context: str) -> None:
    results, failures = await run_with_slow_consumer(WaitingInLine, [9, 4], context=context, max_results=1)
    assert results == ['first', 0, 2, 4, 6, 8, 'first', 0, 2] and not failures


class TwoPutters(Worker[int, Any]):
    @task_done
    async def _process_message(self, count: int) -> None:
        self._put_nowait('first')
        self._put_nowait('second')
        await asyncio.gather(*(self._put_all(name, count) for name in 'ab'))

    async def _put_all(self, name: str, count: int) -> None:
        for number in range(count):
            await self._put((name, number))


async def test_who_puts_again_goes_to_the_end_of_the_line(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=TwoPutters, context=context, max_results=2)
    results: list[Any] = []
    held: list[ResultDone] = []

    def process_message(result: Any, result_done: ResultDone) -> None:
        results.append(result)
        held.append(result_done)
        # Credit for two comes back at once, and both who wait get one.
        if len(held) == 2:
            for done in held:
                done()
            held.clear()

    pool.process_message = process_message
    async with pool:
        pool.put_nowait(4)
    assert results == ['first', 'second', *((name, number) for number in range(4) for name in 'ab')]


# The pool's side: process_message


class Handlers:
    '''Each takes its result, and says that it is done.'''

    def __init__(self) -> None:
        self.seen: list[int] = []

    @task_done
    def method(self, result: int, result_done: ResultDone) -> None:
        self.seen.append(result)

    @task_done
    async def coroutine_method(self, result: int, result_done: ResultDone) -> None:
        await asyncio.sleep(0)
        self.seen.append(result)

    @task_done
    @gen.coroutine
    def gen_coroutine_method(self, result: int, result_done: ResultDone) -> Any:
        yield gen.sleep(0)
        self.seen.append(result)

    def by_hand(self, result: int, result_done: ResultDone) -> None:
        self.seen.append(result)
        result_done()

    async def by_hand_in_coroutine(self, result: int, result_done: ResultDone) -> None:
        await asyncio.sleep(0)
        self.seen.append(result)
        result_done()

    def later(self, result: int, result_done: ResultDone) -> None:
        self.seen.append(result)
        asyncio.get_running_loop().call_later(0.001, result_done)

    def in_a_task(self, result: int, result_done: ResultDone) -> None:
        self.task = asyncio.create_task(self.by_hand_in_coroutine(result, result_done))

    @property
    def function(self) -> Any:
        @task_done
        def handler(result: int, result_done: ResultDone) -> None:
            self.seen.append(result)

        return handler

    @property
    def coroutine(self) -> Any:
        @task_done
        async def handler(result: int, result_done: ResultDone) -> None:
            await asyncio.sleep(0)
            self.seen.append(result)

        return handler

    @property
    def gen_coroutine(self) -> Any:
        @task_done
        @gen.coroutine
        def handler(result: int, result_done: ResultDone) -> Any:
            yield gen.sleep(0)
            self.seen.append(result)

        return handler


HANDLERS = [name for name in vars(Handlers) if not name.startswith('_')]


@pytest.mark.parametrize('name', HANDLERS)
async def test_a_result_that_is_done_gives_its_credit_back(context: str, name: str) -> None:
    handlers = Handlers()
    pool = Pool(pool_size=1, worker_class=Echo, context=context, max_results=1)
    pool.process_message = getattr(handlers, name)
    async with pool:
        for number in range(5):
            pool.put_nowait(number)
    # With credit for one, each comes only after the one before was done.
    assert handlers.seen == [0, 1, 2, 3, 4]
    assert pool.statistics().results_pending == 0


class OwnPool(Pool[Any, Any]):
    seen: list[Any]

    @task_done
    async def process_message(self, result: Any, result_done: ResultDone) -> None:
        await asyncio.sleep(0)
        self.seen.append(result)

    def process_failure(self, task: Any, error: BaseException) -> None:
        self.seen.append((task, type(error)))


async def test_the_handlers_may_be_defined_in_a_subclass(context: str) -> None:
    pool = OwnPool(pool_size=1, worker_class=Unloadable, context=context)
    pool.seen = []
    async with pool:
        pool.put_nowait('fine')
        pool.put_nowait('fail')
    assert sorted(pool.seen, key=str) == [('fail', LookupError), 'fine']


class Unloadable(Worker[str, Any]):
    '''Gives, on demand, results that can't be loaded.'''

    @task_done
    def _process_message(self, message: str) -> None:
        if message == 'fail':
            raise LookupError(message)
        self._put_nowait(Trap() if message == 'trap' else message)


class Trap:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    raise LookupError('this result does not load')


class Stumbling:
    '''Handlers that fail, in every way but for one result.'''

    def __init__(self) -> None:
        self.seen: list[str] = []

    def _stumble(self, result: str, result_done: ResultDone) -> None:
        self.seen.append(result)
        match result:
            case 'raise':
                raise LookupError(result)
            case 'cancel':
                raise asyncio.CancelledError
            case 'done and raise':
                result_done()
                raise LookupError(result)
        result_done()

    def plain(self, result: str, result_done: ResultDone) -> None:
        self._stumble(result, result_done)

    async def coroutine(self, result: str, result_done: ResultDone) -> None:
        await asyncio.sleep(0)
        self._stumble(result, result_done)


@pytest.mark.parametrize('kind', ['plain', 'coroutine'])
@pytest.mark.parametrize('how', ['raise', 'cancel', 'done and raise', 'trap'])
async def test_a_handler_that_fails_is_logged_and_costs_no_credit(
    context: str, logs: LogGuard, how: str, kind: str
) -> None:
    lines = logs.expect('LookupError|CancelledError')
    handlers = Stumbling()
    pool = Pool(pool_size=1, worker_class=Unloadable, context=context, max_results=1)
    pool.process_message = getattr(handlers, kind)
    async with pool:
        for message in (how, how, 'fine'):
            pool.put_nowait(message)
    assert handlers.seen[-1] == 'fine'
    assert pool.statistics().results_pending == 0
    assert len(lines) == 2


async def test_result_done_twice_is_a_value_error(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Echo, context=context)
    errors: list[ValueError] = []

    def process_message(result: Any, result_done: ResultDone) -> None:
        result_done()
        try:
            result_done()
        except ValueError as error:
            errors.append(error)

    pool.process_message = process_message
    async with pool:
        pool.put_nowait(1)
    assert len(errors) == 1 and pool.statistics().results_pending == 0


async def test_stop_waits_for_the_handlers_of_results(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Echo, context=context)
    seen = []

    @task_done
    async def process_message(result: Any, result_done: ResultDone) -> None:
        while pool.state != 'stopping':
            await asyncio.sleep(0)
        seen.append(result)

    pool.process_message = process_message
    async with pool:
        pool.put_nowait(1)
    assert seen == [1]


class Ponderous:
    '''Takes longer to load than the pool stays at loading in one turn of its loop.'''

    def __reduce__(self) -> Any:
        return time.sleep, (0.01,)


class GivesPonderous(Worker[int, Any]):
    @task_done
    def _process_message(self, count: int) -> None:
        for _ in range(count):
            self._put_nowait(Ponderous())


async def test_stop_ends_when_the_last_result_was_taken_in(context: str) -> None:
    async with Pool(pool_size=1, worker_class=GivesPonderous, context=context, stop_timeout=None) as pool:
        pool.put_nowait(5)
        async with asyncio.timeout(20):
            await pool.stop()
    assert await rest_of(pool) == [None] * 5


# The pool's side: results()


async def test_results_are_iterated_over_while_they_come(context: str) -> None:
    async with Pool(pool_size=1, worker_class=Echo, context=context, max_results=2) as pool:
        pool.put_nowait(0)
        async for result in pool.results():
            if result == 100:
                break
            pool.put_nowait(result + 1)
    assert await rest_of(pool) == []


async def test_several_may_iterate_and_each_result_goes_to_one_of_them(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Echo, context=context, max_results=4)
    await pool.start()
    consumers = [asyncio.create_task(rest_of(pool)) for _ in range(3)]
    for number in range(90):
        await pool.put(number)
    await pool.stop()
    shares = [await consumer for consumer in consumers]
    assert sorted(result for share in shares for result in share) == list(range(90))
    assert all(share == sorted(share) for share in shares)


async def test_a_cancelled_consumer_loses_no_result(context: str) -> None:
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        consumer = asyncio.create_task(rest_of(pool))
        await asyncio.sleep(0)
        consumer.cancel()
        for number in range(10):
            pool.put_nowait(number)
    assert await rest_of(pool) == list(range(10))


async def test_results_of_a_pool_that_was_never_started_end_when_it_is_stopped() -> None:
    pool = Pool(pool_size=1, worker_class=Echo)
    await pool.stop()
    assert await rest_of(pool) == []
