'''The items of a call, on one side of it: out against credit, in to whoever receives them.

1. Sending takes a permit of a bounded semaphore, in items and bytes; the receiver gives them back in batches.
2. Receiving gives what came in order, then says that it has ended, or how it has failed.
3. Neither end of the link stops reading: credit alone bounds what waits here.
4. A call that had not begun when its worker died is made again, at another one. What was sent to it is sent again.
'''

import asyncio
import contextlib
import time
from collections import deque
from typing import Any, Final, Protocol, Self

from .channel import SLICE
from .codec import Definition, check_encoded
from .errors import ProtocolError, StreamClosed
from .packing import Packing
from .payload import Body
from .plain import size_of
from .window import Window

__all__ = ['Exchange']

CREDIT: Final = 1024
'''How many items may be on their way in one direction of a stream.'''
CREDIT_BYTES: Final = 16 << 20
'''How many bytes of them; one larger item passes alone.'''


class Side(Protocol):
    '''The end of the link, as far as items go.'''

    max_body: int

    def send_item(self, ident: int, item: Body, needs: tuple[Definition, ...]) -> None: ...
    def send_more(self, ident: int, count: int, size: int) -> None: ...
    def send_end(self, ident: int) -> None: ...


class Exchange:
    '''One side of a stream. All methods belong to the loop's thread.

    ``async for item in stream`` receives until no more are sent; several may receive, each item goes to one of them.
    '''

    def __init__(self, loop: asyncio.AbstractEventLoop, packing: Packing) -> None:
        self._loop = loop
        self._packing = packing
        self._side: Side | None = None
        self._ident = 0
        self._out = Window(CREDIT, CREDIT_BYTES)
        self._in: deque[Body] = deque()
        self._taken = self._taken_bytes = 0
        self._receivers: deque[asyncio.Future[None]] = deque()
        self._senders: deque[asyncio.Future[None]] = deque()
        self._out_ended = self._in_ended = self._discarding = False
        self._error: BaseException | None = None
        self._slice_end = 0.0
        self._unheard: list[tuple[Body, tuple[Definition, ...]]] | None = None
        '''What was sent before anything has shown that the call has begun; credit bounds it.'''

    def attach(self, side: Side, ident: int) -> None:
        '''The call `ident` is on its way, perhaps not for the first time: its items go by `side`.'''
        first = self._side is None
        self._side, self._ident = side, ident
        for item in self._unheard or ():
            side.send_item(ident, *item)
        if self._out_ended:
            side.send_end(ident)
        if first:
            _wake_all(self._senders)

    # What the link tells

    def on_items(self, items: list[Body]) -> None:
        '''Items have come.'''
        if self._in_ended:
            raise ProtocolError('an item came behind the last one')
        if len(self._in) + len(items) > CREDIT:
            raise ProtocolError('more items came than there was credit for')
        self._unheard = None
        self._in.extend(items)
        if self._discarding:
            self.discard()
        _wake(self._receivers)

    def on_more(self, count: int, size: int) -> None:
        '''Credit has come.'''
        self._out.give(size, count)
        self._unheard = None
        _wake(self._senders)

    def on_end(self) -> None:
        '''The other side sends no more items.'''
        self._in_ended = True
        _wake_all(self._receivers)

    def close(self, error: BaseException | None = None) -> None:
        '''The call has ended: what came can still be received, then `error`; nothing is sent any more.'''
        self._side = self._unheard = None
        self._error = error
        self._out_ended = self._in_ended = True
        _wake_all(self._receivers)
        _wake_all(self._senders)

    def discard(self) -> None:
        '''Nobody receives any more: what came, and what comes, is let go.'''
        self._discarding = True
        self._taken += len(self._in)
        self._taken_bytes += sum(map(size_of, self._in))
        self._in.clear()
        self._give_back()
        _wake_all(self._receivers)

    def leave(self) -> None:
        '''Nobody receives any more, and nobody sends: the call is of no use.'''
        self._out_ended = True
        self._unheard = None
        _wake_all(self._senders)
        self.discard()

    # Sending

    async def send(self, item: Any) -> None:
        '''Send an item; wait for credit, first come, first served. Cancelled, it has sent nothing.

        :raises StreamClosed: `end` was called, or the call has ended.
        :raises MessageTooBig: the pickled item is larger than ``Pool(max_message_bytes=...)``.
        :raises Exception: the error of pickling it.
        '''
        body, needs, size = encoded = self._packing.pack(item)
        if time.monotonic() > self._slice_end:
            # Items that are made without waiting for anything must not keep the loop from turning.
            await asyncio.sleep(0)
            self._slice_end = time.monotonic() + SLICE
        while self._side is None and not self._out_ended:
            # Its worker is not ready yet.
            await self._wait(self._senders)
        if self._out_ended or self._side is None:
            raise StreamClosed()
        check_encoded(encoded, self._side.max_body)
        if self._senders or not self._out.try_take(size):
            await self._permit(size)
        self._side.send_item(self._ident, body, needs)
        if self._unheard is not None:
            self._unheard.append((body, needs))

    async def _permit(self, size: int) -> None:
        again = False
        while True:
            await self._wait(self._senders, again)
            again = True
            if self._out_ended:
                raise StreamClosed()
            if self._out.try_take(size):
                # There may be more.
                _wake(self._senders)
                return

    def end(self) -> None:
        '''No more items will be sent; the other side learns it behind the last one. Receiving goes on.'''
        if not self._out_ended and self._side is not None:
            self._side.send_end(self._ident)
        self._out_ended = True
        _wake_all(self._senders)

    # Receiving

    async def receive(self) -> Any:
        '''The next item. Cancelled, it has taken none.

        :raises StreamClosed: there are no more.
        :raises Exception: there are no more, as the call has failed: its error.
        '''
        while not self._in:
            if self._in_ended or self._discarding:
                raise self._error or StreamClosed()
            await self._wait(self._receivers)
        body = self._in.popleft()
        if self._in and self._receivers:
            # One was woken for all that came together.
            _wake(self._receivers)
        self._taken += 1
        self._taken_bytes += size_of(body)
        if not self._in or self._taken >= CREDIT // 4:
            self._give_back()
        return self._packing.unpack(body)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._in or not self._in_ended or self._error is not None:
            with contextlib.suppress(StreamClosed):
                return await self.receive()
        raise StopAsyncIteration

    def _give_back(self) -> None:
        if self._taken and self._side is not None:
            self._side.send_more(self._ident, self._taken, self._taken_bytes)
        self._taken = self._taken_bytes = 0

    async def _wait(self, line: deque[asyncio.Future[None]], first: bool = False) -> None:
        '''Stand in line until woken; whoever leaves it by being cancelled wakes the next one instead.'''
        waiting = self._loop.create_future()
        if first:
            line.appendleft(waiting)
        else:
            line.append(waiting)
        try:
            await waiting
        except BaseException:
            if waiting.done() and not waiting.cancelled():
                _wake(line)
            raise


def _wake(line: deque[asyncio.Future[None]]) -> None:
    while line:
        waiting = line.popleft()
        if not waiting.done():
            waiting.set_result(None)
            return


def _wake_all(line: deque[asyncio.Future[None]]) -> None:
    for waiting in line:
        if not waiting.done():
            waiting.set_result(None)
    line.clear()
