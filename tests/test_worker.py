'''`Worker`: its hooks, its threads and its errors, for every start method.'''

import asyncio
import os
import re
from typing import Any

import pytest
from conftest import LogGuard
from harness import Failures, on_each_loop, run
from tornado import gen

import looppool
from looppool import Pool, Worker, task_done

# Its hooks


class Plain(Worker[Any, Any]):
    def _initialise(self, **options: Any) -> Any:
        self._put_nowait(('initialised', options, self._options, self._number, self._pool_name))

    @task_done
    async def _process_message(self, message: Any) -> None:
        await asyncio.sleep(0)
        self._put_nowait(message)

    def _finalise(self) -> Any:
        self._put_nowait('finalised')


class Asynchronous(Plain):
    async def _initialise(self, **options: Any) -> None:
        await asyncio.sleep(0)
        super()._initialise(**options)

    async def _finalise(self) -> None:
        await asyncio.sleep(0)
        super()._finalise()


@on_each_loop
@pytest.mark.parametrize('worker_class', [Plain, Asynchronous])
async def test_initialise_comes_before_all_tasks_and_finalise_after_them(
    context: str, worker_class: type[Worker[Any, Any]]
) -> None:
    options = {'depth': 3, 'agent': 'x'}
    results, _ = await run(worker_class, 1, 2, 3, context=context, options=options, name='mill')
    assert results == [('initialised', options, options, 0, 'mill'), 1, 2, 3, 'finalised']


class OwnInit(Worker[Any, Any]):
    def __init__(self) -> None:
        self.seen = (self._number, self._options, self._pool_name, type(self._ioloop).__name__)

    @task_done
    def _process_message(self, _message: None) -> None:
        self._put_nowait(self.seen)


async def test_its_attributes_are_there_before_its_own_init(context: str) -> None:
    results, _ = await run(OwnInit, None, context=context, options={'a': 1})
    assert results == [(0, {'a': 1}, 'pool', 'AsyncIOMainLoop')]


class BadEnd(Plain):
    def _finalise(self) -> None:
        super()._finalise()
        raise LookupError('no such end')


async def test_a_finalise_that_raises_is_logged_and_loses_nothing(
    context: str, capfd: pytest.CaptureFixture[str]
) -> None:
    results, failures = await run(BadEnd, 1, context=context)
    assert results[1:] == [1, 'finalised'] and not failures
    if context != 'fork':  # A forked worker has the log handlers of this test.
        error = capfd.readouterr().err
        assert 'LookupError: no such end' in error and '_finalise of worker 0 raised' in error


async def test_a_worker_without_process_message_says_what_to_do(context: str) -> None:
    _, [(task, error)] = await run(Worker, 5, context=context)
    assert task == 5 and isinstance(error, NotImplementedError)
    assert 'override it in your Worker' in str(error)


# Threads


class Threaded(Worker[Any, Any]):
    async def _process_message(self, method: str) -> None:
        try:
            await self._in_thread(method)
        except Exception as error:
            self._put_nowait((type(error), str(error)))
        self._task_done()

    async def _in_thread(self, method: str) -> None:
        match method:
            case '_put_nowait':
                await self._ioloop.run_in_executor(None, self._put_nowait, 1)
            case '_put':
                await self._ioloop.run_in_executor(None, asyncio.run, self._put(1))
            case '_task_done':
                await self._ioloop.run_in_executor(None, self._task_done)
            case '_task_done with context':
                await asyncio.to_thread(self._task_done)
            case 'add_callback':
                await self._ioloop.run_in_executor(None, self._ioloop.add_callback, self._put_nowait, 'called back')
                await asyncio.sleep(0)


class DoneFromThread(Worker[Any, Any]):
    '''Works in a thread that asyncio lends the task's context, and says from there that the task is done.'''

    def _process_message(self, message: str) -> None:
        self._working = asyncio.create_task(asyncio.to_thread(self._work, message))

    def _work(self, message: str) -> None:
        self._ioloop.add_callback(self._put_nowait, message)
        self._ioloop.add_callback(self._task_done)


@pytest.mark.parametrize('method', ['_put_nowait', '_put', '_task_done', '_task_done with context'])
async def test_another_thread_is_told_to_use_add_callback(context: str, method: str) -> None:
    [(kind, text)], _ = await run(Threaded, method, context=context)
    assert kind is RuntimeError and 'self._ioloop.add_callback' in text


async def test_another_thread_may_use_add_callback(context: str) -> None:
    results, failures = await run(Threaded, 'add_callback', context=context)
    assert results == ['called back'] and not failures


async def test_a_thread_of_asyncio_may_end_its_task_through_add_callback(context: str) -> None:
    results, failures = await run(DoneFromThread, 1, 2, context=context, concurrency=1)
    assert results == [1, 2] and not failures


# Errors


class Failing(Worker[Any, Any]):
    def _task_failed(self, error: BaseException) -> None:
        self._put_nowait(('_task_failed', str(error)))

    def _process_message(self, message: str) -> Any:
        match message:
            case 'plain':
                raise LookupError(message)
            case 'coroutine':
                return self._fail_later(message)
            case 'gen.coroutine':
                return self._fail_in_gen(message)
            case 'pid':
                self._put_nowait(os.getpid())
                self._task_done()

    @task_done
    async def _fail_later(self, message: str) -> None:
        await asyncio.sleep(0)
        raise LookupError(message)

    @task_done
    @gen.coroutine
    def _fail_in_gen(self, message: str) -> Any:
        yield gen.sleep(0)
        raise LookupError(message)


@pytest.mark.parametrize('message', ['plain', 'coroutine', 'gen.coroutine'])
async def test_an_error_ends_its_task_and_leaves_the_worker_usable(context: str, message: str) -> None:
    [pid, reported, again], [(task, error)] = await run(Failing, 'pid', message, 'pid', context=context, concurrency=1)
    assert again == pid and reported == ('_task_failed', message)
    assert task == message and isinstance(error, LookupError) and error.args == (message,)
    assert isinstance(error.__cause__, looppool.RemoteError)
    assert 'test_worker.py' in error.__cause__.traceback and 'raise LookupError(message)' in error.__cause__.traceback
    assert error.__notes__ == [f"raised in worker 0 (pid {pid}) of pool 'pool'"]


async def test_a_failure_is_logged_with_the_remote_traceback_by_default(context: str, logs: LogGuard) -> None:
    lines = logs.expect('LookupError')
    async with Pool(pool_size=1, worker_class=Failing, context=context) as pool:
        pool.put_nowait('plain')
    [line] = lines
    assert line.startswith("ERROR:looppool:task 'plain' failed: plain\n")
    assert re.search(r'File ".*test_worker.py", line \d+, in _process_message', line)


async def test_process_failure_may_be_a_coroutine_and_stop_waits_for_it(context: str) -> None:
    failures: Failures = []

    async def process_failure(task: Any, error: BaseException) -> None:
        await asyncio.sleep(0.01)
        failures.append((task, error))

    pool = Pool(pool_size=1, worker_class=Failing, context=context)
    pool.process_failure = process_failure
    async with pool:
        pool.put_nowait('plain')
    assert [(task, type(error)) for task, error in failures] == [('plain', LookupError)]
