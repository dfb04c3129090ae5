'''Runs a real command in a session of its own, and sees that it leaves nothing behind.'''

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

import looppool

ROOT = Path(__file__).parent.parent
LOOPPOOL = [sys.executable, '-m', 'looppool']
LIMIT = 30.0  # seconds for one command
LEAVE_LIMIT = 2.0  # seconds until the last of its processes is gone


class Command:
    '''A command that runs; `output` and `errors` are what it wrote, once it has ended.'''

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ''
        self.errors = ''

    def signal_group(self, signum: signal.Signals) -> None:
        '''Signal the whole process group, as a terminal does for Ctrl-C.'''
        os.killpg(self.process.pid, signum)

    async def line(self) -> str:
        '''The next line of its output.'''
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), LIMIT)).decode()
        self.output += line
        return line

    async def ended(self) -> int:
        '''Wait for its end; returns the exit code.'''
        output, errors = await asyncio.wait_for(self.process.communicate(), LIMIT)
        self.output += output.decode()
        self.errors += errors.decode()
        assert self.process.returncode is not None
        await _all_gone(self.process.pid)
        return self.process.returncode


@contextlib.asynccontextmanager
async def started(*args: str | Path, **env: str) -> AsyncIterator[Command]:
    '''Start a command with `env` besides the environment; whatever happens, none of its processes outlives the test.'''
    path = os.pathsep.join(filter(None, [env.pop('PYTHONPATH', ''), str(Path(looppool.__file__).parent.parent)]))
    process = await asyncio.create_subprocess_exec(
        *args,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'} | env,
        start_new_session=True,
    )
    try:
        yield Command(process)
    finally:
        for pid in session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


async def run(*args: str | Path, **env: str) -> tuple[int, str, str]:
    '''Run a command to its end; returns the exit code, its output and its errors.'''
    async with started(*args, **env) as command:
        code = await command.ended()
        return code, command.output, command.errors


def session(leader: int) -> list[int]:
    '''The processes of a session that are alive.'''
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


async def _all_gone(leader: int) -> None:
    deadline = time.monotonic() + LEAVE_LIMIT
    while left := session(leader):
        assert time.monotonic() < deadline, f'left behind: {[psutil.Process(pid).cmdline() for pid in left]}'
        await asyncio.sleep(0.02)  # processes of others can only be polled
