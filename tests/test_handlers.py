'''`process_message`: every form of handler, when its result is done, and what it costs when it fails, for every start
method.'''

import asyncio
import time
from typing import Any

import pytest
from conftest import LogGuard
from harness import Echo, ResultDone, rest_of
from tornado import gen

from looppool import Pool, Worker, task_done


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


async def test_stop_waits_for_results_that_are_done_later(context: str) -> None:
    pool = Pool(pool_size=1, worker_class=Echo, context=context)
    events: list[str] = []
    taken = asyncio.Event()

    def process_message(result: Any, result_done: ResultDone) -> None:
        def finish() -> None:
            events.append(f'{result} is done')
            result_done()

        # Far longer than the pool needs to stop, so that one that doesn't wait is caught.
        asyncio.get_running_loop().call_later(0.4, finish)
        taken.set()

    pool.process_message = process_message
    async with pool:
        pool.put_nowait('a result')
        await taken.wait()
        await pool.stop()
        events.append('stopped')
    assert events == ['a result is done', 'stopped']


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
