'''Sees the application's handlers of results and failures to their end.

1. A result ends when its handler fails, whatever else was said: its credit is never lost.
2. What a handler raises is logged and hurts nobody else; CancelledError too, as a handler may await what is cancelled.
'''

import asyncio
import contextlib
import contextvars
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .codec import decode

__all__ = ['FAILURES', 'Handlers', 'current_handlers', 'end_result']

_log: Final = logging.getLogger('looppool')

FAILURES: Final = (Exception, asyncio.CancelledError)
'''What a handler may raise without taking the loop with it.'''


current_handlers: Final[contextvars.ContextVar[object]] = contextvars.ContextVar('looppool_handlers', default=None)
'''The `Handlers` of the pool whose handler a piece of code runs for.'''


class Handlers:
    '''The handlers that run as asyncio tasks.

    :param name: the pool's, for the log.
    :param changed: set when one has ended.
    :ivar stoppers: how many of them wait for the pool to stop.
    :ivar untold: failures that the application is still to be told.
    '''

    def __init__(self, name: str, changed: asyncio.Event) -> None:
        self.running: set[asyncio.Task[None] | None] = set()
        self.stoppers = 0
        self.untold = 0
        self._name = name
        self._changed = changed

    def follow(self, outcome: Any, result_done: Callable[[], None], *, done_on_return: bool) -> None:
        '''See to the end what a handler of a result returned; the result is done then if `done_on_return`.'''
        if inspect.isawaitable(outcome):
            self._run(self._follow(outcome, result_done, done_on_return))

    async def _follow(self, outcome: Any, result_done: Callable[[], None], done_on_return: bool) -> None:
        current_handlers.set(self)
        try:
            await outcome
            if done_on_return:
                result_done()
        except FAILURES:
            _log.exception('process_message of pool %r failed', self._name)
            end_result(result_done)
        finally:
            self._ended()

    def fail(self, process_failure: Callable[[Any, BaseException], Any], data: bytes, error: BaseException) -> None:
        '''Tell the application that the task in `data` ended with `error`.'''
        # From the loop, so that what the handler raises, an interrupt perhaps, hurts nobody's bookkeeping.
        self.untold += 1
        asyncio.get_running_loop().call_soon(self._tell, process_failure, data, error)

    def _tell(self, process_failure: Callable[[Any, BaseException], Any], data: bytes, error: BaseException) -> None:
        self.untold -= 1
        self._changed.set()
        task: Any = data
        try:
            task = decode(data)
        except Exception as failure:
            error.add_note(f'the task is given as its pickled bytes, as it could not be loaded: {failure!r}')
        try:
            outcome = process_failure(task, error)
            if inspect.isawaitable(outcome):
                self._run(self._follow_failure(outcome))
        except FAILURES:
            self._log_failure()

    async def _follow_failure(self, outcome: Any) -> None:
        current_handlers.set(self)
        try:
            await outcome
        except FAILURES:
            self._log_failure()
        finally:
            self._ended()

    def _log_failure(self) -> None:
        _log.exception('process_failure of pool %r failed', self._name)

    def _run(self, handling: Coroutine[Any, Any, None]) -> None:
        # Not by a task factory, which may run it at once, to its end, before it is known here.
        self.running.add(asyncio.Task(handling, loop=asyncio.get_running_loop()))

    def _ended(self) -> None:
        # Said by the task itself: a done callback would cost every result one more turn of the loop.
        self.running.discard(asyncio.current_task())
        self._changed.set()


def end_result(result_done: Callable[[], None]) -> None:
    '''End a result, if it has not ended.'''
    with contextlib.suppress(ValueError):
        result_done()
