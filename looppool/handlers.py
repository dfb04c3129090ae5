'''Sees the application's handlers of results and failures to their end.

1. A result ends when its handler fails, whatever else was said: its credit is never lost.
2. What a handler raises is logged and hurts nobody else; CancelledError too, as a handler may await what is cancelled.
'''

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .codec import decode
from .runner import Runner, as_coroutine

__all__ = ['FAILURES', 'Handlers', 'current_handlers', 'end_result']

_log: Final = logging.getLogger('looppool')

FAILURES: Final = (Exception, asyncio.CancelledError)
'''What a handler may raise without taking the loop with it.'''


current_handlers: Final[contextvars.ContextVar[object]] = contextvars.ContextVar('looppool_handlers', default=None)
'''The `Handlers` of the pool whose handler a piece of code runs for.'''


class Handlers:
    '''The handlers that are coroutines, or that the application is still to be told through.

    :param name: the pool's, for the log.
    :param changed: set when one has ended.
    :ivar running: how many coroutines have not ended.
    :ivar stoppers: how many of them wait for the pool to stop.
    :ivar untold: failures that the application is still to be told.
    '''

    def __init__(self, name: str, changed: asyncio.Event) -> None:
        self.running = 0
        self.stoppers = 0
        self.untold = 0
        self._name = name
        self._changed = changed
        self._runner: Runner[tuple[Any, object]] | None = None

    def run(
        self, coroutine: Coroutine[Any, Any, Any], result_done: Callable[[], None], *, done_on_return: bool
    ) -> None:
        '''See to its end what a handler of a result returned; the result is done then if `done_on_return`.'''
        self._run(coroutine, (result_done, done_on_return))

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
            coroutine = as_coroutine(process_failure(task, error))
        except FAILURES as failure:
            self._log('process_failure', failure)
        else:
            if coroutine is not None:
                self._run(coroutine, ('process_failure', object()))

    def _run(self, coroutine: Coroutine[Any, Any, Any], token: tuple[Any, object]) -> None:
        if self._runner is None:
            self._runner = Runner(asyncio.get_running_loop(), self._ended)
        self.running += 1
        context = contextvars.copy_context()
        context.run(current_handlers.set, self)
        self._runner.run(coroutine, context, token)

    def _ended(self, token: tuple[Any, object], error: BaseException | None) -> None:
        self.running -= 1
        self._changed.set()
        handler, done_on_return = token
        if handler != 'process_failure':
            if done_on_return or error is not None:
                end_result(handler)
            handler = 'process_message'
        if isinstance(error, FAILURES):
            self._log(handler, error)
        elif error is not None:
            raise error

    def _log(self, handler: str, error: BaseException) -> None:
        _log.error('%s of pool %r failed', handler, self._name, exc_info=error)


def end_result(result_done: Callable[[], None]) -> None:
    '''End a result, if it has not ended.'''
    try:
        result_done()
    except ValueError:
        pass
