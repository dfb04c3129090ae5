'''The caller's side of streams: calls with items, one way or both.'''

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from .calls import Call, Link, Request
from .errors import StreamClosed
from .exchange import Exchange
from .payload import Body

if TYPE_CHECKING:
    from .verbs import Verbs

__all__ = ['ItemStream', 'OpenStream']

T = TypeVar('T')


class _StreamCall(Call):
    '''A call with items.'''

    def __init__(self, loop: asyncio.AbstractEventLoop, what: Callable[..., Any], exchange: Exchange) -> None:
        super().__init__(loop, what)
        self.ended = asyncio.Event()
        self._exchange = exchange
        self.on_items = exchange.on_items  # type: ignore[method-assign]
        self.on_more = exchange.on_more  # type: ignore[method-assign]
        self.on_end = exchange.on_end  # type: ignore[method-assign]

    def on_sent(self, link: Link, ident: int) -> None:
        super().on_sent(link, ident)
        self._exchange.attach(link.end, ident)

    def on_value(self, body: Body) -> None:
        self.ended.set()
        super().on_value(body)

    def on_error(self, error: BaseException) -> None:
        self.ended.set()
        super().on_error(error)

    def abandon(self) -> None:
        super().abandon()
        self._exchange.leave()
        if not self.answer.done():
            # Others may wait for it.
            self.answer.set_exception(StreamClosed())
            self.answer.exception()

    def _succeed(self, value: Any) -> None:
        super()._succeed(value)
        self._exchange.close()

    def _fail(self, error: BaseException) -> None:
        super()._fail(error)
        if not self.answer.cancelled():
            # Whoever receives the items is told there.
            self.answer.exception()
        self._exchange.close(error)


class ItemStream(AsyncIterator[T], Generic[T]):
    '''The items of a generator that runs in a worker, from the first ``async for`` on.

    Left early, or collected, the generator is closed over there and runs its ``finally``; `aclose` waits for that.
    '''

    def __init__(self, verbs: 'Verbs', request: Request) -> None:
        self._verbs = verbs
        self._request = request
        # The values that context variables have now travel along, wherever the iteration begins.
        self._context = copy_context()
        self._exchange: Exchange | None = None
        self._call: _StreamCall | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._exchange is None:
            # Several may want the first item.
            async with self._starting:
                if self._closed and self._call is None:
                    raise StopAsyncIteration
                if self._call is None:
                    await self._start()
        assert self._exchange is not None
        return await self._exchange.__anext__()  # type: ignore[no-any-return]

    async def _start(self) -> None:
        loop = self._verbs._call_loop()
        exchange = Exchange(loop, self._verbs._packing())
        call = _StreamCall(loop, self._request[1], exchange)
        await self._verbs._accept(self._context.run(self._verbs._pack_call, call, self._request))
        self._exchange, self._call = exchange, call
        if self._closed:
            call.abandon()

    async def aclose(self) -> None:
        '''Close the generator in the worker, if it still runs, and wait until it has ended. No more items come.'''
        self._closed = True
        if self._call is not None:
            self._call.abandon()
            await self._call.ended.wait()

    def __del__(self) -> None:
        call = self._call
        if call is not None and not call.ended.is_set():
            # Any thread may collect it, and the loop may be closed.
            with contextlib.suppress(RuntimeError):
                call.answer.get_loop().call_soon_threadsafe(call.abandon)


class OpenStream(Exchange):
    '''Both sides of a function that runs in a worker, as an async context manager.

    Leaving it ends what is sent and waits for the function to return; items that were not received are let go. Leaving
    it by an exception cancels the function. What the function raises is raised where items are received, by `result`,
    and when it is left.
    '''

    def __init__(self, verbs: 'Verbs', request: Request) -> None:
        super().__init__(asyncio.get_running_loop(), verbs._packing())
        self._verbs = verbs
        self._request = request
        self._context = copy_context()
        self._call = _StreamCall(self._loop, request[1], self)
        self._unheard = []
        self._entered = False

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError('a stream is good for one call: call open_stream() again')
        self._entered = True
        self._verbs._call_loop()
        await self._verbs._accept(self._context.run(self._verbs._pack_call, self._call, self._request))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._call.abandon()
            return
        self.end()
        self.discard()
        try:
            await self.result()
        except asyncio.CancelledError:
            self._call.abandon()
            raise

    async def result(self) -> Any:
        '''What the function returns. Cancelled, it goes on.

        :raises StreamClosed: the stream was left by an exception, which has cancelled the function.
        :raises Exception: what the function raised.
        '''
        return await asyncio.shield(self._call.answer)
