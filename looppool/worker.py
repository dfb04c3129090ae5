'''`Worker`, which a user subclasses, and the decorators for its handlers.'''

import functools
import inspect
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from tornado.ioloop import IOLoop

if TYPE_CHECKING:
    from .workermain import WorkerMain

__all__ = ['ResultT', 'TaskT', 'Worker', 'idempotent', 'is_idempotent', 'task_done', 'undecorated']

TaskT = TypeVar('TaskT')
ResultT = TypeVar('ResultT')
T = TypeVar('T')
P = ParamSpec('P')
R = TypeVar('R')

_log: Final = logging.getLogger('looppool.worker')


class Worker(Generic[TaskT, ResultT]):
    '''The base of your workers. Its one instance lives with its IO loop in a worker process.

    Override `_process_message`, and as you need `_initialise` and `_finalise`; each may be a plain function or a
    coroutine. All of them, and the methods for your use, belong to the thread of the worker's loop: from another
    thread, go through ``self._ioloop.add_callback``.
    '''

    _number: int
    '''The worker's number in its pool, from 0. A replacement has the number of the worker that it replaces.'''
    _ioloop: IOLoop
    '''The Tornado loop of this process.'''
    _options: dict[str, Any]
    '''``Pool(options=...)``.'''
    _pool_name: str
    '''``Pool(name=...)``.'''
    _main: 'WorkerMain'

    def _initialise(self, *args: Any, **options: Any) -> Any:
        '''Set up; called once, before any task, with ``Pool(options=...)`` as keyword arguments.

        What it raises fails ``pool.start()`` with `WorkerStartError`.
        '''

    def _process_message(self, message: TaskT) -> Any:
        '''Handle a task. Call `_task_done` when it is done, now or later, or decorate with `task_done`.

        What it raises ends the task: ``pool.process_failure`` gets it.
        '''
        raise NotImplementedError(f'{type(self).__name__} has no _process_message: override it in your Worker')

    def _finalise(self) -> Any:
        '''Clean up; called once, after the last task, before the process exits.'''

    def _put_nowait(self, result: ResultT) -> None:
        '''Put a result, in a task or without one.

        :raises Full: the window of results is used up. A task's one result never meets this.
        :raises MessageTooBig: it is larger than ``Pool(max_message_bytes=...)``.
        :raises Exception: the error of pickling it.
        '''
        self._main.put_nowait(result)

    async def _put(self, result: ResultT) -> None:
        '''As `_put_nowait`, but waits for credit, first come, first served. Cancelled, it has put nothing.'''
        await self._main.put(result)

    def _task_done(self) -> None:
        '''The current task is done: the one whose handler runs, or from which this callback or asyncio task comes.

        Called while the handler has an exception in hand (in ``finally`` or ``except``), it waits for how the handler
        ends: what the handler raises then is the task's error.

        :raises RuntimeError: there is no current task.
        :raises ValueError: it is done already.
        '''
        self._main.task_done()

    def _task_failed(self, error: BaseException) -> None:
        '''A task ended with `error`; it is on its way to the parent. Override it to report errors from here.'''

    def _loop_blocked(self, seconds: float, stack: str) -> None:
        '''The loop is blocked, for `seconds` so far, by `stack`. Called from the watchdog's thread meanwhile.'''
        _log.warning(
            'worker %d (pid %d) of pool %r: the loop is blocked for %.3f s by\n%s',
            self._number, os.getpid(), self._pool_name, seconds, stack,
        )  # fmt: skip


def task_done(handler: Callable[P, R]) -> Callable[P, R]:
    '''Decorate a handler so that what it handles is done when it returns.

    For ``Worker._process_message``, and for a pool's ``process_message(result, result_done)``; plain functions,
    coroutines and ``@gen.coroutine``. If the handler raises, nothing is done: the error ends the task.
    '''
    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def wrapper(*args: Any) -> None:
            await handler(*args)  # type: ignore[call-arg]
            _done_of(args)()
    else:

        @functools.wraps(handler)
        def wrapper(*args: Any) -> Any:
            outcome = handler(*args)  # type: ignore[call-arg]
            if outcome is not None and inspect.isawaitable(outcome):
                return _done_after(outcome, args)
            _done_of(args)()
            return None

    wrapper._looppool_undecorated = wrapper, handler  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def undecorated(handler: Callable[..., Any]) -> tuple[Callable[..., Any], bool]:
    '''What `task_done` decorated, for a caller that sees to "done" itself, and whether it was decorated at all.

    It saves the path of every message two calls and, for a coroutine, one more coroutine.
    '''
    function = getattr(handler, '__func__', handler)
    wrapper, plain = getattr(function, '_looppool_undecorated', (None, None))
    # Another decorator on top may have copied the attribute, as functools.wraps does.
    if plain is None or wrapper is not function:
        return handler, False
    return (plain if function is handler else plain.__get__(handler.__self__)), True  # type: ignore[attr-defined]


def _done_of(args: tuple[Any, ...]) -> Callable[[], None]:
    first = args[0]
    if len(args) == 2 and isinstance(first, Worker):
        return first._task_done
    return args[-1]  # type: ignore[no-any-return]


async def _done_after(outcome: Any, args: tuple[Any, ...]) -> None:
    await outcome
    _done_of(args)()


def idempotent(target: T) -> T:
    '''Mark a Worker class, or its ``_process_message``, whose tasks may be run twice without harm.

    A task that may have run when its worker died is then run once more, or ``Pool(retries=...)`` times if that is more.
    '''
    target._looppool_idempotent = True  # type: ignore[attr-defined]
    return target


def is_idempotent(target: object) -> bool:
    '''Whether `target` was marked by `idempotent`.'''
    return getattr(target, '_looppool_idempotent', False)
