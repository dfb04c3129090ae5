'''What the contract tests share: a run of one worker from start to end, and workers that several of them use.'''

import contextlib
import gc
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
import pytest

from looppool import Pool, Worker, task_done

Failures = list[tuple[Any, BaseException]]
ResultDone = Callable[[], None]

on_each_loop = pytest.mark.usefixtures('each_loop')
'''Marks a contract that is shown on every kind of loop, in the parent and in the workers.'''


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    '''Let this process, and what it starts, open so many more descriptors.'''
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = [os.dup(0) for _ in range(count + 1)]
    for fd in probe:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe[-1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def run(worker_class: type[Worker[Any, Any]], *messages: Any, **settings: Any) -> tuple[list[Any], Failures]:
    '''Put the messages to a pool of one worker and stop it; returns the results and the failures.'''
    pool: Pool[Any, Any] = Pool(pool_size=1, worker_class=worker_class, **settings)
    failures = failures_of(pool)
    async with pool:
        for message in messages:
            await pool.put(message)
    statistics = pool.statistics()
    assert (statistics.done, statistics.failed) == (len(messages) - len(failures), len(failures))
    return await rest_of(pool), failures


def failures_of(pool: Pool[Any, Any]) -> Failures:
    '''Have the failures of a pool collected in the list that is returned.'''
    failures: Failures = []
    pool.process_failure = lambda task, error: failures.append((task, error))
    return failures


async def rest_of(pool: Pool[Any, Any]) -> list[Any]:
    '''All results of a pool that has stopped or is about to.'''
    return [result async for result in pool.results()]


class Echo(Worker[Any, Any]):
    '''Gives each message back.'''

    @task_done
    def _process_message(self, message: Any) -> None:
        self._put_nowait(message)


class Number(Worker[Any, int]):
    '''Answers each message with its own number.'''

    @task_done
    def _process_message(self, _message: Any) -> None:
        self._put_nowait(self._number)


def gone(pids: Iterable[int], within: float = 5.0) -> None:
    '''Wait for processes of others to end.'''
    deadline = time.monotonic() + within
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f'still there: {left}'
        time.sleep(0.01)


def alive(pid: int) -> bool:
    # Who has lost its parent may stay a zombie where nobody reaps for it.
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def segments_here() -> int:
    '''How many segments of shared memory this process has, mapped or by a descriptor.'''
    gc.collect()
    with open('/proc/self/maps') as maps:
        found = {int(line.split()[4]) for line in maps if line.rstrip().endswith('/memfd:looppool (deleted)')}
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            if os.readlink(f'/proc/self/fd/{name}') == '/memfd:looppool (deleted)':
                found.add(os.stat(f'/proc/self/fd/{name}').st_ino)
    return len(found)
