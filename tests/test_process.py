'''Worker processes: how their ends are watched and told, whose children they are, and what they write to stderr.'''

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import ROOT, started
from conftest import LogGuard
from harness import Echo, failures_of, gone, on_each_loop, rest_of

import looppool
from looppool import Pool, Worker, task_done

KILLED = 'was killed by SIGKILL'


@pytest.fixture(params=['pidfd', 'thread'])
def watcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    '''Each way to learn of the end of a direct child.'''
    if request.param == 'thread':
        monkeypatch.delattr(os, 'pidfd_open', raising=False)
    elif not hasattr(os, 'pidfd_open'):
        pytest.skip('this system has no pidfd_open')
    return str(request.param)


def waiting_threads() -> int:
    return sum(thread.name.startswith('looppool-wait-') for thread in threading.enumerate())


async def kill_worker(pool: Pool[Any, Any], number: int) -> int:
    '''Kill a worker and wait until another has taken its place; returns the pid of the dead.'''
    pid = pool.members[number].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while pool.members[number].state == 'ready':
        await asyncio.sleep(0)
    await pool.put('wake', worker_num=number)
    while await anext(pool.results()) != 'wake':
        pass
    return pid


# Watching


@pytest.mark.parametrize('context', ['fork', 'spawn'])
async def test_a_dead_worker_is_noticed_and_replaced(context: str, watcher: str, logs: LogGuard) -> None:
    lines = logs.expect(KILLED)
    async with Pool(pool_size=2, worker_class=Echo, context=context) as pool:
        assert waiting_threads() == (2 if watcher == 'thread' else 0)
        dead = await kill_worker(pool, 1)
        assert pool.members[1].pid != dead and pool.statistics().restarts == 1
        assert not psutil.pid_exists(dead)
        assert waiting_threads() == (2 if watcher == 'thread' else 0)
    assert len(lines) == 1 and f'worker 1 (pid {dead})' in lines[0]


class Exits(Worker[int, Any]):
    @task_done
    def _process_message(self, code: int) -> None:
        os.write(2, b'my last words\n')
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)


@pytest.mark.parametrize('code', [0, 7, -signal.SIGKILL, -signal.SIGUSR1])
async def test_how_a_worker_ended_is_told(context: str, code: int, logs: LogGuard) -> None:
    logs.expect('worker 0 .* (was killed|exited)')
    pool = Pool(pool_size=1, worker_class=Exits, context=context)
    failures = failures_of(pool)
    async with pool:
        pid = pool.members[0].pid
        pool.put_nowait(code)
    [(task, error)] = failures
    assert isinstance(error, looppool.WorkerDied)
    assert (task, error.number, error.pid, error.exitcode, error.started) == (code, 0, pid, code, True)
    assert error.signal == (signal.Signals(-code).name if code < 0 else None)
    assert 'my last words' in error.stderr


@pytest.mark.parametrize('context', ['fork', 'spawn'])
async def test_an_application_that_reaps_every_child_is_survived(
    context: str, watcher: str, logs: LogGuard
) -> None:
    lines = logs.expect('worker 0')
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        pid = pool.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # The thread that waits may have been first.
            os.waitpid(pid, 0)
        while pool.members[0].state == 'ready':
            await asyncio.sleep(0)
        await pool.put('still here')
    assert await rest_of(pool) == ['still here']
    [line] = lines
    if watcher == 'pidfd':
        # A code that nobody has seen is not made up.
        assert 'nobody knows how' in line


async def test_children_of_the_application_keep_their_return_codes(
    context: str, watcher: str, logs: LogGuard
) -> None:
    logs.expect(KILLED)
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        with subprocess.Popen(['sleep', '60']) as popen:
            await kill_worker(pool, 0)
            assert popen.poll() is None
            popen.terminate()
            assert popen.wait() == -signal.SIGTERM
        assert subprocess.run(['false']).returncode == 1
        # One that ended before a worker did is not touched either.
        popen = subprocess.Popen(['false'])
        os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
        await kill_worker(pool, 0)
        assert popen.wait() == 1


@on_each_loop
async def test_children_of_asyncio_keep_their_return_codes(context: str, logs: LogGuard) -> None:
    logs.expect(KILLED)
    async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
        child = await asyncio.create_subprocess_exec('sleep', '60')
        try:
            await kill_worker(pool, 0)
            assert child.returncode is None
        finally:
            child.terminate()
            assert await child.wait() == -signal.SIGTERM


async def test_the_application_may_handle_sigchld_itself(context: str, logs: LogGuard) -> None:
    logs.expect(KILLED)
    told: list[int] = []

    def handler(signum: int, frame: object) -> None:
        told.append(signum)

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        async with Pool(pool_size=1, worker_class=Echo, context=context) as pool:
            await kill_worker(pool, 0)
        assert signal.getsignal(signal.SIGCHLD) is handler
        told.clear()
        subprocess.run(['true'], check=True)
        assert told
    finally:
        signal.signal(signal.SIGCHLD, before)


@on_each_loop
async def test_the_signal_handlers_and_mask_of_the_application_are_left_alone(context: str) -> None:
    def disposition() -> tuple[Any, ...]:
        handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
        return *handlers, signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = disposition()
    async with Pool(pool_size=1, worker_class=Echo, context=context):
        assert disposition() == before
    assert disposition() == before


# Standard error


class Talker(Worker[bytes, None]):
    @task_done
    def _process_message(self, data: bytes) -> None:
        with open(2, 'wb', closefd=False) as stderr:
            stderr.write(data)


async def test_what_a_worker_writes_to_stderr_is_passed_on(
    context: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = ''.join(f'line {number}\n' for number in range(30_000))
    async with Pool(pool_size=1, worker_class=Talker, context=context) as pool:
        pool.put_nowait(text.encode())
    assert capfd.readouterr().err == text


async def test_stdout_of_a_worker_is_the_parents(context: str, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(PRINTS)
    async with started(sys.executable, script, context) as command:
        assert await command.ended() == 0
        assert sorted(command.output.splitlines()) == ['from a worker', 'from the parent', 'printed before']


PRINTS = '''
import asyncio, sys
import looppool

class Printer(looppool.Worker):
    @looppool.task_done
    def _process_message(self, text):
        print(text)

async def main():
    async with looppool.Pool(pool_size=1, worker_class=Printer, context=sys.argv[1]) as pool:
        pool.put_nowait('from a worker')

print('printed before')  # Still in the buffer when a worker is forked.
asyncio.run(main())
print('from the parent')
'''


# Dying with the parent where the kernel doesn't see to it


BLOCKED = '''
import asyncio, sys, time
import looppool

class Blocked(looppool.Worker):
    def _process_message(self, message):
        self._put_nowait(message)
        if message == 'block':
            self._ioloop.call_later(0, time.sleep, 3600)

async def main():
    pool = looppool.Pool(pool_size=2, worker_class=Blocked, context=sys.argv[1])
    await pool.start()
    pool.put_nowait('block')
    await anext(pool.results())
    print(*[member.pid for member in pool.members], flush=True)
    time.sleep(3600)

asyncio.run(main())
'''

# Every interpreter imports this at its start: the script's, and those of fork servers and spawned workers.
NO_PDEATHSIG = '''
from looppool import child
child._ask_kernel = lambda: False
'''


@contextlib.asynccontextmanager
async def blocked(context: str, folder: Path, no_pdeathsig: bool) -> AsyncIterator[tuple[Callable[[], None], set[int]]]:
    '''A parent with an idle worker and one that blocks its loop; gives what kills the parent, and the workers' pids.'''
    (folder / 'script.py').write_text(BLOCKED)
    if no_pdeathsig:
        (folder / 'sitecustomize.py').write_text(NO_PDEATHSIG)
    path = os.pathsep.join([str(folder), str(ROOT)])
    async with started(sys.executable, folder / 'script.py', context, PYTHONPATH=path) as command:
        yield command.process.kill, {int(pid) for pid in (await command.line()).split()}


@pytest.mark.parametrize('no_pdeathsig', [False, True], ids=['kernel', 'thread'])
async def test_workers_die_with_their_parent_within_a_second(
    context: str, tmp_path: Path, no_pdeathsig: bool
) -> None:
    async with blocked(context, tmp_path, no_pdeathsig) as (kill_parent, pids):
        # So that the test can't pass for the wrong reason: it is a thread that watches, or there is none.
        assert {psutil.Process(pid).num_threads() for pid in pids} == {2 if no_pdeathsig else 1}
        kill_parent()
        gone(pids, within=1.0)


class Journal(Worker[int, int]):
    '''Writes down what it runs, where it outlives the worker.'''

    def _initialise(self, journal: str) -> None:
        self._journal = journal

    @task_done
    def _process_message(self, number: int) -> None:
        with open(self._journal, 'a') as journal:
            journal.write(f'{number} ')
        self._put_nowait(number)
        time.sleep(0.02)  # Long enough for the pool to see the fork server's end meanwhile.


@pytest.mark.parametrize('no_pdeathsig', [False, True], ids=['kernel', 'thread'])
async def test_no_task_runs_twice_when_the_fork_server_dies(
    tmp_path: Path, logs: LogGuard, no_pdeathsig: bool
) -> None:
    logs.expect(KILLED)
    if no_pdeathsig:
        (tmp_path / 'sitecustomize.py').write_text(NO_PDEATHSIG)
    journal = tmp_path / 'journal'
    pool: Pool[int, int] = Pool(
        pool_size=1, worker_class=Journal, context='forkserver', options={'journal': str(journal)},
        env={'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])},
    )  # fmt: skip
    failures = failures_of(pool)
    async with pool:
        worker = psutil.Process(pool.members[0].pid)
        assert worker.num_threads() == (2 if no_pdeathsig else 1)
        for number in range(40):
            pool.put_nowait(number)
        assert await anext(pool.results()) == 0
        os.kill(worker.ppid(), signal.SIGKILL)
    ran = journal.read_text().split()
    assert sorted(set(ran), key=int) == sorted(ran, key=int) == [str(number) for number in range(40)]
    assert all(isinstance(error, looppool.WorkerDied) and error.started for _, error in failures)
