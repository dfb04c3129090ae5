'''Sentry for workers: errors of tasks and blocked loops, each captured once, with worker, pool and pid as tags.

1. sentry-sdk is imported by the first call, not by importing this module.
2. Once: whatever else sees an exception (a log record with its traceback, an integration), the first capture marks it
   and the others are dropped.
3. Values stay at home: local variables, personal data (sentry-sdk's own default) and tasks are not sent unasked.
4. What is not sent when the worker ends gets `flush_timeout` seconds, and no more.
'''

import asyncio
import atexit
import contextvars
import logging
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .errors import PoolBroken, PoolClosed, RemoteError, WorkerDied

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ['capture_failure', 'init']

logger: Final = logging.getLogger(__name__)

_MARK: Final = '_looppool_captured'

_DEFAULTS: Final[dict[str, Any]] = {
    'include_local_variables': False,
    # They cost a worker 75 ms and 3 MiB at its start, most of it for frameworks that it doesn't run.
    'auto_enabling_integrations': False,
}

_reported: Final = contextvars.ContextVar('reported', default=False)


def init(worker: 'Worker[Any, Any]', dsn: str | None = None, *, flush_timeout: float = 2.0, **options: Any) -> None:
    '''Report this worker's failed tasks and blocked loops to Sentry; call it in `_initialise`.

    It sets the tags `worker`, `pool` and `pid` on everything that this process reports, errors that the worker logs
    included, and works alongside your own `_task_failed` and `_loop_blocked`. A cancelled task is no error. Capturing
    takes a millisecond or two on the loop's thread; a background thread sends.

    :param worker: the worker, `self` in `_initialise`.
    :param dsn: where to report to; `None` takes `SENTRY_DSN` of the environment, and without that nothing is sent.
    :param flush_timeout: seconds that the end of the worker may wait for reports that are still to be sent. Keep it
        below the pool's `stop_timeout`.
    :param options: options of `sentry_sdk.init`. The defaults here differ from sentry-sdk's in that
        `include_local_variables` and `auto_enabling_integrations` are off. With its option `data_collection` you decide
        on all that is sent, local variables included.
    :raises sentry_sdk.utils.BadDsn: (a `ValueError`) if the DSN is none; from `_initialise` it makes `pool.start()`
        raise `WorkerStartError`.
    '''
    import sentry_sdk

    _start_client(dsn, flush_timeout, options)
    for tag, value in {'worker': worker._number, 'pool': worker._pool_name, 'pid': os.getpid()}.items():
        # Of the process, not of a scope: the watchdog's thread and every asyncio task have scopes of their own.
        sentry_sdk.get_global_scope().set_tag(tag, str(value))
    _hook(worker, '_task_failed', _capture_error)
    _hook(worker, '_loop_blocked', _capture_blocked)
    # Besides sentry-sdk's own handler, because that registers only once: a forked worker may have lost it.
    atexit.register(_flush, flush_timeout)


def capture_failure(task: object, error: BaseException) -> None:
    '''Report from the parent what no worker could: `pool.process_failure = looppool.sentry.capture_failure`.

    For an application that has called `sentry_sdk.init` itself and whose workers use `init`. The end of a worker
    (`WorkerDied`) or of the pool (`PoolBroken`) is reported once, however many tasks it takes along. What a task raised
    in its worker was reported there, and a task that you cancelled, or left behind by stopping the pool, is no error.
    The task itself is not sent. Without `sentry_sdk.init` every failure is logged instead.

    A parent whose workers don't use `init` needs nothing from here: sentry-sdk captures what the pool's default
    `process_failure` logs.
    '''
    import sentry_sdk

    if not sentry_sdk.is_initialized():
        logger.error('a task failed', exc_info=error)
    elif not _is_known(error):
        with sentry_sdk.new_scope() as scope:
            for tag, value in {'worker': getattr(error, 'number', None), 'pid': getattr(error, 'pid', None)}.items():
                if value is not None:
                    scope.set_tag(tag, str(value))
            sentry_sdk.capture_exception(error)


_ends: Final[set[tuple[object, ...]]] = set()
'''The ends of workers and pools that were reported.'''


def _is_known(error: BaseException) -> bool:
    if isinstance(error, PoolBroken | WorkerDied):
        died = error.cause if isinstance(error, PoolBroken) else error
        end = (type(error), getattr(died, 'pid', None), getattr(died, 'exitcode', None))
        known = end in _ends
        _ends.add(end)
        return known
    wanted = isinstance(error, asyncio.CancelledError | PoolClosed)
    return wanted or isinstance(error, RemoteError) or isinstance(error.__cause__, RemoteError)


def _start_client(dsn: str | None, flush_timeout: float, options: dict[str, Any]) -> None:
    import sentry_sdk
    from sentry_sdk.integrations.atexit import AtexitIntegration
    from sentry_sdk.utils import BadDsn

    options = {**_DEFAULTS, 'shutdown_timeout': flush_timeout, **options}
    options['before_send'] = _once(options.get('before_send'))
    # sentry-sdk's own would announce on stderr what it waits for.
    options['integrations'] = [AtexitIntegration(callback=_say_nothing), *options.get('integrations', ())]
    try:
        sentry_sdk.init(dsn, **options)
    except BadDsn as error:
        origin = 'SENTRY_DSN of the environment' if dsn is None else 'the dsn given to looppool.sentry.init'
        raise BadDsn(f'{origin} is no Sentry DSN ({error}): it looks like https://KEY@HOST/PROJECT') from error


def _flush(timeout: float) -> None:
    import sentry_sdk

    sentry_sdk.get_client().close(timeout=timeout)


def _say_nothing(pending: int, timeout: float) -> None:
    pass


class _Hook:
    '''A worker's hook that reports first, and then does what it did before.'''

    def __init__(self, own: Callable[..., None], report: Callable[..., None]) -> None:
        self._own = own
        self._report = report

    def __call__(self, *args: Any) -> None:
        self._report(*args)
        token = _reported.set(True)
        try:
            self._own(*args)
        finally:
            _reported.reset(token)


def _hook(worker: 'Worker[Any, Any]', name: str, report: Callable[..., None]) -> None:
    own = getattr(worker, name)
    if not isinstance(own, _Hook):
        setattr(worker, name, _Hook(own, report))


def _capture_error(error: BaseException) -> None:
    import sentry_sdk

    if not isinstance(error, asyncio.CancelledError):
        sentry_sdk.capture_exception(error)


def _capture_blocked(seconds: float, stack: str) -> None:
    import sentry_sdk

    frames = _frames(stack)
    # Shaped like an exception, which is what Sentry groups and shows best. Its text has no number in it, so that one
    # place that blocks is one issue.
    blocked = {
        'type': 'LoopBlocked',
        'value': f'the IO loop was blocked in {frames[-1]["function"]}' if frames else 'the IO loop was blocked',
        'mechanism': {'type': 'looppool', 'handled': True},
        'stacktrace': {'frames': frames},
    }
    sentry_sdk.capture_event(
        {'level': 'warning', 'exception': {'values': [blocked]}, 'extra': {'seconds': seconds, 'stack': stack}}
    )


def _frames(stack: str) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = [found.groupdict() for found in _FRAME.finditer(stack)]
    for frame in frames:
        frame['lineno'] = int(frame['lineno'])
        frame['filename'] = os.path.basename(frame['abs_path'])
    return frames


_FRAME: Final = re.compile(
    r'^ *File "(?P<abs_path>.+)", line (?P<lineno>\d+), in (?P<function>.+)\n'
    r'(?: {4}(?P<context_line>.+))?',
    re.MULTILINE,
)


def _once(before_send: Callable[[Any, Any], Any] | None) -> Callable[[Any, Any], Any]:
    '''A `before_send` that lets each exception pass once, and no log record of what a hook has just reported.'''

    def send(event: Any, hint: Any) -> Any:
        error = (hint.get('exc_info') or (None, None))[1]
        if error is None:
            if _reported.get() and 'log_record' in hint:
                return None
        elif _MARK in error.__dict__:
            return None
        else:
            error.__dict__[_MARK] = True
        return before_send(event, hint) if before_send else event

    return send

