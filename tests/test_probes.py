'''Twelve probes on which every known pool of this kind fails at least one, most of them by hanging.

Each is the short version of what `faults` tests at length, and each ends with a pool that still works, or is all gone.
'''

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import LogGuard
from faults.observed import ObservedPool, Watch
from faults.parents import parent
from harness import on_each_loop
from workers import TwoArguments

import looppool


async def test_1_worker_is_killed_during_a_task(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(context=context) as pool:
        await pool.put(('die',))
        task, error = await pool.failure()
        assert task == ('die',)
        assert isinstance(error, looppool.WorkerDied)
        assert (error.signal, error.started) == ('SIGKILL', True)
        await pool.works()


async def test_2_result_can_not_be_pickled(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        await pool.put(('put_lock',))
        _, error = await pool.failure()
        assert isinstance(error, TypeError)
        await pool.works()


async def test_3_exception_takes_two_arguments(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        await pool.put(('fail_with_two_arguments',))
        _, error = await pool.failure()
        assert isinstance(error, TwoArguments)
        assert (error.code, str(error)) == (404, '404: gone')
        await pool.works()


async def test_4_task_can_not_be_pickled(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        with pytest.raises(TypeError):
            await pool.put(('echo', sys._getframe()))
        await pool.works()


@on_each_loop
async def test_5_task_calls_sys_exit(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        before = [member.pid for member in pool.members]
        await pool.put(('fail', SystemExit('enough')))
        _, error = await pool.failure()
        assert isinstance(error, SystemExit)
        assert error.code == 'enough'
        await pool.works()
        assert [member.pid for member in pool.members] == before


async def test_6_task_raises(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        await pool.put(('fail', ValueError('plain text')))
        _, error = await pool.failure()
        assert type(error) is ValueError
        assert str(error) == 'plain text'
        assert isinstance(error.__cause__, looppool.RemoteError)
        assert 'workers.py' in error.__cause__.traceback
        assert 'in fail\n    raise error\nValueError: plain text' in error.__cause__.traceback
        await pool.works()


async def test_7_task_raises_a_group_with_notes(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        await pool.put(('fail_in_a_group',))
        _, group = await pool.failure()
        assert isinstance(group, ExceptionGroup)
        assert group.message == 'two at once'
        assert [type(error) for error in group.exceptions] == [ValueError, TwoArguments]
        assert group.exceptions[0].__notes__ == ['a note on the first']
        assert 'a note on the group' in group.__notes__
        await pool.works()


async def test_8_message_is_a_lambda(context: str) -> None:
    async with ObservedPool(context=context) as pool:
        factor = 7
        await pool.put(('echo', lambda number: factor * number))
        product = await pool.result()
        assert product(6) == 42
        await pool.works()


@on_each_loop
async def test_9_parent_is_killed_with_idle_workers(context: str) -> None:
    async with parent(context, 'wait', 'idle') as (command, watch):
        command.process.kill()
        assert not watch.survivors(1.0)


async def test_10_parent_is_killed_with_a_worker_in_a_busy_c_call(context: str) -> None:
    async with parent(context, 'wait', 'busy') as (command, watch):
        assert await command.line() == 'busy\n'
        command.process.kill()
        assert not watch.survivors(1.0)


async def test_11_ctrl_c_to_the_whole_group(context: str) -> None:
    async with parent(context, 'wait', 'held') as (command, watch):
        assert await command.line() == 'held\n'
        command.signal_group(signal.SIGINT)
        assert not watch.survivors(2.0)
        assert await command.ended() == 130
        assert 'Traceback' not in command.errors
        assert len(command.errors.splitlines()) <= 1, command.errors


@contextmanager
def fork_elsewhere() -> Iterator[None]:
    '''Another part of the program forks this process, with all that is open, for as long as the context lasts.'''
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


@on_each_loop
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
async def test_12_fork_elsewhere_while_the_pool_is_open(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(context=context) as pool:
        with fork_elsewhere(), Watch([member.pid for member in pool.members]) as watch:
            await pool.works()
            await pool.put(('die',), worker_num=0)
            assert isinstance((await pool.failure())[1], looppool.WorkerDied)
            await pool.replaced()
            await pool.works()
            await pool.stop()
            assert not watch.alive()
