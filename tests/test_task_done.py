'''When a task is done, how many are open, and in which order they begin, for every start method.'''

import asyncio
import contextvars
import os
from typing import Any

import pytest
from harness import run
from tornado import gen

from looppool import Worker, task_done

# When a task is done


class Stepwise(Worker[Any, Any]):
    '''Tells when each task begins and ends.'''

    def _begin(self, message: int) -> None:
        self._put_nowait(('begin', message))

    def _end(self, message: int) -> None:
        self._put_nowait(('end', message))


class Function(Stepwise):
    @task_done
    def _process_message(self, message: int) -> None:
        self._begin(message)
        self._end(message)


class Coroutine(Stepwise):
    @task_done
    async def _process_message(self, message: int) -> None:
        self._begin(message)
        await asyncio.sleep(0)
        self._end(message)


class GenCoroutine(Stepwise):
    @task_done
    @gen.coroutine
    def _process_message(self, message: int) -> Any:
        self._begin(message)
        yield gen.sleep(0)
        self._end(message)


class GenCoroutineThatNeverYields(Stepwise):
    @task_done
    @gen.coroutine
    def _process_message(self, message: int) -> Any:
        self._begin(message)
        self._end(message)


class InheritedFunction(Function):
    '''The decorator of the method that it calls counts.'''

    def _process_message(self, message: int) -> None:
        super()._process_message(message)


class InheritedCoroutine(Coroutine):
    async def _process_message(self, message: int) -> None:
        await super()._process_message(message)


class ByHand(Stepwise):
    def _process_message(self, message: int) -> None:
        self._begin(message)
        self._end(message)
        self._task_done()


class ByHandInCoroutine(Stepwise):
    async def _process_message(self, message: int) -> None:
        self._begin(message)
        await asyncio.sleep(0)
        self._end(message)
        self._task_done()


class Later(Stepwise):
    def _process_message(self, message: int) -> Any:
        self._begin(message)
        self._schedule(message)

    def _schedule(self, message: int) -> None:
        raise NotImplementedError

    def _end(self, message: int) -> None:
        super()._end(message)
        self._task_done()


class Callback(Later):
    def _schedule(self, message: int) -> None:
        self._ioloop.add_callback(self._end, message)


class Timer(Later):
    def _schedule(self, message: int) -> None:
        self._ioloop.call_later(0.001, self._end, message)


class AsyncioTimer(Later):
    def _schedule(self, message: int) -> None:
        asyncio.get_running_loop().call_later(0.001, self._end, message)


class FutureCallback(Later):
    def _schedule(self, message: int) -> None:
        future = self._ioloop.run_in_executor(None, os.getpid)
        self._ioloop.add_future(future, lambda _: self._end(message))


class AsyncioTask(Later):
    def _schedule(self, message: int) -> None:
        self._task = asyncio.create_task(self._later(message))

    async def _later(self, message: int) -> None:
        await asyncio.sleep(0)
        self._end(message)


class TaskOfCoroutine(Later):
    async def _process_message(self, message: int) -> None:
        self._begin(message)
        await asyncio.sleep(0)
        self._task = asyncio.create_task(self._later(message))

    async def _later(self, message: int) -> None:
        await asyncio.to_thread(os.getpid)
        self._end(message)


DONE_BY = [
    Function, Coroutine, GenCoroutine, GenCoroutineThatNeverYields, InheritedFunction, InheritedCoroutine,
    ByHand, ByHandInCoroutine,
    Callback, Timer, AsyncioTimer, FutureCallback, AsyncioTask, TaskOfCoroutine,
]  # fmt: skip


@pytest.mark.parametrize('worker_class', DONE_BY)
async def test_a_task_is_open_until_it_is_done(context: str, worker_class: type[Worker[Any, Any]]) -> None:
    results, failures = await run(worker_class, 1, 2, 3, context=context, concurrency=1)
    # One at a time: the next begins only when the one before is done.
    assert results == [(step, number) for number in (1, 2, 3) for step in ('begin', 'end')]
    assert not failures


class Careless(Worker[Any, Any]):
    def _process_message(self, how: str) -> Any:
        return getattr(self, how)()

    def finally_done(self) -> None:
        try:
            raise LookupError('plain')
        finally:
            self._task_done()

    async def finally_done_in_coroutine(self) -> None:
        try:
            await asyncio.sleep(0)
            raise LookupError('coroutine')
        finally:
            self._task_done()

    def caught(self) -> None:
        try:
            raise LookupError('nobody sees this')
        except LookupError:
            self._task_done()

    async def caught_in_coroutine(self) -> None:
        try:
            raise LookupError('nobody sees this')
        except LookupError:
            self._task_done()
            await asyncio.sleep(0)


@pytest.mark.parametrize('how', ['finally_done', 'finally_done_in_coroutine'])
async def test_done_in_a_finally_while_raising_is_one_failure(context: str, how: str) -> None:
    _, failures = await run(Careless, how, context=context)
    assert [(task, type(error)) for task, error in failures] == [(how, LookupError)]


@pytest.mark.parametrize('how', ['caught', 'caught_in_coroutine'])
async def test_done_in_an_except_is_done(context: str, how: str) -> None:
    _, failures = await run(Careless, how, context=context)
    assert not failures


class Misuse(Worker[Any, Any]):
    '''Calls _task_done where it may not, and tells what that raises.'''

    def _initialise(self) -> None:
        self._try('initialise')
        self._ioloop.add_callback(self._try, 'callback of initialise')

    async def _process_message(self, message: str) -> None:
        self._task_done()
        self._try(message)
        # The next task may be open now, and is none of this one's business.
        await asyncio.sleep(0)
        self._try(message)

    def _finalise(self) -> None:
        self._try('finalise')

    def _try(self, where: str) -> None:
        try:
            self._task_done()
        except Exception as error:
            self._put_nowait((where, type(error)))


async def test_done_twice_is_a_value_error_and_done_outside_a_task_a_runtime_error(context: str) -> None:
    results, failures = await run(Misuse, 'first', 'second', context=context)
    assert not failures
    assert sorted(set(results), key=results.index) == [
        ('initialise', RuntimeError),
        ('callback of initialise', RuntimeError),
        ('first', ValueError),
        ('second', ValueError),
        ('finalise', RuntimeError),
    ]
    assert results.count(('first', ValueError)) == results.count(('second', ValueError)) == 2


variable: contextvars.ContextVar[int | None] = contextvars.ContextVar('variable', default=None)


class SetsVariable(Worker[Any, Any]):
    @task_done
    def _process_message(self, message: int) -> Any:
        self._put_nowait(variable.get())
        variable.set(message)

    def _finalise(self) -> None:
        self._put_nowait(variable.get())


class SetsVariableInCoroutine(SetsVariable):
    @task_done
    async def _process_message(self, message: int) -> None:
        self._put_nowait(variable.get())
        variable.set(message)
        await asyncio.sleep(0)
        assert variable.get() == message


@pytest.mark.parametrize('worker_class', [SetsVariable, SetsVariableInCoroutine])
async def test_context_variables_stay_within_their_task(context: str, worker_class: type[Worker[Any, Any]]) -> None:
    results, failures = await run(worker_class, *range(6), context=context)
    assert results == [None] * 7 and not failures


class DoneTwice(Worker[Any, Any]):
    @task_done
    def _process_message(self, _message: None) -> None:
        self._task_done()


async def test_an_error_after_done_is_logged_and_no_failure(context: str, capfd: pytest.CaptureFixture[str]) -> None:
    _, failures = await run(DoneTwice, None, context=context)
    assert not failures
    if context != 'fork':  # A forked worker has the log handlers of this test.
        assert 'raised after its task was done' in capfd.readouterr().err


# How many are open, and in which order


class Gathering(Worker[Any, Any]):
    '''Its tasks end when as many are open as the options say, and tell how many were.'''

    def _initialise(self, gather: int) -> None:
        self._gather = gather
        self._now_open = 0
        self._gathered = asyncio.Event()

    @task_done
    async def _process_message(self, _message: int) -> None:
        self._now_open += 1
        if self._now_open == self._gather:
            self._gathered.set()
        await self._gathered.wait()
        self._put_nowait(self._now_open)
        await asyncio.sleep(0)
        self._now_open -= 1


async def test_concurrency_bounds_the_open_tasks(context: str) -> None:
    results, _ = await run(Gathering, *range(20), context=context, concurrency=3, options={'gather': 3})
    assert len(results) == 20 and max(results) == 3


async def test_a_worker_opens_all_its_window_by_default(context: str) -> None:
    results, _ = await run(Gathering, *range(8), context=context, max_tasks=8, options={'gather': 8})
    assert results == [8] * 8


class Ordered(Worker[Any, Any]):
    def _process_message(self, message: int) -> Any:
        if message % 2:
            return self._later(message)
        self._put_nowait(('begin', message))
        self._put_nowait(('end', message))
        self._task_done()
        return None

    @task_done
    async def _later(self, message: int) -> None:
        self._put_nowait(('begin', message))
        await asyncio.sleep(0)
        self._put_nowait(('end', message))


async def test_tasks_begin_and_results_arrive_in_the_order_put(context: str) -> None:
    alone, _ = await run(Ordered, *range(500), context=context, concurrency=1)
    assert alone == [(step, number) for number in range(500) for step in ('begin', 'end')]
