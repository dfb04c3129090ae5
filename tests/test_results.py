'''Results: how many, when, and their credit on both sides, for every start method.'''

import asyncio
from typing import Any

from harness import Echo, Failures, ResultDone, failures_of, rest_of, run

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


class HasLastWords(Worker[Any, Any]):
    async def _initialise(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await self._put('last words')

    def _finalise(self) -> None:
        self._put_nowait('finalised')


async def test_what_a_worker_left_running_is_cancelled_and_may_put_its_last_words(context: str) -> None:
    results, _ = await run(HasLastWords, context=context)
    assert results == ['finalised', 'last words']


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


async def test_plain_handlers_go_beyond_the_window_of_bytes_by_one_result_at_most(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Echo, context=context, max_bytes=12_000)
    pending: list[int] = []

    @task_done
    async def process_message(result: bytes, result_done: ResultDone) -> None:
        await asyncio.sleep(0.001)
        pending.append(pool.statistics().results_pending)

    pool.process_message = process_message
    async with pool:
        for _ in range(50):
            await pool.put(bytes(4990))
    # Two results are 10 kB, and a task is taken up for a third.
    assert len(pending) == 50 and max(pending) <= 3


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
