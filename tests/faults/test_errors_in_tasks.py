'''Errors that a task or a message makes: they end that task or that put, the worker lives, and no permit is lost.'''

import asyncio
import contextvars
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import LogGuard
from workers import FailsToLoad, Forgiving, TwoArguments, nested_list

import looppool

from .observed import PUTS, ObservedPool, Put


async def failure_of(pool: ObservedPool, *order: Any) -> Any:
    '''Put a task that has to fail; returns its error, after having seen that its worker is the same and works.'''
    pids = [member.pid for member in pool.members]
    pool.put_nowait(order, worker_num=0)
    task, error = await pool.failure()
    assert task[0] == order[0]
    await pool.works()
    assert [member.pid for member in pool.members] == pids
    statistics = pool.statistics()
    assert (statistics.failed, statistics.restarts) == (1, 0)
    return error


@pytest.mark.parametrize('verb', ['fail', 'fail_later'])
async def test_exception_keeps_type_text_and_remote_traceback(context: str, verb: str) -> None:
    async with ObservedPool(context=context) as pool:
        error = await failure_of(pool, verb, KeyError('missing'))
        assert type(error) is KeyError
        assert error.args == ('missing',)
        assert isinstance(error.__cause__, looppool.RemoteError)
        assert error.__cause__.type_name == 'KeyError'
        assert f'in {verb}\n' in error.__cause__.traceback
        assert error.__notes__ == [f"raised in worker 0 (pid {pool.members[0].pid}) of pool 'pool'"]


@pytest.mark.parametrize('verb', ['fail', 'fail_later'])
@pytest.mark.parametrize('leaving', [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
async def test_leaving_is_the_error_of_the_task(context: str, verb: str, leaving: BaseException) -> None:
    async with ObservedPool(context=context) as pool:
        error = await failure_of(pool, verb, leaving)
        assert type(error) is type(leaving)
        assert error.args == leaving.args


async def test_error_with_an_init_of_its_own(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        error = await failure_of(pool, 'fail_with_two_arguments')
        assert isinstance(error, TwoArguments)
        assert (str(error), error.code) == ('404: gone', 404)


async def test_group_of_errors(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        group = await failure_of(pool, 'fail_in_a_group')
        assert isinstance(group, ExceptionGroup)
        first, second = group.exceptions
        assert (type(first), first.args, first.__notes__) == (ValueError, ('first',), ['a note on the first'])
        assert (type(second), second.code) == (TwoArguments, 2)
        assert group.__notes__[0] == 'a note on the group'


async def test_error_that_can_not_travel(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        error = await failure_of(pool, 'fail_unpicklably')
        assert isinstance(error, looppool.RemoteError)
        assert (error.type_name, error.text) == ('workers.Unpicklable', 'I stay here')
        assert 'in fail_unpicklably\n' in error.traceback


async def test_memory_error(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        error = await failure_of(pool, 'allocate_too_much')
        assert type(error) is MemoryError
        assert 'in allocate_too_much\n' in error.__cause__.traceback


async def test_result_that_can_not_be_pickled(context: str) -> None:
    async with ObservedPool(context=context, max_tasks=2, max_results=2) as pool:
        error = await failure_of(pool, 'put_lock')
        assert type(error) is TypeError
        assert "cannot pickle '_thread.lock'" in str(error)
        assert 'in put_lock\n' in error.__cause__.traceback


async def test_result_too_deep_to_be_pickled(context: str) -> None:
    async with ObservedPool(context=context, max_tasks=2, max_results=2) as pool:
        error = await failure_of(pool, 'put_nested', 100_000)
        assert isinstance(error, (RecursionError, pickle.PicklingError))


async def test_result_that_can_not_be_loaded(context: str, logs: LogGuard) -> None:
    lines = logs.expect('a result of worker 0 could not be processed')
    async with ObservedPool(context=context, max_tasks=2, max_results=2) as pool:
        pool.put_nowait(('put_unloadable',), worker_num=0)
        await pool.works()
        statistics = pool.statistics()
        assert (statistics.failed, statistics.results_pending) == (0, 0)
    assert len(lines) == 1


async def test_task_that_can_not_be_loaded(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('echo', FailsToLoad()), worker_num=0)
        task, error = await pool.failure()
        # Here it can't be loaded either, so process_failure gets it as it was sent.
        assert b'not a number' in task
        assert type(error) is ValueError
        await pool.works()


async def test_several_tasks_at_once_fail_each_for_itself(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        for number in range(50):
            pool.put_nowait(('fail_later', ValueError(number)))
            pool.put_nowait(('echo', number))
        assert sorted(await pool.take(50)) == list(range(50))
        errors = [(await pool.failure())[1] for _ in range(50)]
        assert sorted(error.args for error in errors) == [(number,) for number in range(50)]


async def test_worker_is_told_of_its_failed_tasks(context: str) -> None:
    async with ObservedPool(context=context, worker_class=Forgiving) as pool:
        pool.put_nowait(('fail', ValueError('told')))
        assert await pool.result() == ('failed', "ValueError('told')")
        await pool.failure()


UNPICKLABLE: dict[str, Callable[[], Any]] = {
    'a lock': threading.Lock,
    'a context': contextvars.copy_context,
    'a generator': lambda: (number for number in range(3)),
    'too deep': lambda: nested_list(100_000),
}


@pytest.mark.parametrize('put', PUTS.values(), ids=PUTS.keys())
@pytest.mark.parametrize('make', UNPICKLABLE.values(), ids=UNPICKLABLE.keys())
async def test_message_that_can_not_be_pickled_is_the_error_of_its_put(put: Put, make: Callable[[], Any]) -> None:
    async with ObservedPool(max_tasks=2) as pool:
        with pytest.raises((TypeError, pickle.PicklingError, RecursionError)):
            outcome = put(pool, ('echo', make()))
            assert outcome is not None, 'put_nowait took it'
            await outcome
        assert pool.statistics().credits == 2
        assert pool.statistics().in_flight == 0
        await pool.works()
