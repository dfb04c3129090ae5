'''The exception tree: what each error means and what to do next.

    LoopPoolError
    ├─ PoolClosed          you stopped it, or never started it
    ├─ PoolBroken          it broke: the restart budget is spent; .cause says why
    ├─ Full (queue.Full)   no credit now: put_nowait and _put_nowait
    ├─ WorkerStartError    _initialise failed or ran out of time; its cause is the remote error
    ├─ WorkerDied          the process ended while it owed this task
    ├─ RemoteError         an exception that could not travel as itself; also the cause of those that could
    ├─ MessageTooBig       at the sender, before anything was sent
    ├─ StreamClosed        nothing more can be sent: end() was called, or the call has ended
    └─ ProtocolError       the other side broke the framing
    TaskInterrupted (BaseException)   raised inside a task that had to be interrupted

Every error carries its facts as attributes, builds its text in ``__str__`` and can be pickled, its cause included.
'''

import queue
import signal as _signal
from typing import Any

__all__ = [
    'Full',
    'LoopPoolError',
    'MessageTooBig',
    'PoolBroken',
    'PoolClosed',
    'ProtocolError',
    'RemoteError',
    'StreamClosed',
    'TaskInterrupted',
    'WorkerDied',
    'WorkerStartError',
]


class LoopPoolError(Exception):
    '''The base of every error that looppool raises of its own accord.'''

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__, self.__cause__)


def _restore(
    cls: type[LoopPoolError], args: tuple[Any, ...], state: dict[str, Any], cause: BaseException | None
) -> LoopPoolError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    if cause is not None:
        error.__cause__ = cause
    return error


_FATE = {
    None: '',
    False: ' The task had not started: put it again.',
    True: ' The task may have run: put it again only if running it twice does no harm.',
}


class PoolClosed(LoopPoolError):
    '''The pool takes nothing: it was never started, it is stopping, or it has stopped.

    :ivar pool: name of the pool.
    :ivar reason: what closed it.
    :ivar started: of a task that ends with this error: ``False`` not started, ``True`` may have run, else ``None``.
    '''

    def __init__(self, pool: str, reason: str, *, started: bool | None = None) -> None:
        super().__init__(pool, reason)
        self.pool = pool
        self.reason = reason
        self.started = started

    def __str__(self) -> str:
        return f'pool {self.pool!r} {self.reason}.{_FATE[self.started]}'


class PoolBroken(LoopPoolError):
    '''The pool gave up: its workers died more often than ``max_restarts`` within ``restart_window`` seconds.

    :ivar pool: name of the pool.
    :ivar restarts: how many restarts were allowed.
    :ivar window: within how many seconds.
    :ivar started: as in :class:`PoolClosed`.
    '''

    def __init__(
        self,
        pool: str,
        restarts: int,
        window: float,
        cause: BaseException | None = None,
        *,
        started: bool | None = None,
    ) -> None:
        super().__init__(pool, restarts, window)
        self.pool = pool
        self.restarts = restarts
        self.window = window
        self.started = started
        self.__cause__ = cause

    @property
    def cause(self) -> BaseException | None:
        '''The death that spent the budget.'''
        return self.__cause__

    def __str__(self) -> str:
        return (
            f'pool {self.pool!r} is broken: its workers died more than {self.restarts} times within '
            f'{self.window:g} s; the last cause: {self._last_cause()}.{_FATE[self.started]} '
            f'Mend the cause, then start a new pool.'
        )

    def _last_cause(self) -> str:
        return f'{type(self.cause).__name__}: {self.cause}'.rstrip('.') if self.cause else 'unknown'


class Full(LoopPoolError, queue.Full):
    '''There is no credit now: the window of messages or of bytes is used up.

    :ivar what: ``'task'`` in the parent, ``'result'`` in a worker; ``'worker'`` where one was to be leased.
    :ivar where: whose window is full.
    '''

    def __init__(self, what: str, where: str) -> None:
        super().__init__(what, where)
        self.what = what
        self.where = where

    def __str__(self) -> str:
        if self.what == 'worker':
            return f'{self.where} has no free worker now: pool.reserve() without wait=False waits for one'
        verb, bound = {
            'task': ('await pool.put(...)', 'max_tasks'),
            'result': ('await self._put(...)', 'max_results'),
        }[self.what]
        return f'{self.where} has no {self.what} credit now: {verb} waits for it; {bound} and max_bytes set the bound'


class WorkerStartError(LoopPoolError):
    '''A worker did not become ready: its ``_initialise`` failed (see the cause) or took too long.

    :ivar number: the worker's number.
    :ivar pid: its process id, if it had one.
    :ivar reason: what went wrong.
    :ivar stderr: the last lines that the process wrote to stderr.
    :ivar name: the worker's name, if it has one.
    '''

    def __init__(
        self, number: int, pid: int | None, reason: str, stderr: str = '', *, name: str | None = None
    ) -> None:
        super().__init__(number, pid, reason)
        self.number = number
        self.pid = pid
        self.reason = reason
        self.stderr = stderr
        self.name = name

    def __str__(self) -> str:
        return (
            f'worker {self.name or self.number} (pid {self.pid}) did not start: {self.reason}. '
            f'Mend the cause, then start a new pool.{_last_lines(self.stderr)}'
        )


class WorkerDied(LoopPoolError):
    '''The worker's process ended while it owed this task.

    :ivar number: the worker's number.
    :ivar pid: its process id.
    :ivar exitcode: its exit code, negative for a signal, ``None`` if nobody could tell.
    :ivar started: ``True`` if the task may have run, ``False`` if it had surely not started.
    :ivar reason: why looppool itself killed it, or ``''``.
    :ivar stderr: the last lines that the process wrote to stderr.
    :ivar name: the worker's name, if it has one.
    '''

    def __init__(
        self,
        number: int,
        pid: int | None,
        exitcode: int | None,
        *,
        started: bool | None = None,
        reason: str = '',
        stderr: str = '',
        name: str | None = None,
    ) -> None:
        super().__init__(number, pid, exitcode)
        self.number = number
        self.pid = pid
        self.exitcode = exitcode
        self.started = started
        self.reason = reason
        self.stderr = stderr
        self.name = name

    @property
    def signal(self) -> str | None:
        '''The name of the signal that ended it, or None.'''
        if self.exitcode is None or self.exitcode >= 0:
            return None
        try:
            return _signal.Signals(-self.exitcode).name
        except ValueError:
            return f'signal {-self.exitcode}'

    @property
    def how(self) -> str:
        '''How its process ended, in words.'''
        if self.exitcode is None:
            return 'has no process' if self.pid is None else 'ended, nobody knows how'
        return f'was killed by {self.signal}' if self.signal else f'exited with code {self.exitcode}'

    def __str__(self) -> str:
        why = f' ({self.reason})' if self.reason else ''
        who = f'worker {self.name or self.number} (pid {self.pid})'
        return f'{who} {self.how}{why}.{_FATE[self.started]}{_last_lines(self.stderr)}'


class RemoteError(LoopPoolError):
    '''An exception of a worker that could not travel as itself, and the cause of every one that could.

    :ivar type_name: the qualified name of its type.
    :ivar text: its ``str()``.
    :ivar traceback: the formatted traceback of the worker.
    '''

    def __init__(self, type_name: str, text: str, traceback: str = '') -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __str__(self) -> str:
        head = f'{self.type_name}: {self.text}' if self.text else self.type_name
        return f'{head}\n\nIn the worker:\n{self.traceback}' if self.traceback else head


class MessageTooBig(LoopPoolError):
    '''A message is larger than the cap; nothing was sent and no credit taken.

    :ivar size: its pickled size in bytes.
    :ivar limit: the cap in bytes.
    '''

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f'the message takes {self.size:,} bytes, over the cap of {self.limit:,}: '
            f'send it in parts, or raise Pool(max_message_bytes=...)'
        )


class ProtocolError(LoopPoolError):
    '''The other side of a link broke the framing or the rules of the protocol.'''


def _last_lines(stderr: str) -> str:
    return f'\nThe end of its stderr:\n{stderr}' if stderr else ''


class StreamClosed(LoopPoolError):
    '''Nothing more can be sent or received: ``end()`` was called, the stream was left, or its call has ended.'''

    def __str__(self) -> str:
        return 'the stream is closed: end() was called, or its call has ended. Send before that.'


class TaskInterrupted(BaseException):
    '''Raised inside a task that blocks its worker's loop, after it was cancelled, or by ``Member.interrupt``.

    No Exception, so that ``except Exception`` does not take it for a failure of the task's own. A task that goes on in
    spite of it is ended with its worker.
    '''
