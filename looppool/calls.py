'''One call, as its caller knows it.

1. A call is a task with an answer. It takes a permit like any task, and gives it back when its answer has come.
2. Cancelling whoever awaits a call cancels it in the worker: dropped if it has not begun, else its asyncio task is
   cancelled, else it is interrupted, else its worker is killed. Nobody waits for that: the permit alone does.
3. What comes for a call that nobody waits for any more is dropped; an error of its own is logged.
'''

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from .codec import decode
from .errors import PoolBroken, PoolClosed, ProtocolError, TaskInterrupted, WorkerDied, WorkerStartError
from .payload import Body

__all__ = ['Call', 'Link', 'Request']

_log: Final = logging.getLogger('looppool')

_QUIET: Final = (asyncio.CancelledError, TaskInterrupted, WorkerDied, WorkerStartError, PoolClosed, PoolBroken)
'''How a call ends that was cancelled, or that others tell of.'''


Request = tuple[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]]
'''What is asked of a worker: what the call is for (see `callee`), the function and its arguments.'''


class Link(Protocol):
    '''What a call needs of the link that it went by.'''

    @property
    def end(self) -> Any: ...
    def abandon(self, ident: int) -> None: ...
    def understand(self, body: bytes) -> BaseException: ...
    def cut_short(self, error: BaseException) -> BaseException: ...


class Call:
    '''One call, as its caller knows it: the `protocol.Caller` of its link.

    :param what: the function, for the log.
    '''

    abandoned = False
    in_line: asyncio.Task[None] | None = None
    '''What waits for its credit, if that is not its caller.'''
    link: Link | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, what: Callable[..., Any]) -> None:
        self.answer: asyncio.Future[Any] = loop.create_future()
        self._what = what

    async def value(self) -> Any:
        '''Wait for the answer. Cancelled, the call is abandoned.'''
        try:
            return await self.answer
        except asyncio.CancelledError:
            self.abandon()
            raise

    def abandon(self) -> None:
        '''The answer is of no use any more.'''
        if not self.abandoned:
            self.abandoned = True
            if self.in_line is not None:
                self.in_line.cancel()
            if self.link is not None:
                self.link.abandon(self._ident)

    # What the link and the pool tell

    def on_sent(self, link: Link, ident: int) -> None:
        self.link, self._ident = link, ident

    def on_value(self, body: Body) -> None:
        if self.abandoned or self.answer.done():
            # Done without an answer, it was cancelled in this very turn of the loop.
            self.on_late(body)
            return
        try:
            value = decode(body)
        except Exception as error:
            error.add_note(f'while loading what {self._what!r} returned')
            self.on_error(error)
        else:
            self._succeed(value)

    def on_late(self, body: Body) -> None:
        '''A value has come that nobody waits for.'''

    def on_failure(self, body: bytes) -> None:
        assert self.link is not None
        error = self.link.understand(body)
        if isinstance(error, asyncio.CancelledError) and not self.abandoned:
            # Whoever awaits it was not cancelled, and has to be told otherwise.
            error = self.link.cut_short(error)
        self.on_error(error)

    def on_error(self, error: BaseException) -> None:
        if not self.abandoned:
            self._fail(error)
        elif not _is_quiet(error):
            _log.error('a call of %r failed after it was cancelled', self._what, exc_info=error)

    def _succeed(self, value: Any) -> None:
        # It may have been cancelled while the value was loaded, by a signal's handler.
        if not self.answer.done():
            self.answer.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if self.answer.done():
            # Cancelled in this very turn of the loop.
            return
        if isinstance(error, StopIteration):
            # A future refuses to raise it.
            self.answer.set_exception(RuntimeError(f'{self._what!r} raised StopIteration'))
        else:
            self.answer.set_exception(error)

    def on_items(self, items: list[Body]) -> None:
        raise ProtocolError('items came for a call that has none')

    def on_more(self, count: int, size: int) -> None:
        raise ProtocolError('credit came for a call that has no items')

    def on_end(self) -> None:
        raise ProtocolError('an end came for a call that has no items')


def _is_quiet(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_quiet, error.exceptions))
    return isinstance(error, _QUIET)
