'''Ctrl-C and SIGTERM: the parent drains or ends, its workers go with it and say nothing.'''

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from command import Command, started
from conftest import LogGuard
from harness import on_each_loop

import looppool

from .observed import ObservedPool, Watch, until
from .parents import PARENT, parent

OUT = 2.0
'''Seconds that a user waits after Ctrl-C.'''


async def leaves_in_time(command: Command) -> int:
    '''Returns the exit code; nothing was left behind, and nobody made noise.'''
    async with asyncio.timeout(OUT):
        code = await command.ended()
    assert 'Traceback' not in command.errors
    assert len(command.errors.splitlines()) <= 1, command.errors
    return code


@on_each_loop
@pytest.mark.parametrize('ending', ['wait', 'join', 'tornado'])
async def test_ctrl_c_with_idle_workers(context: str, ending: str) -> None:
    async with parent(context, ending, 'idle') as (command, watch):
        command.signal_group(signal.SIGINT)
        assert await leaves_in_time(command) == 128 + signal.SIGINT
        assert not watch.alive()


@pytest.mark.parametrize('ending', ['wait', 'tornado'])
@pytest.mark.parametrize('work', ['held', 'busy', 'stopped'])
async def test_ctrl_c_with_tasks_under_way(context: str, ending: str, work: str) -> None:
    async with parent(context, ending, work) as (command, watch):
        assert await command.line() == work + '\n'
        command.signal_group(signal.SIGINT)
        assert await leaves_in_time(command) == 128 + signal.SIGINT
        assert not watch.alive()


async def test_ctrl_c_while_starting(context: str) -> None:
    async with started(sys.executable, PARENT, context, 'starting', 'idle') as command:
        await command.line()
        assert [await command.line(), await command.line()] == ['held\n'] * 2
        family = [child.pid for child in psutil.Process(command.process.pid).children(recursive=True)]
        with Watch(family) as watch:
            assert len(watch.alive()) == 2 + (context == 'forkserver')
            command.signal_group(signal.SIGINT)
            assert await leaves_in_time(command) == 128 + signal.SIGINT
            assert not watch.alive()


@pytest.mark.parametrize('to_all', [False, True], ids=['to the parent', 'to all'])
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
async def test_first_signal_drains(context: str, signum: signal.Signals, to_all: bool, tmp_path: Path) -> None:
    release = tmp_path / 'release'
    async with parent(context, 'join', 'held', str(release)) as (command, watch):
        assert [await command.line(), await command.line()] == ['held\n'] * 2
        (os.killpg if to_all else os.kill)(command.process.pid, signum)
        assert await command.line() == 'stopping\n'
        assert watch.alive()
        release.touch()
        assert [await command.line(), await command.line()] == ['released\n'] * 2
        assert await command.line() == f'stopped by {int(signum)}\n'
        assert await leaves_in_time(command) == 128 + signum
        assert not watch.alive()
        assert not command.errors


@pytest.mark.parametrize('work', ['held', 'busy', 'stopped'])
async def test_second_signal_kills(context: str, work: str) -> None:
    async with parent(context, 'join', work) as (command, watch):
        for _ in range(2 if work == 'held' else 1):
            assert await command.line() == work + '\n'
        command.signal_group(signal.SIGINT)
        assert await command.line() == 'stopping\n'
        command.signal_group(signal.SIGINT)
        assert await leaves_in_time(command) == 128 + signal.SIGINT
        assert not watch.alive()


async def test_first_signal_tells_the_exit_code(context: str) -> None:
    async with parent(context, 'join', 'busy') as (command, _):
        assert await command.line() == 'busy\n'
        command.signal_group(signal.SIGTERM)
        assert await command.line() == 'stopping\n'
        command.signal_group(signal.SIGINT)
        assert await leaves_in_time(command) == 128 + signal.SIGTERM


@on_each_loop
@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT], ids=lambda signum: signum.name)
async def test_workers_stop_by_message_only(context: str, signum: signal.Signals) -> None:
    async with ObservedPool(context=context) as pool:
        await pool.put(('hold', 'on'), worker_num=0)
        await pool.result()
        for member in pool.members:
            assert member.pid is not None
            os.kill(member.pid, signum)
        await pool.put(('release', 'on'), worker_num=0)
        assert await pool.result() == ('released', 'on')
        await pool.works()
        assert pool.statistics().restarts == 0


@on_each_loop
async def test_handlers_are_removed_when_the_pool_has_stopped() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    async with ObservedPool() as pool:
        pool.stop_on_signals()
        assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] != before
    assert await pool.join() is None
    assert [signal.getsignal(signal.SIGTERM)] == [signal.SIG_DFL]


async def test_signals_of_ones_own_choice() -> None:
    pool = ObservedPool()
    await pool.start()
    pool.stop_on_signals(signal.SIGUSR1)
    await pool.put(('echo', 'done'))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await pool.join() == signal.SIGUSR1
    assert await pool.result() == 'done'


@on_each_loop
async def test_second_signal_names_the_reason(context: str) -> None:
    pool = ObservedPool(context=context)
    await pool.start()
    pool.stop_on_signals(signal.SIGUSR1)
    await pool.put(('hold', ''))
    await pool.result()
    os.kill(os.getpid(), signal.SIGUSR1)
    await until(lambda: pool.state == 'stopping')
    os.kill(os.getpid(), signal.SIGUSR1)
    assert await pool.join() == signal.SIGUSR1
    _, error = await pool.failure()
    assert isinstance(error, looppool.PoolClosed)
    assert 'was killed by a second signal (SIGUSR1)' in str(error)


async def test_program_started_by_a_worker_heeds_signals(context: str, logs: LogGuard) -> None:
    '''Workers handle the stop signals, they do not ignore them: that would be inherited.'''
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('signals_of_a_program',))
        assert await pool.result() == [-signal.SIGINT, -signal.SIGTERM]
