'''The caller's side: functions run in a worker, and streams to and from them.

1. A call is a task with an answer. It takes a permit like any task, and gives it back when its answer has come.
2. Cancelling whoever awaits a call cancels it in the worker: dropped if it has not begun, else its asyncio task is
   cancelled, else it is interrupted, else its worker is killed. Nobody waits for that: the permit alone does.
3. What comes for a call that nobody waits for any more is dropped; an error of its own is logged.
'''

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from . import callee, objects
from .codec import decode
from .errors import (
    Full,
    PoolBroken,
    PoolClosed,
    ProtocolError,
    StreamClosed,
    TaskInterrupted,
    WorkerDied,
    WorkerStartError,
)
from .exchange import Exchange
from .mapping import mapped
from .objects import RemoteObject
from .packing import Packing
from .worker import is_idempotent

if TYPE_CHECKING:
    from .protocol import Parcel

__all__ = ['Addressed', 'Call', 'ItemStream', 'OpenStream', 'Request', 'Verbs', 'in_thread']

P = ParamSpec('P')
R = TypeVar('R')
T = TypeVar('T')

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

    __slots__ = ('_ident', '_what', 'abandoned', 'answer', 'in_line', 'link')

    def __init__(self, loop: asyncio.AbstractEventLoop, what: Callable[..., Any]) -> None:
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.abandoned = False
        self.in_line: asyncio.Task[None] | None = None
        '''What waits for its credit, if that is not its caller.'''
        self._what = what
        self.link: Link | None = None
        self._ident = 0

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

    def on_value(self, body: bytes) -> None:
        if self.abandoned:
            self.on_late(body)
            return
        try:
            value = decode(body)
        except Exception as error:
            error.add_note(f'while loading what {self._what!r} returned')
            self.on_error(error)
        else:
            self._settle(value)

    def on_late(self, body: bytes) -> None:
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
            self._settle(None, error)
        elif not isinstance(error, _QUIET):
            _log.error('a call of %r failed after it was cancelled', self._what, exc_info=error)

    def _settle(self, value: Any, error: BaseException | None = None) -> None:
        if self.answer.done():
            # Cancelled in this very turn of the loop.
            return
        if error is None:
            self.answer.set_result(value)
        elif isinstance(error, StopIteration):
            # A future refuses to raise it.
            self.answer.set_exception(RuntimeError(f'{self._what!r} raised StopIteration'))
        else:
            self.answer.set_exception(error)

    def on_items(self, items: list[bytes]) -> None:
        raise ProtocolError('items came for a call that has none')

    def on_more(self, count: int, size: int) -> None:
        raise ProtocolError('credit came for a call that has no items')

    def on_end(self) -> None:
        raise ProtocolError('an end came for a call that has no items')


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

    def on_value(self, body: bytes) -> None:
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

    def _settle(self, value: Any, error: BaseException | None = None) -> None:
        super()._settle(value, error)
        if not self.answer.cancelled():
            # Whoever receives the items is told there.
            self.answer.exception()
        self._exchange.close(error)


class _Creation(Call):
    '''A call that makes an object.'''

    def __init__(self, verbs: 'Verbs', factory: Callable[..., Any]) -> None:
        super().__init__(verbs._call_loop(), factory)
        self._verbs = verbs

    def on_sent(self, link: Link, ident: int) -> None:
        super().on_sent(link, ident)
        # From now on, or its worker might leave meanwhile.
        self._verbs._hold(link, 1)

    def on_error(self, error: BaseException) -> None:
        if self.link is not None:
            self._verbs._hold(self.link, -1)
        super().on_error(error)

    def keep(self, key: objects.Key) -> RemoteObject:
        '''What keeps the object alive: collected at once, it lets go of it.'''
        return self._verbs._keep(self.link, key)

    def abandon(self) -> None:
        super().abandon()
        if self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None:
            self.keep(self.answer.result())

    def on_late(self, body: bytes) -> None:
        self.keep(decode(body))


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
        loop = asyncio.get_running_loop()
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


class Verbs:
    '''What can be asked of a pool, which picks a worker, and of a worker. All methods belong to the loop's thread.'''

    async def _make(self, call: Call, request: Request) -> None:
        '''Have a call accepted; wait for credit.'''
        parcel = self._pack_call(call, request)
        if not self._try_accept(parcel):
            await self._accept(parcel)

    def _pack_call(self, call: Call, request: Request) -> 'Parcel':
        raise NotImplementedError

    def _packing(self) -> Packing:
        raise NotImplementedError

    def _try_accept(self, parcel: 'Parcel') -> bool:
        '''Accept it if there is credit now, and that can be told at once.'''
        return False

    async def _accept(self, parcel: 'Parcel') -> None:
        '''Wait in line for credit, and accept it.'''
        raise NotImplementedError

    def _accept_nowait(self, parcel: 'Parcel') -> None:
        '''Accept it, or raise `Full`.'''
        raise NotImplementedError

    def _call_loop(self) -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    @overload
    async def call(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        '''Run a function in a worker; return what it returns, or raise what it raises.

        A plain function runs on the worker's loop and keeps it from all else (see `in_thread`); a coroutine function
        runs beside the others. It waits for credit, in order. Cancelled, the function is cancelled too.

        :raises WorkerDied: the worker died; ``started`` says whether the function may have run.
        :raises WorkerStartError: it was waiting for a worker that failed to start, and no other may run it.
        :raises PoolClosed: the pool is not running, or was stopped before the function had ended.
        :raises PoolBroken: it is broken.
        :raises RemoteError: what the function raised cannot travel as itself; or it was cancelled there, not by you.
        :raises MessageTooBig: the pickled arguments, or the value, are larger than ``Pool(max_message_bytes=...)``.
        :raises Exception: what the function raised, with the remote traceback as its cause; or the error of pickling.
        '''
        call = Call(self._call_loop(), function)
        parcel = self._pack_call(call, (callee.CALL, function, args, kwargs))
        if not self._try_accept(parcel):
            await self._accept(parcel)
        try:
            return await call.answer
        except asyncio.CancelledError:
            call.abandon()
            raise

    def call_nowait(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        '''As `call`, but take the credit at once; what is returned is to be awaited.

        :raises Full: there is no credit now.
        '''
        call = Call(self._call_loop(), function)
        self._accept_nowait(self._pack_call(call, (callee.CALL, function, args, kwargs)))
        return call.value()

    def _begin(self, function: Callable[..., Any], /, *args: Any) -> Call:
        '''Make a call, in line if there is no credit. What goes wrong on the way is its answer too.'''
        call = Call(self._call_loop(), function)
        try:
            parcel = self._pack_call(call, (callee.CALL, function, args, {}))
            self._accept_nowait(parcel)
        except Full:
            call.in_line = asyncio.ensure_future(self._stand_in_line(call, parcel))
        except Exception as error:
            call.on_error(error)
        return call

    async def _stand_in_line(self, call: Call, parcel: 'Parcel') -> None:
        try:
            await self._accept(parcel)
        except Exception as error:
            call.on_error(error)

    def stream(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ItemStream[Any]:
        '''Iterate over what a generator function yields in a worker: ``async for item in pool.stream(function)``.

        Plain and async generators, and functions that return any iterable. The generator waits while too many of its
        items are not taken.

        :raises: as `call`, from the iteration; what the generator raises comes behind its last item.
        '''
        return ItemStream(self, (callee.STREAM, function, args, kwargs))

    def open_stream(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> OpenStream:
        '''Exchange items both ways with a coroutine function, which gets the stream as its first argument.

        ``async with pool.open_stream(function) as stream:`` gives an `OpenStream`; the function gets the other side.
        '''
        return OpenStream(self, (callee.BOTH, function, args, kwargs))

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        ordered: bool = True,
        chunksize: int | None = None,
        progress: Any = None,
    ) -> AsyncGenerator[Any, None]:
        '''Run a function for each item, in the workers: ``async for value in pool.map(function, items)``.

        The items may be of any number; they are read as far ahead as keeps the workers busy. Left or cancelled, what is
        under way is cancelled too.

        :param items: a plain or an async iterable.
        :param ordered: whether the values come in the order of the items, or as they are ready.
        :param chunksize: how many items travel together; default: as many as take some milliseconds.
        :param progress: something with ``update(1)``, such as a bar of tqdm, to be told of each value.
        :raises ValueError: `chunksize` is less than 1.
        :raises: as `call`, from the iteration; a note names the item whose error it is.
        '''
        if chunksize is not None and chunksize < 1:
            raise ValueError(f'chunksize has to be at least 1, or None, not {chunksize!r}')
        context = copy_context()

        def begin(function: Callable[..., Any], *args: Any) -> Call:
            return context.run(self._begin, function, *args)

        return mapped(
            begin, self._width, function, items, ordered=ordered, chunksize=chunksize, progress=progress
        )

    async def create(self, factory: Callable[..., Any], /, *args: Any, **kwargs: Any) -> RemoteObject:
        '''Make an object in a worker: what `factory`, a class or a function, plain or a coroutine, returns.

        It lives there until the `RemoteObject` is closed or collected. It ends with its worker's process, so a worker
        that holds objects does not leave a pool for being idle, and is not recycled for what it did before they are
        released. Cancelled, nothing is left.

        :raises: as `call`.
        '''
        creation = _Creation(self, factory)
        await self._make(creation, (callee.CALL, objects.create, (factory, args, kwargs), {}))
        return creation.keep(await creation.value())

    def _keep(self, link: Any, key: objects.Key) -> RemoteObject:
        '''What stands for an object that was made in the worker that `link` leads to.'''
        return RemoteObject(link.member, key, link=link, keeps=True)

    def _hold(self, link: Any, count: int) -> None:
        link.hold(count)

    def _lasting(self) -> 'Verbs':
        '''The verbs for the same worker that do not end before it.'''
        return self

    def _where(self) -> tuple[str, int | str]:
        '''Which worker this is: the key of its pool, and its address.'''
        raise NotImplementedError

    def _width(self) -> int:
        '''How many workers share the calls.'''
        return 1


class Addressed(Verbs):
    '''The verbs for one worker of `pool`, wherever it is.'''

    pool: Any

    def _address(self) -> int | str:
        raise NotImplementedError

    def _where(self) -> tuple[str, int | str]:
        return self.pool.key, self._address()

    async def put(self, message: Any) -> None:
        '''Put a task to this worker, as ``pool.put(message, worker_num=...)``.

        :raises ValueError: the worker has left the pool.
        :raises RuntimeError: the lease has ended.
        :raises: as ``Pool.put``.
        '''
        await self.pool.put(message, self._address())

    def put_nowait(self, message: Any) -> None:
        '''As `put`, but `Full` if the worker has no credit now.'''
        self.pool.put_nowait(message, self._address())

    def _call_loop(self) -> asyncio.AbstractEventLoop:
        return self.pool._call_loop()  # type: ignore[no-any-return]

    def _pack_call(self, call: Call, request: Request) -> 'Parcel':
        data, terms = self.pool._pack_call(call, request)
        return data, terms._replace(number=self._address())

    def _packing(self) -> Packing:
        return self.pool._packing()  # type: ignore[no-any-return]

    def _try_accept(self, parcel: 'Parcel') -> bool:
        return self.pool._try_accept(parcel)  # type: ignore[no-any-return]

    async def _accept(self, parcel: 'Parcel') -> None:
        await self.pool._accept(parcel)

    def _accept_nowait(self, parcel: 'Parcel') -> None:
        self.pool._accept_nowait(parcel)


class in_thread(Generic[P, R]):
    '''A plain function, to be run in a thread of the worker: ``await pool.call(looppool.in_thread(function), ...)``.

    The worker's loop stays free meanwhile. A thread can't be interrupted: cancelled, the call ends, and the thread goes
    on to the end of the function.
    '''

    def __init__(self, function: Callable[P, R]) -> None:
        if not callable(function):
            raise TypeError(f'in_thread needs a function, not {function!r}')
        self.function = function
        if is_idempotent(function):
            self._looppool_idempotent = True

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(self.function, *args, **kwargs)

    def __repr__(self) -> str:
        return f'in_thread({self.function!r})'
