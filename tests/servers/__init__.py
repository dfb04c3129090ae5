'''Real servers for the tests, each started on the loopback interface by its own module and ended by its process id.'''

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

__all__ = ['find', 'running']


def find(part: str) -> Path:
    '''Where `part` of the folder LOOPPOOL_TEST_SERVERS is; without it, skip the test and say what to do.'''
    folder = os.environ.get('LOOPPOOL_TEST_SERVERS')
    if not folder:
        pytest.skip('LOOPPOOL_TEST_SERVERS is not set: run .ci/servers to install them')
    path = Path(folder, part).absolute()
    if not path.exists():
        pytest.skip(f'{path} is missing: run .ci/servers to install them')
    return path


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    '''Run a server with its output in the file `log`; in the end terminate it, and kill it after 10 seconds.'''
    with log.open('wb') as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
