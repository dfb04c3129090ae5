'''A task that blocks its worker's loop: its stack is logged meanwhile, and nobody else is disturbed.'''

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import started
from workers import Forgiving

from .observed import ObservedPool, until

THRESHOLD = 0.1


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[str]:
    '''A named pipe that blocks its readers until it is opened by `unblock`.'''
    path = tmp_path / 'fifo'
    os.mkfifo(path)
    yield str(path)


async def unblock(fifo: str) -> None:
    await until(lambda: _opened(fifo))


def _opened(fifo: str) -> bool:
    '''Open and close it, if there is somebody who reads it.'''
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


async def test_hook_gets_the_blocking_stack_while_it_blocks(context: str, fifo: str, tmp_path: Path) -> None:
    report = tmp_path / 'report'
    async with ObservedPool(
        context=context, worker_class=Forgiving, options={'report': str(report)}, blocking_threshold=THRESHOLD
    ) as pool:
        pool.put_nowait(('wait_for', fifo), worker_num=0)
        await until(report.exists)
        seconds, stack = report.read_text().split('\n', 1)
        assert float(seconds) >= THRESHOLD
        assert 'in wait_for\n' in stack
        assert 'read_bytes()' in stack
        assert pool.statistics().done == 0  # It still blocks.
        await unblock(fifo)
        await until(lambda: pool.statistics().done == 1)
        await pool.works()


async def test_others_are_not_affected(context: str, fifo: str) -> None:
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('wait_for', fifo), worker_num=0)
        for number in range(100):
            await pool.put(('echo', number), worker_num=1)
        assert await pool.take(100) == list(range(100))
        statistics = pool.statistics()
        assert [member.in_flight for member in statistics.members] == [1, 0]
        await unblock(fifo)
        await pool.works()


async def test_tasks_wait_behind_the_block_and_run_after_it(context: str, fifo: str) -> None:
    async with ObservedPool(context=context, pool_size=1) as pool:
        pool.put_nowait(('wait_for', fifo))
        for number in range(10):
            pool.put_nowait(('echo', number))
        await unblock(fifo)
        assert await pool.take(10) == list(range(10))


async def test_heartbeat_stands_still(context: str, fifo: str) -> None:
    async with ObservedPool(context=context, heartbeat_timeout=60) as pool:
        pool.put_nowait(('wait_for', fifo), worker_num=0)
        await until(lambda: _heartbeat(pool, 0) > 1.5 > _heartbeat(pool, 1))
        await unblock(fifo)
        await until(lambda: _heartbeat(pool, 0) < 1.5)


def _heartbeat(pool: ObservedPool, number: int) -> float:
    age = pool.statistics().members[number].heartbeat
    assert age is not None
    return age


async def test_idle_loop_is_not_called_blocked(context: str, tmp_path: Path) -> None:
    report = tmp_path / 'report'
    async with ObservedPool(
        context=context, worker_class=Forgiving, options={'report': str(report)}, blocking_threshold=0.3
    ) as pool:
        await pool.heartbeats(4)
        assert not report.exists()


async def test_without_a_hook_it_is_logged(context: str, fifo: str) -> None:
    '''In a program of its own, without a logging configuration: the warning stands on its stderr.'''
    async with started(sys.executable, '-c', BLOCKED, context, fifo) as command:
        said = ''
        assert command.process.stderr is not None
        while 'in read_bytes' not in said:
            line = await command.process.stderr.readline()
            assert line, said
            said += line.decode()
        await unblock(fifo)
        assert await command.ended() == 0
    first, *stack = said.splitlines()
    assert first.startswith('worker 0 (pid ')
    assert "of pool 'pool': the loop is blocked for 0." in first
    assert any('in block' in line for line in stack)


BLOCKED = '''
import asyncio, pathlib, sys
import looppool

class Blocker(looppool.Worker):
    @looppool.task_done
    def _process_message(self, fifo):
        self.block(fifo)

    def block(self, fifo):
        pathlib.Path(fifo).read_bytes()

async def main():
    async with looppool.Pool(None, 1, Blocker, context=sys.argv[1], blocking_threshold=0.1) as pool:
        await pool.put(sys.argv[2])

asyncio.run(main())
'''
