'''A bad argument of a pool is refused at once, by name; what follows from good ones for each worker.'''

import contextvars
import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import looppool
from looppool.frames import MAX_BODY
from looppool.process import CONTEXTS
from looppool.settings import Settings, make_launch, usable_cpus

GOOD: dict[str, Any] = {
    'worker_class': looppool.Worker,
    'min_size': 2,
    'max_size': 2,
    'idle_ttl': 60.0,
    'max_tasks': 10,
    'max_results': 10,
    'max_bytes': 1000,
    'max_message_bytes': 1000,
    'name': 'pool',
    'retries': 0,
    'restart': 'one_for_one',
    'max_restarts': 3,
    'restart_window': 5.0,
    'restart_delay': 0.05,
    'max_restart_delay': 5.0,
    'max_tasks_per_worker': None,
    'max_rss': None,
    'max_age': None,
    'recycle_jitter': 0.0,
    'concurrency': None,
    'start_timeout': 30.0,
    'stop_timeout': 5.0,
    'blocking_threshold': None,
    'heartbeat_timeout': None,
    'cancel_grace': 1.0,
    'codec': None,
    'contextvars': (),
    'launch': make_launch(looppool.Worker, 'spawn', None, None, (), (), None),
}

AT_LEAST_ONE = [
    'pool_size', 'min_size', 'max_size', 'max_tasks', 'max_results', 'max_bytes', 'max_message_bytes', 'concurrency',
    'max_tasks_per_worker', 'max_rss',
]  # fmt: skip
AT_LEAST_ZERO = ['retries', 'max_restarts']
SECONDS = [
    'idle_ttl', 'restart_window', 'restart_delay', 'max_restart_delay', 'max_age', 'start_timeout', 'stop_timeout',
    'blocking_threshold', 'heartbeat_timeout', 'cancel_grace',
]  # fmt: skip
MAY_BE_NONE = [
    'pool_size', 'min_size', 'max_size', 'idle_ttl', 'concurrency', 'max_tasks_per_worker', 'max_rss', 'max_age',
    'stop_timeout', 'blocking_threshold', 'heartbeat_timeout',
]  # fmt: skip

quick = hypothesis_settings(deadline=None)


def make(**changes: Any) -> Settings:
    return Settings(**GOOD | changes)


def refused(name: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError), match=rf'\b{name}\b'):
        looppool.Pool(**{name: value})  # type: ignore[arg-type]


# What is refused


@pytest.mark.parametrize('name', AT_LEAST_ONE + AT_LEAST_ZERO)
@quick
@given(value=st.floats() | st.text() | st.booleans() | st.integers(max_value=-1) | st.binary())
def test_what_is_no_whole_number_is_refused_by_name(name: str, value: object) -> None:
    refused(name, value)


@pytest.mark.parametrize('name', AT_LEAST_ONE)
def test_none_at_all_is_refused_by_name(name: str) -> None:
    refused(name, 0)


@pytest.mark.parametrize('name', SECONDS)
@quick
@given(value=st.floats(max_value=0) | st.just(float('nan')) | st.text() | st.booleans() | st.integers(max_value=0))
def test_what_is_no_time_is_refused_by_name(name: str, value: object) -> None:
    refused(name, value)


@pytest.mark.parametrize('name', sorted({*AT_LEAST_ONE, *AT_LEAST_ZERO, *SECONDS} - {*MAY_BE_NONE}))
def test_none_is_refused_by_name_where_it_has_no_meaning(name: str) -> None:
    refused(name, None)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('worker_class', int),
        ('worker_class', looppool.Pool),
        ('worker_class', 'Worker'),
        ('worker_class', None),
        ('ioloop', 'loop'),
        ('context', 'thread'),
        ('context', 3),
        ('distribution', 'random'),
        ('distribution', None),
        ('max_message_bytes', MAX_BODY + 1),
        ('options', ['a', 'b']),
        ('options', {1: 2}),
        ('name', 3),
        ('name', None),
        ('env', ['A']),
        ('env', {'A': 1}),
        ('cwd', 3),
        ('path', 'folder'),
        ('path', [3]),
        ('preload', 'json'),
        ('preload', [3]),
        ('executable', 3),
        ('codec', 'json'),
        ('codec', looppool.Codec),
        ('contextvars', None),
        ('contextvars', 'name'),
        ('contextvars', ['name']),
        ('contextvars', contextvars.ContextVar('name')),
    ],
)
def test_what_means_nothing_is_refused_by_name(name: str, value: object) -> None:
    refused(name, value)


@pytest.mark.parametrize('context', ['fork', 'forkserver'])
def test_an_executable_needs_spawn(context: str) -> None:
    with pytest.raises(ValueError, match=r"executable needs context='spawn'"):
        looppool.Pool(context=context, executable=sys.executable)


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_preloading_needs_the_fork_server(context: str) -> None:
    with pytest.raises(ValueError, match=r"preload needs context='forkserver'"):
        looppool.Pool(context=context, preload=['json'])


def test_an_unknown_argument_is_refused_by_name() -> None:
    refused('pool_sise', 3)


# What is taken


@pytest.mark.parametrize('name', MAY_BE_NONE)
def test_none_is_taken_where_it_means_something(name: str) -> None:
    looppool.Pool(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize('name', AT_LEAST_ONE[1:] + AT_LEAST_ZERO)
def test_the_least_is_taken(name: str) -> None:
    assert getattr(make(**{name: 1}), name) == 1


@pytest.mark.parametrize('name', SECONDS)
@pytest.mark.parametrize('value', [1, 0.001, float('inf')])
def test_any_positive_number_of_seconds_is_taken(name: str, value: float) -> None:
    assert getattr(make(**{name: value}), name) == value


@pytest.mark.parametrize('context', CONTEXTS)
def test_every_context_is_taken(context: str) -> None:
    assert looppool.Pool(context=context).settings.launch.context == context


def test_folders_may_be_paths(tmp_path: Path) -> None:
    launch = looppool.Pool(cwd=tmp_path, path=[tmp_path]).settings.launch

    assert launch.cwd == str(tmp_path)
    assert launch.path == (str(tmp_path),)


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().max_size = 3  # type: ignore[misc]


@pytest.mark.parametrize('jitter', [-0.1, 1, 1.5, True, None, 'some', float('nan')])
def test_jitter_is_a_fraction(jitter: Any) -> None:
    refused('recycle_jitter', jitter)


def test_another_way_to_restart_is_refused() -> None:
    with pytest.raises(ValueError, match=r"restart has to be one of one_for_one, one_for_all, not 'all'"):
        looppool.Pool(restart='all')


@pytest.mark.parametrize(
    ('sizes', 'made'),
    [
        ({'pool_size': 3}, (3, 3)),
        ({'max_size': 3}, (1, 3)),
        ({'min_size': 2, 'max_size': 3}, (2, 3)),
        ({'min_size': 500}, (500, 500)),
    ],
)
def test_the_sizes_of_a_pool(sizes: dict[str, int], made: tuple[int, int]) -> None:
    settings = looppool.Pool(**sizes).settings  # type: ignore[arg-type]

    assert (settings.min_size, settings.max_size) == made


@pytest.mark.parametrize('sizes', [{'pool_size': 2, 'max_size': 3}, {'min_size': 3, 'max_size': 2}])
def test_sizes_that_contradict_each_other_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match='min_size'):
        looppool.Pool(**sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(('concurrency', 'busy'), [(None, 5), (3, 3), (50, 5)])
def test_a_worker_is_busy_with_its_concurrency_or_its_window(concurrency: int | None, busy: int) -> None:
    assert make(concurrency=concurrency).busy == busy


# What follows


def test_there_are_as_many_workers_as_usable_cpus() -> None:
    assert len(looppool.Pool().members) == usable_cpus() == len(os.sched_getaffinity(0))


@quick
@given(st.integers(1, 64), st.integers(1, 10_000))
def test_the_shares_of_all_workers_keep_to_the_bound(pool_size: int, bound: int) -> None:
    made = make(max_size=pool_size, max_tasks=bound, max_results=bound, max_bytes=bound)

    for share in (made.task_window, made.result_window, made.window_bytes):
        assert share == max(1, bound // pool_size)


@pytest.mark.parametrize(('concurrency', 'tasks_at_once'), [(None, 5), (2, 2), (50, 50)])
def test_a_worker_runs_its_window_at_once_unless_told_otherwise(concurrency: int | None, tasks_at_once: int) -> None:
    assert make(concurrency=concurrency).configuration(0)['concurrency'] == tasks_at_once


@quick
@given(*[st.none() | st.floats(min_value=0, exclude_min=True)] * 2)
def test_a_loop_that_is_blocked_too_long_is_noticed_in_time(threshold: float | None, timeout: float | None) -> None:
    beat = make(blocking_threshold=threshold, heartbeat_timeout=timeout).heartbeat

    assert 0 <= beat <= 1.0
    for limit in (threshold, timeout):
        assert limit is None or 4 * beat <= limit or beat * 4 == pytest.approx(limit)


def test_without_such_limits_a_loop_is_left_in_peace() -> None:
    assert make().heartbeat == 1.0


@pytest.mark.parametrize('context', [None, 'forkserver'])
def test_the_fork_server_imports_the_module_of_the_worker(context: str | None) -> None:
    launch = make_launch(ElsewhereWorker, context, None, None, (), ['json'], None)

    assert launch.context == 'forkserver'
    assert launch.preload == ('json', __name__)


def test_the_fork_server_can_not_import_a_script() -> None:
    in_a_script = type('InAScript', (looppool.Worker,), {'__module__': '__main__'})

    assert make_launch(in_a_script, 'forkserver', None, None, (), (), None).preload == ()


def test_an_executable_implies_spawn() -> None:
    assert make_launch(ElsewhereWorker, None, None, None, (), (), sys.executable).context == 'spawn'


def test_workers_get_environment_and_path_of_the_parent_and_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('OF_THE_PARENT', '1')
    monkeypatch.setenv('OF_BOTH', 'parent')
    env = {'OF_BOTH': 'worker', 'OF_THE_WORKER': '2'}
    configuration = make(launch=make_launch(ElsewhereWorker, 'spawn', env, None, ['/added'], (), None)).configuration(3)

    environ = configuration['environ']
    assert (environ['OF_THE_PARENT'], environ['OF_BOTH'], environ['OF_THE_WORKER']) == ('1', 'worker', '2')
    assert configuration['sys_path'] == ['/added', *sys.path]
    assert configuration['cwd'] == os.getcwd()
    assert (configuration['number'], configuration['pool']) == (3, 'pool')


def test_a_working_directory_that_was_removed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'gone'
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()

    assert make().configuration(0)['cwd'] is None


def test_another_interpreter_keeps_its_own_path() -> None:
    launch = make_launch(ElsewhereWorker, 'spawn', None, None, ['/added'], (), sys.executable)

    configuration = make(launch=launch).configuration(0)

    assert configuration['sys_path'] is None
    assert configuration['path'] == ('/added',)


class ElsewhereWorker(looppool.Worker[Any, Any]):
    pass
