'''A blocked loop is told while it is blocked, with the stack that blocks it, and only its own worker is affected.'''

import asyncio
import os
import sys
from pathlib import Path

from command import ROOT, Command, started

SCRIPT = '''
import asyncio, sys
import looppool

class Blocking(looppool.Worker):
    @looppool.task_done
    def _process_message(self, message):
        if message:
            self._put_nowait('blocks')
            # What was put leaves at the end of the turn.
            self._ioloop.add_callback(self.wait_for_ever, message)
        else:
            self._put_nowait(f'worker {self._number} is fine')

    def wait_for_ever(self, fifo):
        open(fifo).close()

class Telling(Blocking):
    def _loop_blocked(self, seconds, stack):
        assert seconds > 0.3, seconds
        print('TOLD', stack.splitlines()[-1].strip(), file=sys.stderr, flush=True)

class Stumbling(Telling):
    def _loop_blocked(self, seconds, stack):
        super()._loop_blocked(seconds, stack)
        raise LookupError('this report fails')

async def main():
    context, worker_class, *fifos = sys.argv[1:]
    pool = looppool.Pool(
        pool_size=2, worker_class=globals()[worker_class], context=context, blocking_threshold=0.3, name='mill'
    )
    async with pool:
        results = pool.results()
        for fifo in fifos:
            pool.put_nowait(fifo, worker_num=0)
            print(await anext(results), flush=True)
            # The other one works meanwhile.
            pool.put_nowait(None, worker_num=1)
            print(await anext(results), flush=True)
            pool.put_nowait(None, worker_num=0)
            print(await anext(results), flush=True)
    print('restarts', pool.statistics().restarts)

asyncio.run(main())
'''


async def lines_of_block(command: Command, fifo: Path, last: str) -> list[str]:
    '''What is written to stderr while the worker is blocked, up to a line with `last`; then the worker goes on.'''
    assert (await command.line(), await command.line()) == ('blocks\n', 'worker 1 is fine\n')
    assert command.process.stderr is not None
    lines: list[str] = []
    while not lines or last not in lines[-1]:
        line = (await command.process.stderr.readline()).decode()
        assert line, lines
        lines += [line] if line.strip() else []
    # Time for a second report of the same block, if there were one: it would show among the next block's lines.
    await asyncio.sleep(0.2)
    # It is blocked until somebody opens the other end.
    os.close(await asyncio.to_thread(os.open, fifo, os.O_WRONLY))
    assert await command.line() == 'worker 0 is fine\n'
    return lines


async def run(context: str, worker_class: str, folder: Path, last: str) -> tuple[list[list[str]], Command]:
    '''Let a worker be blocked twice; returns what is written during each of both.'''
    path, fifos = folder / 'script.py', [folder / 'first', folder / 'second']
    path.write_text(SCRIPT)
    for fifo in fifos:
        os.mkfifo(fifo)
    async with started(sys.executable, path, context, worker_class, *fifos, PYTHONPATH=str(ROOT)) as command:
        blocks = [await lines_of_block(command, fifo, last) for fifo in fifos]
        assert await command.ended() == 0
        assert command.output.endswith('restarts 0\n')
        return blocks, command


async def test_a_blocked_loop_is_logged_with_its_stack_while_it_is_blocked(context: str, tmp_path: Path) -> None:
    blocks, command = await run(context, 'Blocking', tmp_path, 'open(fifo).close()')
    for lines in blocks:
        assert lines[0].startswith('worker 0 (pid ')
        assert "of pool 'mill': the loop is blocked for 0." in lines[0] and lines[0].endswith(' s by\n')
        assert any('in wait_for_ever' in line for line in lines)
        assert sum('is blocked' in line for line in lines) == 1
    assert 'is blocked' not in command.errors


async def test_a_worker_may_tell_it_itself(context: str, tmp_path: Path) -> None:
    blocks, command = await run(context, 'Telling', tmp_path, 'TOLD')
    assert blocks == [['TOLD open(fifo).close()\n']] * 2
    assert command.errors == ''


async def test_a_report_that_fails_is_logged_and_the_next_one_comes(context: str, tmp_path: Path) -> None:
    blocks, _ = await run(context, 'Stumbling', tmp_path, 'LookupError: this report fails')
    assert [lines[0] for lines in blocks] == ['TOLD open(fifo).close()\n'] * 2
