'''Every error carries its facts, survives pickling with its cause, and says who, and what to do next.'''

import copy
import pickle
import queue
import signal
from collections.abc import Callable
from typing import Any

import pytest

import looppool
from looppool import errors
from looppool.errors import (
    Full,
    LoopPoolError,
    MessageTooBig,
    PoolBroken,
    PoolClosed,
    ProtocolError,
    RemoteError,
    StreamClosed,
    WorkerDied,
    WorkerStartError,
)

EXAMPLES = [
    PoolClosed('crawl', 'has stopped'),
    PoolClosed('crawl', 'was stopped', started=False),
    PoolBroken('crawl', 3, 5.0, WorkerDied(1, 42, -9), started=True),
    PoolBroken('crawl', 3, 5.0),
    Full('task', "pool 'crawl'"),
    Full('result', 'worker 1'),
    WorkerStartError(1, 42, 'no database', 'Traceback: refused'),
    WorkerDied(1, 42, -9, started=True, reason='it blocked', stderr='Fatal error'),
    WorkerDied(1, 42, 3),
    RemoteError('app.Odd', 'odd', 'Traceback: odd'),
    MessageTooBig(2000, 1000),
    ProtocolError('a frame of kind 99'),
    StreamClosed(),
]


def name_of(error: LoopPoolError) -> str:
    return type(error).__name__


every_error = pytest.mark.parametrize('error', EXAMPLES, ids=name_of)
every_copy = pytest.mark.parametrize(
    'copied',
    [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy],
    ids=['pickled', 'copied', 'deeply copied'],
)

Copy = Callable[[LoopPoolError], Any]


def facts(error: BaseException) -> dict[str, object]:
    return {name: value for name, value in vars(error).items() if name != '__notes__'}


def test_the_examples_are_of_every_kind() -> None:
    kinds = {getattr(errors, name) for name in errors.__all__}

    assert {type(error) for error in EXAMPLES} == kinds - {LoopPoolError, errors.TaskInterrupted}


def test_every_error_is_one_of_looppool() -> None:
    for error in EXAMPLES:
        assert isinstance(error, LoopPoolError)
        assert getattr(looppool, name_of(error)) is type(error)


@every_error
@every_copy
def test_type_text_and_facts_survive(error: LoopPoolError, copied: Copy) -> None:
    twin = copied(error)

    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert facts(twin) == facts(error)
    assert twin.args == error.args


@every_error
@every_copy
def test_cause_and_notes_survive(error: LoopPoolError, copied: Copy) -> None:
    error = copy.copy(error)
    error.__cause__ = KeyError('the cause')
    error.add_note('a note')

    twin = copied(error)

    assert repr(twin.__cause__) == "KeyError('the cause')"
    assert twin.__notes__ == ['a note']


@every_copy
def test_an_error_without_a_cause_still_shows_its_context(copied: Copy) -> None:
    twin = copied(MessageTooBig(2000, 1000))

    assert twin.__cause__ is None
    assert not twin.__suppress_context__


@every_copy
def test_a_subclass_of_an_application_survives(copied: Copy) -> None:
    twin = copied(Overdue('invoice', days=3))

    assert (type(twin), str(twin), twin.days) == (Overdue, 'invoice is 3 days late', 3)


class Overdue(LoopPoolError):
    def __init__(self, what: str, *, days: int) -> None:
        super().__init__(what)
        self.what = what
        self.days = days

    def __str__(self) -> str:
        return f'{self.what} is {self.days} days late'


def test_full_is_the_full_of_queues_too() -> None:
    with pytest.raises(queue.Full):
        raise Full('task', "pool 'crawl'")


# What the texts say


@pytest.mark.parametrize('error', [WorkerDied(7, 4242, -9, started=True), WorkerStartError(7, 4242, 'no database')])
def test_what_a_worker_did_names_its_number_and_pid(error: LoopPoolError) -> None:
    assert 'worker 7 (pid 4242)' in str(error)


@pytest.mark.parametrize(
    ('error', 'step'),
    [
        (Full('task', "pool 'crawl'"), 'await pool.put(...)'),
        (Full('result', 'worker 1'), 'await self._put(...)'),
        (Full('task', "pool 'crawl'"), 'max_tasks'),
        (Full('result', 'worker 1'), 'max_results'),
        (MessageTooBig(2000, 1000), 'max_message_bytes'),
        (StreamClosed(), 'Send before that'),
        (PoolBroken('crawl', 3, 5.0), 'start a new pool'),
        (PoolClosed('crawl', 'was stopped', started=False), 'put it again'),
        (WorkerDied(1, 42, -9, started=False), 'had not started: put it again'),
        (WorkerDied(1, 42, -9, started=True), 'only if running it twice does no harm'),
        (WorkerStartError(1, 42, 'no database'), 'new pool'),
    ],
)
def test_the_text_names_the_next_step(error: LoopPoolError, step: str) -> None:
    assert step in str(error)


@pytest.mark.parametrize('error', [PoolClosed('crawl', 'has stopped'), PoolBroken('crawl', 3, 5.0)])
def test_what_a_pool_did_names_the_pool(error: LoopPoolError) -> None:
    assert "pool 'crawl'" in str(error)


def test_nothing_is_said_of_a_task_where_there_is_none() -> None:
    assert 'task' not in str(PoolClosed('crawl', 'has stopped'))


def test_a_broken_pool_tells_its_limits_and_the_last_cause() -> None:
    cause = WorkerDied(1, 42, 3)

    error = PoolBroken('crawl', 3, 5.0, cause)

    assert error.cause is cause
    assert 'more than 3 times within 5 s' in str(error)
    assert f'WorkerDied: {cause}' in str(error)


def test_message_too_big_tells_both_sizes() -> None:
    assert '2,000 bytes' in str(MessageTooBig(2000, 1000))
    assert '1,000' in str(MessageTooBig(2000, 1000))


@pytest.mark.parametrize(
    ('exitcode', 'name', 'how'),
    [
        (-signal.SIGKILL, 'SIGKILL', 'was killed by SIGKILL'),
        (-63, 'signal 63', 'was killed by signal 63'),
        (0, None, 'exited with code 0'),
        (3, None, 'exited with code 3'),
        (None, None, 'ended, nobody knows how'),
    ],
)
def test_a_death_tells_how(exitcode: int | None, name: str | None, how: str) -> None:
    error = WorkerDied(1, 42, exitcode)

    assert error.signal == name
    assert how in str(error)


def test_a_death_tells_why_looppool_killed_it() -> None:
    assert 'SIGKILL (its loop was blocked)' in str(WorkerDied(1, 42, -9, reason='its loop was blocked'))


@pytest.mark.parametrize(('kind', 'why'), [(WorkerDied, 3), (WorkerStartError, 'no database')])
def test_the_end_of_stderr_is_shown_if_there_is_any(kind: Any, why: object) -> None:
    assert str(kind(1, 42, why, stderr='Fatal Python error')).endswith('stderr:\nFatal Python error')
    assert 'stderr' not in str(kind(1, 42, why))


def test_a_remote_error_shows_type_text_and_traceback() -> None:
    assert str(RemoteError('app.Odd', 'very odd', 'Traceback …')) == 'app.Odd: very odd\n\nIn the worker:\nTraceback …'
    assert str(RemoteError('app.Odd', '')) == 'app.Odd'
