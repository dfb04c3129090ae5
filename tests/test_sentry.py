'''What a worker reports to Sentry: everything once, with its tags, without values, and within a bounded time.'''

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import servers.bugsink
import servers.envelopes

import looppool
import looppool.sentry


class Reporting(looppool.Worker[str, object]):
    def _initialise(self, dsn: str | None, **options: Any) -> None:
        looppool.sentry.init(self, dsn, **options)

    @looppool.task_done
    def _process_message(self, message: str) -> None:
        fish = 'swordfish'
        getattr(self, message)(len(fish))

    def fail(self, length: int) -> None:
        raise LookupError(f'no luck with {length}')

    def log_and_fail(self, length: int) -> None:
        try:
            self.fail(length)
        except LookupError:
            logging.getLogger('app').exception('it failed')
            raise

    def block(self, length: int) -> None:
        self.seen = False
        while not self.seen:
            time.sleep(0.01)

    def _loop_blocked(self, seconds: float, stack: str) -> None:
        super()._loop_blocked(seconds, stack)
        self.seen = True

    def die(self, length: int) -> None:
        os.kill(os.getpid(), 9)


class Overriding(Reporting):
    '''Has hooks of its own.'''

    def _task_failed(self, error: BaseException) -> None:
        logging.getLogger('app').error('a task failed', exc_info=error)
        self._put_nowait(str(error))

    def _loop_blocked(self, seconds: float, stack: str) -> None:
        logging.getLogger('app').error('blocked for %s s', seconds)
        self._ioloop.add_callback(self._put_nowait, stack)
        self.seen = True


async def work(dsn: str | None, *messages: str, worker_class: Any = Reporting, **arguments: Any) -> list[Any]:
    '''Have one worker do the messages and end; the results and the pid of the worker.'''
    options = {'dsn': dsn, **arguments.pop('options', {})}
    async with looppool.Pool(
        pool_size=1, worker_class=worker_class, name='sentinel', options=options, **arguments
    ) as pool:
        results: list[Any] = [pool.members[0].pid]
        pool.process_message = looppool.task_done(lambda result, result_done: results.append(result))
        pool.process_failure = lambda task, error: None
        for message in messages:
            await pool.put(message)
    return results


@pytest.fixture
def sentry() -> Iterator[servers.envelopes.Envelopes]:
    with servers.envelopes.run() as server:
        yield server


# Errors of tasks


async def test_an_error_is_captured_once_with_its_tags(context: str, sentry: servers.envelopes.Envelopes) -> None:
    [pid] = await work(sentry.dsn, 'fail', context=context)
    [event] = sentry.events
    [error] = event['exception']['values']
    assert (error['type'], error['value']) == ('LookupError', 'no luck with 9')
    assert error['stacktrace']['frames'][-1]['function'] == 'fail'
    assert event['tags'] == {'worker': '0', 'pool': 'sentinel', 'pid': str(pid)}


async def test_each_error_is_captured(sentry: servers.envelopes.Envelopes) -> None:
    await work(sentry.dsn, 'fail', 'fail', 'fail')
    assert len(sentry.events) == 3


async def test_an_error_that_is_logged_and_raised_is_captured_once(sentry: servers.envelopes.Envelopes) -> None:
    await work(sentry.dsn, 'log_and_fail')
    [event] = sentry.events
    assert event['exception']['values'][0]['type'] == 'LookupError'
    assert event['logentry']['message'] == 'it failed'


async def test_what_the_worker_logs_is_captured_with_the_same_tags(sentry: servers.envelopes.Envelopes) -> None:
    class Logging(Reporting):
        def fail(self, length: int) -> None:
            logging.getLogger('app').error('only logged')

    [pid] = await work(sentry.dsn, 'fail', worker_class=Logging)
    [event] = sentry.events
    assert event['logentry']['message'] == 'only logged'
    assert event['tags'] == {'worker': '0', 'pool': 'sentinel', 'pid': str(pid)}


async def test_local_variables_stay_at_home_unless_asked_for(sentry: servers.envelopes.Envelopes) -> None:
    await work(sentry.dsn, 'fail')
    assert 'swordfish' not in str([frame.get('vars') for frame in _frames(sentry.events[0])])
    await work(sentry.dsn, 'fail', options={'include_local_variables': True})
    assert 'swordfish' in str([frame.get('vars') for frame in _frames(sentry.events[1])])


def _frames(event: dict[str, Any]) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = event['exception']['values'][0]['stacktrace']['frames']
    return frames


async def test_a_before_send_of_your_own_still_runs(sentry: servers.envelopes.Envelopes) -> None:
    def before_send(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any] | None:
        return None if 'luck' in str(hint['exc_info'][1]) else event

    await work(sentry.dsn, 'fail', 'no_such_method', options={'before_send': before_send})
    [event] = sentry.events
    assert event['exception']['values'][0]['type'] == 'AttributeError'


async def test_hooks_of_your_own_still_run(sentry: servers.envelopes.Envelopes) -> None:
    _, error, stack = await work(sentry.dsn, 'fail', 'block', worker_class=Overriding, blocking_threshold=0.5)
    assert error == 'no luck with 9'
    assert 'time.sleep' in stack
    assert [event['exception']['values'][0]['type'] for event in sentry.events] == ['LookupError', 'LoopBlocked']


async def test_a_cancelled_task_is_no_error(sentry: servers.envelopes.Envelopes) -> None:
    class Endless(Reporting):
        async def _process_message(self, message: str) -> None:
            await asyncio.Event().wait()

    await work(sentry.dsn, 'wait', worker_class=Endless, stop_timeout=0.5)
    assert sentry.events == []


# Blocked loops


async def test_a_blocked_loop_is_captured_once(sentry: servers.envelopes.Envelopes) -> None:
    [pid] = await work(sentry.dsn, 'block', blocking_threshold=0.5)
    [event] = sentry.events
    [blocked] = event['exception']['values']
    assert (blocked['type'], blocked['value']) == ('LoopBlocked', 'the IO loop was blocked in block')
    assert _frames(event)[-1]['context_line'] == 'time.sleep(0.01)'
    assert event['level'] == 'warning'
    assert event['extra']['seconds'] >= 0.5
    assert event['tags'] == {'worker': '0', 'pool': 'sentinel', 'pid': str(pid)}


# Starting and stopping


async def test_a_sentry_that_does_not_answer_keeps_the_end_waiting_for_so_long(
    context: str, sentry: servers.envelopes.Envelopes
) -> None:
    sentry.answering.clear()
    pool = looppool.Pool(
        pool_size=1,
        worker_class=Reporting,
        context=context,
        options={'dsn': sentry.dsn, 'flush_timeout': 0.7},
    )
    failed = asyncio.Event()
    pool.process_failure = lambda task, error: failed.set()
    await pool.start()
    await pool.put('fail')
    await failed.wait()
    begin = time.monotonic()
    await pool.stop(timeout=20)
    assert 0.6 < time.monotonic() - begin < 10
    assert pool.statistics().restarts == 0


async def test_a_report_that_takes_a_while_is_sent_before_the_worker_ends(sentry: servers.envelopes.Envelopes) -> None:
    sentry.answering.clear()
    asyncio.get_running_loop().call_later(1.8, sentry.answering.set)
    await work(sentry.dsn, 'fail', options={'flush_timeout': 10}, stop_timeout=20)
    assert len(sentry.events) == 1


async def test_a_worker_without_a_dsn_works_and_reports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('SENTRY_DSN', raising=False)
    await work(None, 'fail')


async def test_the_dsn_can_come_from_the_environment(sentry: servers.envelopes.Envelopes) -> None:
    await work(None, 'fail', env={'SENTRY_DSN': sentry.dsn})
    assert len(sentry.events) == 1


@pytest.mark.parametrize(('dsn', 'env', 'text'), [
    ('nonsense', None, 'the dsn given to looppool.sentry.init is no Sentry DSN'),
    (None, {'SENTRY_DSN': 'http://127.0.0.1/1'}, 'SENTRY_DSN of the environment is no Sentry DSN (Missing public key)'),
])  # fmt: skip
async def test_a_bad_dsn_fails_the_start_and_says_why(dsn: str | None, env: Any, text: str) -> None:
    with pytest.raises(looppool.WorkerStartError) as caught:
        await work(dsn, env=env)
    assert text in str(caught.value.__cause__)
    assert 'https://KEY@HOST/PROJECT' in str(caught.value.__cause__)


def test_importing_it_does_not_import_sentry_sdk() -> None:
    program = 'import sys, looppool.sentry; print("sentry_sdk" in sys.modules)'
    assert subprocess.check_output([sys.executable, '-c', program], timeout=30, text=True) == 'False\n'


# The parent: sentry_sdk.init changes its process for good, so it gets one of its own

PARENT = '''
import asyncio, contextlib, sys
import sentry_sdk
import looppool, looppool.sentry
from test_sentry import Reporting

class Hanging(Reporting):
    def _process_message(self, message):
        if message == 'hang':
            return asyncio.Event().wait()
        return super()._process_message(message)

async def main(dsn, context, worker_dsn, *messages):
    sentry_sdk.init(dsn)
    async with looppool.Pool(
        pool_size=1,
        worker_class=Hanging,
        name='sentinel',
        context=context,
        options={'dsn': worker_dsn or None},
        max_restarts=1,
    ) as pool:
        print(pool.members[0].pid)
        if worker_dsn:
            pool.process_failure = looppool.sentry.capture_failure
        for message in messages:
            await pool.put(message)
        with contextlib.suppress(looppool.PoolBroken):
            await pool.stop(timeout=0.2 if 'hang' in messages else 20)

asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 50))
'''


def run_parent(dsn: str, context: str, *messages: str, worker_dsn: str | None = None) -> str:
    '''Run it; the pid of the first worker.'''
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-c', PARENT, dsn, context, dsn if worker_dsn is None else worker_dsn, *messages]
    output = subprocess.run(command, timeout=50, text=True, env=environment, check=True, capture_output=True).stdout
    return output.strip()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event['exception']['values'][-1]['type'] for event in events]


def test_the_parent_captures_the_death_of_a_worker_once(context: str, sentry: servers.envelopes.Envelopes) -> None:
    pid = run_parent(sentry.dsn, context, 'hang', 'hang', 'hang', 'die')
    [event] = sentry.events
    assert kinds([event]) == ['WorkerDied']
    assert event['tags'] == {'worker': '0', 'pid': pid}


def test_the_parent_captures_a_broken_pool_once(sentry: servers.envelopes.Envelopes) -> None:
    run_parent(sentry.dsn, 'forkserver', 'die', 'die', 'die', 'die', 'die')
    # Besides the failures that were captured, the pool logs that it is broken.
    captured = [event for event in sentry.events if not event.get('logentry')]
    assert kinds(captured) == ['WorkerDied', 'WorkerDied', 'PoolBroken']


def test_the_parent_leaves_to_the_worker_what_that_captured(context: str, sentry: servers.envelopes.Envelopes) -> None:
    pid = run_parent(sentry.dsn, context, 'fail', 'log_and_fail')
    assert kinds(sentry.events) == ['LookupError', 'LookupError']
    assert {event['tags']['pid'] for event in sentry.events} == {pid}


def test_tasks_left_behind_are_no_errors(sentry: servers.envelopes.Envelopes) -> None:
    run_parent(sentry.dsn, 'forkserver', 'hang', 'hang')
    assert sentry.events == []


def test_a_parent_alone_captures_what_the_pool_logs(context: str, sentry: servers.envelopes.Envelopes) -> None:
    run_parent(sentry.dsn, context, 'fail', 'fail', worker_dsn='')
    assert kinds(sentry.events) == ['LookupError', 'LookupError']
    assert [event['logger'] for event in sentry.events] == ['looppool', 'looppool']


def test_the_parent_logs_failures_where_sentry_is_not_initialised(logs: Any) -> None:
    logged = logs.expect('^ERROR:looppool.sentry:')
    looppool.sentry.capture_failure('task', LookupError('no luck'))
    [text] = logged
    assert text.endswith('LookupError: no luck')


# The real server


@pytest.fixture(scope='module')
def bugsink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.bugsink.Bugsink]:
    with servers.bugsink.run(tmp_path_factory.mktemp('bugsink')) as server:
        yield server


async def test_bugsink_shows_the_error_of_a_worker_once(context: str, bugsink: servers.bugsink.Bugsink) -> None:
    project = bugsink.project()
    [pid] = await work(project.dsn, 'log_and_fail', context=context)
    assert project.issues() == [('LookupError', 'no luck with 9', 1)]
    [event] = project.events()
    assert event['tags'] == {'worker': '0', 'pool': 'sentinel', 'pid': str(pid)}


async def test_bugsink_shows_a_blocked_loop_once(bugsink: servers.bugsink.Bugsink) -> None:
    project = bugsink.project()
    await work(project.dsn, 'block', blocking_threshold=0.5)
    assert project.issues() == [('LoopBlocked', 'the IO loop was blocked in block', 1)]
    [event] = project.events()
    assert _frames(event)[-1]['function'] == 'block'
