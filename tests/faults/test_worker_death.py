'''A worker that is killed, or ends itself: what fails, what moves, what waits, and what is run again.'''

import gc
import os
import signal
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from workers import Casualty, Idempotent, IdempotentHandler

import looppool
from looppool import process

from .observed import ObservedPool, Watch, kill, until

KILLED = r"^WARNING:looppool:pool 'pool': worker \d \(pid \d+\) was killed by SIGKILL\.$"


@pytest.fixture
def deaths(logs: LogGuard) -> list[str]:
    '''The warnings about workers that were killed.'''
    return logs.expect(KILLED)


async def test_idle_worker_is_replaced(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        before = pool.members[0].pid
        kill(before)
        await pool.replaced()
        assert pool.members[0].pid != before
        await pool.works()
        assert pool.failed.empty()
    assert len(deaths) == 1


async def test_puts_go_on_while_a_worker_is_replaced(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        kill(pool.members[0].pid)
        for number in range(100):
            await pool.put(('echo', number))
        assert sorted(await pool.take(100)) == list(range(100))
        assert pool.failed.empty()


async def test_death_in_a_task_fails_just_that_task(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        victim = pool.members[0].pid
        await pool.put(('hold', 'dying'), worker_num=0)
        assert await pool.result() == ('held', 'dying')
        for number in range(20):
            await pool.put(('echo', number))
        assert sorted(await pool.take(20)) == list(range(20))
        kill(victim)
        task, error = await pool.failure()
        assert task == ('hold', 'dying')
        assert isinstance(error, looppool.WorkerDied)
        assert (error.number, error.pid, error.exitcode) == (0, victim, -signal.SIGKILL)
        assert (error.signal, error.started) == ('SIGKILL', True)
        assert f'worker 0 (pid {victim}) was killed by SIGKILL. The task may have run' in str(error)
        await pool.replaced()
        await pool.works()


async def test_results_sent_before_death_are_delivered(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('put_and_die', 100), worker_num=0)
        assert await pool.take(100) == list(range(100))
        _, error = await pool.failure()
        assert (error.signal, error.started) == ('SIGKILL', True)


async def test_results_are_read_after_the_process_is_gone(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        with Watch([pool.members[0].pid]) as watch:
            pool.put_nowait(('put_and_die', 100), worker_num=0)
            pool.link(0).channel.flush()
            assert not watch.survivors(20)  # The loop is blocked meanwhile: it sees results and exit at once.
        assert await pool.take(100) == list(range(100))
        await pool.failure()
        await pool.replaced()
        await pool.works()


@pytest.mark.parametrize('context', ['fork', 'spawn'])
async def test_results_are_read_even_if_the_exit_is_told_first(
    context: str, deaths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    '''Where there is no pidfd, a thread tells of the exit, and gets ahead of what the loop has not read.'''
    monkeypatch.delattr(os, 'pidfd_open')
    async with ObservedPool(context=context) as pool:
        [teller] = [t for t in threading.enumerate() if t.name == f'looppool-wait-{pool.members[0].pid}']
        pool.put_nowait(('put_and_die', 100), worker_num=0)
        pool.link(0).channel.flush()
        teller.join(20)  # The loop is blocked meanwhile.
        assert not teller.is_alive()
        assert await pool.take(100) == list(range(100))
        _, error = await pool.failure()
        assert error.started is True
        await pool.replaced()
        await pool.works()


async def test_partial_frame_is_dropped(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('echo', 'whole'), worker_num=0)
        assert await pool.result() == 'whole'
        pool.put_nowait(('die_in_a_frame',), worker_num=0)
        for number in range(10):
            await pool.put(('echo', number))
        task, error = await pool.failure()
        assert task == ('die_in_a_frame',)
        assert (error.signal, error.started) == ('SIGKILL', True)
        assert sorted(await pool.take(10)) == list(range(10))
        await pool.replaced()
        await pool.works()


async def test_tasks_not_taken_up_move_and_none_runs_twice(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context, concurrency=1) as pool:
        survivor = pool.members[1].pid
        pool.put_nowait(('die',))
        for number in range(1, 100):
            pool.put_nowait(('who', number))  # Strict round robin: the even ones stand behind the death.
        answers = await pool.take(99)
        assert sorted(value for _, _, value in answers) == list(range(1, 100))
        assert {pid for _, pid, _ in answers} == {survivor}
        assert (await pool.failure())[0] == ('die',)
        await pool.replaced()
        await pool.works()


async def test_moved_tasks_wait_for_a_replacement_where_there_is_no_other_worker(
    context: str, deaths: list[str]
) -> None:
    async with ObservedPool(context=context, pool_size=1) as pool:
        dead = pool.members[0].pid
        pool.put_nowait(('die',))
        for number in range(50):
            pool.put_nowait(('who', number))
        answers = await pool.take(50)
        assert [value for _, _, value in answers] == list(range(50))
        assert {pid for _, pid, _ in answers} == {pool.members[0].pid} != {dead}
        assert (await pool.failure())[0] == ('die',)


async def test_moved_tasks_stay_within_the_window(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context, max_tasks=20, concurrency=1) as pool:
        await pool.put(('hold', ''), worker_num=1)
        await pool.result()
        for number in range(6):
            pool.put_nowait(('echo', number), worker_num=1)
        pool.put_nowait(('die',), worker_num=0)
        for number in range(6, 12):
            pool._roster._turn = 0  # Unaddressed, but all to the one that dies.
            pool.put_nowait(('echo', number))
        await pool.failure()
        assert pool.members[1].statistics().in_flight == 10  # Three moved, which filled it; the rest wait.
        assert pool.members[0].statistics().in_flight == 3
        assert await pool.take(3) == [9, 10, 11]
        kill(pool.members[1].pid)
        assert (await pool.failure())[0] == ('hold', '')
        assert sorted(await pool.take(9)) == list(range(9))


async def test_addressed_tasks_wait_for_the_replacement(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context, concurrency=1) as pool:
        dead = pool.members[0].pid
        pool.put_nowait(('die',), worker_num=0)
        for number in range(20):
            pool.put_nowait(('who', number), worker_num=0)
        answers = await pool.take(20)
        assert [value for _, _, value in answers] == list(range(20))
        assert {(number, pid) for number, pid, _ in answers} == {(0, pool.members[0].pid)}
        assert pool.members[0].pid != dead
        await pool.failure()
        assert pool.failed.empty()


@pytest.mark.parametrize('code', [0, 3])
async def test_exit_in_a_task_is_a_death_whatever_the_code(context: str, code: int, logs: LogGuard) -> None:
    logs.expect(rf'worker 0 \(pid \d+\) exited with code {code}\.$')
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('leave', code))
        for number in range(10):
            pool.put_nowait(('echo', number))
        _, error = await pool.failure()
        assert isinstance(error, looppool.WorkerDied)
        assert (error.exitcode, error.signal, error.started) == (code, None, True)
        assert f'exited with code {code}' in str(error)
        assert sorted(await pool.take(10)) == list(range(10))


@pytest.mark.parametrize(('verb', 'name', 'text'), [
    ('segfault', 'SIGSEGV', 'Segmentation fault'),
    ('abort', 'SIGABRT', 'Aborted'),
])  # fmt: skip
async def test_crash_names_signal_and_last_words(
    context: str, verb: str, name: str, text: str, logs: LogGuard, capfd: pytest.CaptureFixture[str]
) -> None:
    logs.expect(f'was killed by {name}')
    async with ObservedPool(context=context) as pool:
        pool.put_nowait((verb,))
        _, error = await pool.failure()
        assert error.signal == name
        assert f'was killed by {name}' in str(error)
        passed_on = capfd.readouterr().err
        assert 'these are the last words' in passed_on
        assert text in passed_on
        assert verb in passed_on  # faulthandler gave the stack.
        assert passed_on.strip().endswith(error.stderr)
        assert error.stderr and error.stderr in str(error)
        # A fork of this process has the deep stack of the test runner, whose beginning is cut off.
        assert context == 'fork' or text in error.stderr
        await pool.replaced()
        await pool.works()


async def test_only_the_end_of_a_long_stderr_is_kept(context: str, logs: LogGuard) -> None:
    logs.expect('exited with code 5')
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('say_and_leave', 'x' * 30_000 + 'the end\n', 5))
        _, error = await pool.failure()
        assert error.stderr.endswith('xthe end')
        assert len(error.stderr) < 5_000


async def test_stopped_process_is_killed_and_replaced(context: str, logs: LogGuard) -> None:
    warnings = logs.expect(r'was killed by SIGKILL \(its loop has not turned for \d')
    async with ObservedPool(context=context, heartbeat_timeout=0.5) as pool:
        frozen = pool.members[0].pid
        pool.put_nowait(('stop_itself',), worker_num=0)
        for number in range(10):
            pool.put_nowait(('echo', number))
        task, error = await pool.failure()
        assert task == ('stop_itself',)
        assert (error.pid, error.signal) == (frozen, 'SIGKILL')
        assert 'its loop has not turned' in error.reason
        assert sorted(await pool.take(10)) == list(range(10))
        await pool.replaced()
        await pool.works()
    assert len(warnings) == 1


async def test_idle_worker_is_not_taken_for_a_stopped_one(context: str, logs: LogGuard) -> None:
    async with ObservedPool(context=context, heartbeat_timeout=1.0) as pool:
        await pool.heartbeats(5)
        assert pool.statistics().restarts == 0


async def test_retry_runs_again_what_may_have_run(context: str, deaths: list[str], tmp_path: Path) -> None:
    async with ObservedPool(context=context, retries=1) as pool:
        pool.put_nowait(('die_once', str(tmp_path / 'flag')))
        assert await pool.result() == 'survived'
        assert pool.failed.empty()
        await pool.replaced()
        await pool.works()


async def test_retries_run_out(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context, retries=2) as pool:
        pool.put_nowait(('die',))
        task, error = await pool.failure()
        assert (task, error.signal, error.started) == (('die',), 'SIGKILL', True)
        await until(lambda: all(member.state == 'ready' for member in pool.members))
        assert pool.statistics().restarts == 3
        await pool.works()


@pytest.mark.parametrize('worker_class', [Idempotent, IdempotentHandler])
async def test_idempotent_tasks_run_once_more(
    context: str, deaths: list[str], tmp_path: Path, worker_class: type[Casualty]
) -> None:
    async with ObservedPool(context=context, worker_class=worker_class) as pool:
        pool.put_nowait(('die_once', str(tmp_path / 'flag')))
        assert await pool.result() == 'survived'
        assert pool.failed.empty()
        await until(lambda: pool.statistics().done == 1)
        assert pool.statistics().restarts == 1


async def test_retained_broadcasts_reach_the_replacement_oldest_first(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        await pool.broadcast(('remember', 'old table'), retain='table')
        await pool.broadcast(('remember', 'index'), retain='index')
        await pool.broadcast(('remember', 'table'), retain='table')
        await pool.broadcast(('remember', 'news'))
        pool.put_nowait(('die',), worker_num=0)
        pool.put_nowait(('recall',), worker_num=0)
        pid, seen = await pool.result()
        assert (pid, seen) == (pool.members[0].pid, ['index', 'table'])
        pool.put_nowait(('recall',), worker_num=1)
        assert (await pool.result())[1] == ['old table', 'index', 'table', 'news']
        await pool.failure()


async def test_broadcast_while_a_worker_is_replaced_reaches_it_once(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('die',), worker_num=0)
        await pool.failure()
        assert pool.members[0].state != 'ready'
        await pool.broadcast(('remember', 'kept'), retain='key')
        await pool.broadcast(('remember', 'not kept'))
        await pool.broadcast(('recall',))
        assert sorted(seen for _, seen in await pool.take(2)) == [['kept', 'not kept']] * 2


async def test_both_workers_die_at_once(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        for member in pool.members:
            kill(member.pid)
        for number in range(20):
            await pool.put(('echo', number))
        assert sorted(await pool.take(20)) == list(range(20))
        assert pool.failed.empty()
    assert len(deaths) == 2


async def test_fork_server_dies(deaths: list[str]) -> None:
    async with ObservedPool(context='forkserver') as pool:
        before = set(process.fork_server_pids())
        for pid in before:
            kill(pid)
        for number in range(2):
            await pool.replaced(number)
        assert not before & set(process.fork_server_pids())
        await pool.works()


async def test_fork_server_freezes(logs: LogGuard) -> None:
    logs.expect('worker [01] ')
    async with ObservedPool(context='forkserver', start_timeout=2.0, max_restarts=5) as pool:
        frozen = set(process.fork_server_pids())
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            kill(pool.members[0].pid)
            pool.put_nowait(('who', 'waits for the replacement'), worker_num=0)
            assert await pool.result() == (0, pool.members[0].pid, 'waits for the replacement')
            await pool.works()
        finally:
            for pid in frozen & set(process.fork_server_pids()):
                os.kill(pid, signal.SIGCONT)


async def test_dead_process_is_reaped(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context) as pool:
        dead = pool.members[0].pid
        pool.put_nowait(('die',), worker_num=0)
        await pool.failure()
        with pytest.raises(ProcessLookupError):
            os.kill(dead or 0, 0)  # A zombie would still take it.


async def test_failure_handler_may_put_again(context: str, deaths: list[str]) -> None:
    async with ObservedPool(context=context, pool_size=1) as pool:

        def put_again(task: Any, _error: BaseException) -> None:
            pool.put_nowait(('echo', 'again'))

        pool.process_failure = put_again
        pool.put_nowait(('die',))
        assert await pool.result() == 'again'


async def test_what_was_known_of_dead_processes_is_forgotten(deaths: list[str]) -> None:
    links: weakref.WeakSet[Any] = weakref.WeakSet()
    async with ObservedPool(pool_size=1, context='fork', max_restarts=10) as pool:
        for restarts in range(1, 6):
            links.add(pool.link(0))
            kill(pool.members[0].pid)
            await pool.replaced(restarts=restarts)
        # What belongs to the last one may be under way.
        await until(lambda: gc.collect() >= 0 and len(links) <= 1)
