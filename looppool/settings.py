'''A pool's parameters: checked, with their defaults filled in, and what follows from them for one worker.'''

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from .frames import MAX_BODY
from .packing import Codec
from .process import Launch, default_context
from .segments import most_segments
from .worker import Worker

__all__ = [
    'RESTARTS',
    'Settings',
    'checked_options',
    'checked_sizes',
    'checked_variables',
    'checked_worker_class',
    'make_launch',
    'usable_cpus',
]

RESTARTS: Final = ('one_for_one', 'one_for_all')

_HEARTBEAT: Final = 1.0
'''Seconds between heartbeats, where no setting wants them more often.'''
_BEATS: Final = 4
'''Heartbeats within the shortest time that a setting wants noticed.'''


_WHOLE: Final = (
    'min_size', 'max_size', 'max_tasks', 'max_results', 'max_bytes', 'max_message_bytes', 'concurrency',
    'max_tasks_per_worker', 'max_rss',
)  # fmt: skip
_SECONDS: Final = (
    'idle_ttl', 'restart_window', 'restart_delay', 'max_restart_delay', 'max_age', 'start_timeout', 'stop_timeout',
    'blocking_threshold', 'heartbeat_timeout', 'cancel_grace',
)  # fmt: skip
_MAY_BE_NONE: Final = (
    'idle_ttl', 'concurrency', 'max_tasks_per_worker', 'max_rss', 'max_age', 'stop_timeout', 'blocking_threshold',
    'heartbeat_timeout',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    '''The parameters of `Pool`, which documents them. ValueError and TypeError name the one that is wrong.'''

    worker_class: type[Worker[Any, Any]]
    min_size: int
    max_size: int
    idle_ttl: float | None
    max_tasks: int
    max_results: int
    max_bytes: int
    max_message_bytes: int
    name: str
    retries: int
    restart: str
    max_restarts: int
    restart_window: float
    restart_delay: float
    max_restart_delay: float
    max_tasks_per_worker: int | None
    max_rss: int | None
    max_age: float | None
    recycle_jitter: float
    concurrency: int | None
    start_timeout: float
    stop_timeout: float | None
    blocking_threshold: float | None
    heartbeat_timeout: float | None
    cancel_grace: float
    codec: Codec | None
    contextvars: tuple[ContextVar[Any], ...]
    launch: Launch

    def __post_init__(self) -> None:
        checked_worker_class(self.worker_class)
        if not isinstance(self.name, str):
            raise TypeError(f'name has to be a string, not {self.name!r}')
        for name in _WHOLE:
            self._check_whole(name, 1)
        for name in ('retries', 'max_restarts'):
            self._check_whole(name, 0)
        for name in _SECONDS:
            self._check_seconds(name)
        if not isinstance(self.codec, Codec | None):
            raise TypeError(f'codec has to be an instance of looppool.Codec or None, not {self.codec!r}')
        if self.restart not in RESTARTS:
            raise ValueError(f'restart has to be one of {", ".join(RESTARTS)}, not {self.restart!r}')
        jitter = self.recycle_jitter
        if isinstance(jitter, bool) or not isinstance(jitter, (int, float)) or not 0 <= jitter < 1:
            raise ValueError(f'recycle_jitter has to be a fraction from 0 to less than 1, not {jitter!r}')
        if self.max_message_bytes > MAX_BODY:
            raise ValueError(f'max_message_bytes has to be at most {MAX_BODY:,}')

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is None and name in _MAY_BE_NONE:
            return
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f'{name} has to be a whole number of at least {least}, not {value!r}')

    def _check_seconds(self, name: str) -> None:
        value = getattr(self, name)
        may_be_none = name in _MAY_BE_NONE
        if value is None and may_be_none:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f'{name} has to be a positive number of seconds{" or None" * may_be_none}, not {value!r}')

    @property
    def busy(self) -> int:
        '''With so many tasks in flight a worker is busy.'''
        return min(self.concurrency or self.task_window, self.task_window)

    @property
    def task_window(self) -> int:
        '''A worker's share of `max_tasks`.'''
        return max(1, self.max_tasks // self.max_size)

    @property
    def result_window(self) -> int:
        '''A worker's share of `max_results`.'''
        return max(1, self.max_results // self.max_size)

    @property
    def window_bytes(self) -> int:
        '''A worker's share of `max_bytes`.'''
        return max(1, self.max_bytes // self.max_size)

    @property
    def heartbeat(self) -> float:
        '''Seconds between a worker's heartbeats.'''
        wanted = [limit / _BEATS for limit in (self.blocking_threshold, self.heartbeat_timeout) if limit]
        return min(_HEARTBEAT, *wanted) if wanted else _HEARTBEAT

    def configuration(self, number: int, name: str | None = None, launch: Launch | None = None) -> dict[str, Any]:
        '''What worker `number` is told before anything of the user is imported.

        :param launch: how it is started, if not as the others.
        '''
        launch = launch or self.launch
        return {
            'number': number,
            'name': name,
            'pool': self.name,
            # Another interpreter has packages of its own.
            'sys_path': launch.sys_path() if launch.executable is None else None,
            'path': launch.path,
            'environ': launch.environ(),
            'cwd': launch.cwd or _working_directory(),
            'concurrency': self.concurrency or self.task_window,
            'results': self.result_window,
            'result_bytes': self.window_bytes,
            'segments': max(1, most_segments() // self.max_size),
            'max_body': self.max_message_bytes,
            'blocking_threshold': self.blocking_threshold,
            'heartbeat': self.heartbeat,
        }


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # It was removed; the workers are in it all the same.


def usable_cpus() -> int:
    '''How many CPUs this process may use.'''
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def checked_sizes(pool_size: int | None, min_size: int | None, max_size: int | None) -> tuple[int, int]:
    '''The smallest and the largest size: `pool_size` is both; without any, both are the CPUs.'''
    for name, size in (('pool_size', pool_size), ('min_size', min_size), ('max_size', max_size)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f'{name} has to be a whole number of at least 1, not {size!r}')
    if min_size is None and max_size is None:
        size = usable_cpus() if pool_size is None else pool_size
        return size, size
    if pool_size is not None:
        raise ValueError('pool_size fixes the size: leave it out, or leave out min_size and max_size')
    least = 1 if min_size is None else min_size
    most = max(least, usable_cpus()) if max_size is None else max_size
    if least > most:
        raise ValueError(f'min_size has to be at most max_size, but {least} is more than {most}')
    return least, most


def checked_worker_class(worker_class: Any) -> type[Worker[Any, Any]]:
    '''TypeError unless it is a subclass of `Worker`.'''
    if not (isinstance(worker_class, type) and issubclass(worker_class, Worker)):
        raise TypeError(f'worker_class has to be a subclass of looppool.Worker, not {worker_class!r}')
    return worker_class


def make_launch(
    worker_class: type,
    context: str | None,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    path: Sequence[str | os.PathLike[str]],
    preload: Sequence[str],
    executable: str | None,
    uvloop: bool = False,
) -> Launch:
    '''How to start workers of `worker_class`, whose module a fork server imports.'''
    for name, value, kind in (('cwd', cwd, (str, os.PathLike)), ('executable', executable, str)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f'{name} has to be a path or None, not {value!r}')
    _check_items('path', path, (str, os.PathLike))
    _check_items('preload', preload, str)
    _check_uvloop(uvloop, executable)
    context = context or ('spawn' if executable else default_context())
    modules = tuple(preload)
    if context == 'forkserver' and getattr(worker_class, '__module__', '__main__') != '__main__':
        modules += (worker_class.__module__,)
    return Launch(
        context,
        env=tuple(_checked_mapping('env', env, str).items()),
        cwd=None if cwd is None else os.path.abspath(cwd),
        path=tuple(os.path.abspath(folder) for folder in path),
        preload=modules,
        executable=executable,
        uvloop=uvloop,
    )


def _check_uvloop(wanted: object, executable: str | None) -> None:
    if not isinstance(wanted, bool):
        raise TypeError(f'uvloop has to be True or False, not {wanted!r}')
    # Another interpreter has packages of its own.
    if wanted and executable is None:
        try:
            import uvloop  # noqa: F401
        except ImportError as error:
            raise ImportError("the package uvloop is missing: pip install 'looppool[uvloop]'") from error


def checked_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    '''The keyword arguments for ``_initialise``.'''
    return _checked_mapping('options', options, object)


def checked_variables(variables: object) -> tuple[ContextVar[Any], ...]:
    '''The context variables whose values travel along.'''
    if not isinstance(variables, Sequence) or not all(isinstance(variable, ContextVar) for variable in variables):
        raise TypeError(f'contextvars has to be a list of contextvars.ContextVar, not {variables!r}')
    return tuple(variables)


def _check_items(name: str, items: object, kind: type | tuple[type, ...]) -> None:
    # A single str would pass for a sequence of its letters.
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise TypeError(f'{name} has to be a list of strings, not {items!r}')
    if not all(isinstance(item, kind) for item in items):
        raise TypeError(f'{name} has to hold nothing but strings, not {items!r}')


def _checked_mapping(name: str, mapping: object, kind: type) -> dict[str, Any]:
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise TypeError(f'{name} has to be a mapping of names to values, not {mapping!r}')
    if not all(isinstance(key, str) and isinstance(value, kind) for key, value in mapping.items()):
        raise TypeError(f'{name} has to map names to {"strings" if kind is str else "values"}, not {mapping!r}')
    return dict(mapping)
