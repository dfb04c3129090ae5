'''Sees the application's handlers of results and failures to their end.

1. A result ends when its handler fails, whatever else was said: its credit is never lost.
2. What a handler raises is logged and hurts nobody else; CancelledError too, as a handler may await what is cancelled.
'''

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .packing import Packing
from .payload import Body
from .runner import Runner, as_coroutine

__all__ = ['FAILURES', 'Handlers', 'current_handlers', 'end_result']

_log: Final = logging.getLogger('looppool')

FAILURES: Final = (Exception, asyncio.CancelledError)
'''What a handler may raise without taking the loop with it.'''


current_handlers: Final[contextvars.ContextVar[object]] = contextvars.ContextVar('looppool_handlers', default=None)
'''The `Handlers` of the pool whose handler a piece of code runs for.'''


Ended = Callable[[BaseException | None], None]
'''Is told how a coroutine has ended: None, or what it raised.'''


class Handlers:
    '''The handlers that are coroutines, or that the application is still to be told through.

    :param name: the pool's, for the log.
    :param changed: set when one has ended.
    :param packing: the pool's.
    :ivar running: how many coroutines have not ended.
    :ivar stoppers: how many of them wait for the pool to stop.
    :ivar untold: failures that the application is still to be told.
    '''

    def __init__(self, name: str, changed: asyncio.Event, packing: Packing) -> None:
        self.running = 0
        self.stoppers = 0
        self.untold = 0
        self._name = name
        self._changed = changed
        self._packing = packing
        self._runner: Runner[Ended] | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any], ended: Ended) -> None:
        '''See a handler to its end, which is told to `ended`, a callable of its own.'''
        if self._runner is None:
            self._runner = Runner(asyncio.get_running_loop(), self._ended)
        self.running += 1
        context = contextvars.copy_context()
        context.run(current_handlers.set, self)
        self._runner.run(coroutine, context, ended)

    def _ended(self, ended: Ended, error: BaseException | None) -> None:
        self.running -= 1
        self._changed.set()
        ended(error)
        if error is not None and not isinstance(error, FAILURES):
            raise error

    def result_failed(self, error: BaseException) -> None:
        '''A handler of a result has raised.'''
        if isinstance(error, FAILURES):
            _log.error('process_message of pool %r failed', self._name, exc_info=error)

    def fail(self, process_failure: Callable[[Any, BaseException], Any], data: Body, error: BaseException) -> None:
        '''Tell the application that the task in `data` ended with `error`.'''
        # From the loop, so that what the handler raises, an interrupt perhaps, hurts nobody's bookkeeping.
        self.untold += 1
        asyncio.get_running_loop().call_soon(self._tell, process_failure, data, error)

    def _tell(self, process_failure: Callable[[Any, BaseException], Any], data: Body, error: BaseException) -> None:
        self.untold -= 1
        self._changed.set()
        task: Any = data
        try:
            task = self._packing.unpack_task(data)
        except Exception as failure:
            error.add_note(f'the task is given as its bytes, as it could not be loaded: {failure!r}')
        try:
            coroutine = as_coroutine(process_failure(task, error))
        except FAILURES as failure:
            self._failed(failure)
        else:
            if coroutine is not None:
                self.run(coroutine, functools.partial(self._failed))

    def _failed(self, error: BaseException | None) -> None:
        if isinstance(error, FAILURES):
            _log.error('process_failure of pool %r failed', self._name, exc_info=error)


def end_result(result_done: Callable[[], None]) -> None:
    '''End a result, if it has not ended.'''
    try:
        result_done()
    except ValueError:
        pass
