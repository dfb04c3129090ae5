"""Running one contender in a process tree of its own, within a time limit, and ending that whole tree.

Rules:

1. Each run is a fresh interpreter in a session of its own, so that no contender disturbs the next one.
2. Output goes to files: a worker that outlives the contender can't hold a pipe open.
3. The tree is ended by the id of the process that was started, before that process is reaped: until then no other
   process can have got its id.
"""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from benchmarks.load import Load, Values

__all__ = ['ORIGINAL_FOLDER', 'Failed', 'NotInstalled', 'run']

ORIGINAL_FOLDER = Path(sys.prefix) / 'benchmarks-looppool-0.4.0'
'''Where ``python -m benchmarks setup`` puts the original; inside the environment, gone with it.'''

_ROOT = Path(__file__).parent.parent
_ORIGINAL_MODULE = 'benchmarks.peers.original'


class Failed(Exception):
    '''A contender gave no values; the text says why in a few words.'''


class NotInstalled(Failed):
    """A module that the contender needs can't be found; another try won't find it either."""


def run(module: str, job: str, load: Load, timeout: float) -> Values:
    """Run one job of a contender in a fresh interpreter.

    Args:
        module: name of the contender's module.
        job: name of the function in it.
        load: what it is asked to do.
        timeout: seconds until the contender and all its processes are killed.

    Raises:
        Failed: it isn't installed, failed, or ran out of time.
    """
    command = [sys.executable, '-P', '-m', 'benchmarks.child', module, job, json.dumps(asdict(load))]
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
        with _session(command, _environment(module), out, err) as process:
            ended = _wait(process.pid, timeout)
        if not ended:
            raise Failed(f'failed: no answer within {timeout:.0f} s; {_last_line(err)}')
        if process.returncode:
            raise Failed(f'failed: exit code {process.returncode}; {_last_line(err)}')
        return _values(_text(out))


def _environment(module: str) -> dict[str, str]:
    """Return the variables of a contender: its own imports first, its own environment's scripts first."""
    paths = [str(_ROOT)]
    if module == _ORIGINAL_MODULE:
        if not ORIGINAL_FOLDER.is_dir():
            raise NotInstalled('not installed: python -m benchmarks setup')
        paths.insert(0, str(ORIGINAL_FOLDER))
    scripts = sysconfig.get_path('scripts')
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(paths),
        'PATH': os.pathsep.join([scripts, os.environ.get('PATH', os.defpath)]),
    }


@contextmanager
def _session(
    command: Sequence[str], environment: dict[str, str], out: IO[str], err: IO[str]
) -> Iterator['subprocess.Popen[str]']:
    '''Start *command* as the leader of a session; at the end kill the session and reap the leader.'''
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment, cwd=_ROOT, start_new_session=True,
        text=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(pid: int, timeout: float) -> bool:
    '''Wait until the child *pid* has ended, without reaping it; return False when time ran out.'''
    deadline = time.monotonic() + timeout
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _last_line(file: IO[str]) -> str:
    lines = _text(file).split('\n')
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), 'nothing on stderr')


def _values(out: str) -> Values:
    answer = json.loads(out.strip().splitlines()[-1])
    if 'missing' in answer:
        raise NotInstalled(f'not installed: {answer["missing"]}')
    values: Values = answer['values']
    return values
