'''No orphans: however the parent ends, its workers and its fork server are gone within a second.'''

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from command import started
from conftest import LogGuard
from workers import Nest

from .observed import ObservedPool, Watch, kill
from .parents import PARENT, TESTS, parent

GONE = 1.0
'''Seconds that the design allows.'''


@pytest.mark.parametrize('signum', [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda s: s.name)
async def test_killed_with_idle_workers(context: str, signum: signal.Signals) -> None:
    async with parent(context, 'wait', 'idle') as (command, watch):
        os.kill(command.process.pid, signum)
        assert not watch.survivors(GONE)


@pytest.mark.parametrize('work', ['busy', 'stopped', 'held'])
async def test_killed_with_working_workers(context: str, work: str) -> None:
    async with parent(context, 'wait', work) as (command, watch):
        assert await command.line() == work + '\n'
        command.process.kill()
        assert not watch.survivors(GONE)


@pytest.mark.parametrize('work', ['lent', 'lent and busy'])
async def test_killed_while_another_process_holds_its_descriptors(context: str, work: str) -> None:
    async with parent(context, 'wait', work) as (command, watch):
        with Watch([int(await command.line())]) as holder:
            if 'busy' in work:
                assert await command.line() == 'busy\n'
            command.process.kill()
            assert not watch.survivors(GONE)
            assert holder.alive()


@pytest.mark.parametrize('work', ['idle', 'busy', 'held'])
async def test_leaving_without_a_stop(context: str, work: str, tmp_path: Path) -> None:
    '''The interpreter of the parent ends in good order, but nobody has stopped the pool.'''
    go = tmp_path / 'go'
    async with parent(context, 'leave', work, '/no/such/file', str(go)) as (command, watch):
        if work != 'idle':
            assert await command.line() == work + '\n'
        go.touch()
        assert await command.ended() == 0
        assert not watch.survivors(GONE)
        assert 'Traceback' not in command.errors


async def test_nested_pool_works(context: str) -> None:
    async with ObservedPool(context=context, worker_class=Nest, options={'context': context}, pool_size=1) as pool:
        for _ in range(4):
            await pool.put(('who',))
        inner = {pid for _, pid, _ in await pool.take(4)}
        assert len(inner) == 2
        assert not inner & {os.getpid(), pool.members[0].pid}


async def test_nested_pool_is_killed_with_its_parent(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(context=context, worker_class=Nest, options={'context': context}, pool_size=1) as pool:
        for _ in range(2):
            await pool.put(('who',))
        with Watch([pid for _, pid, _ in await pool.take(2)]) as watch:
            assert len(watch.alive()) == 2
            kill(pool.members[0].pid)
            assert not watch.survivors(GONE)
        await pool.replaced()
        await pool.put(('echo', 'again'))
        assert await pool.result() == 'again'


async def test_nested_pool_is_killed_with_its_grandparent(context: str) -> None:
    async with started(sys.executable, PARENT, context, 'nested', 'idle', PYTHONPATH=str(TESTS)) as command:
        await command.line()
        family = [child.pid for child in psutil.Process(command.process.pid).children(recursive=True)]
        assert len(family) == 6 + 3 * (context == 'forkserver')
        with Watch(family) as watch:
            command.process.kill()
            assert not watch.survivors(GONE)
