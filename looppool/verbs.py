'''What can be asked of workers: one vocabulary for a pool, a worker, a lease, and for one worker towards another.'''

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from . import callee, objects
from .calls import Call, Link, Request
from .codec import decode
from .errors import Full
from .mapping import mapped
from .objects import RemoteObject
from .packing import Packing
from .payload import Body
from .streams import ItemStream, OpenStream
from .worker import is_idempotent

if TYPE_CHECKING:
    from .protocol import Parcel

__all__ = ['Addressed', 'Verbs', 'in_thread']

P = ParamSpec('P')
R = TypeVar('R')


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

    def on_late(self, body: Body) -> None:
        self.keep(decode(body))


class Verbs:
    '''What can be asked of a pool, which picks a worker, and of a worker. All methods belong to the loop's thread.'''

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
        '''The loop to call from; it raises what forbids a call now.'''
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
        if not callable(factory):
            raise TypeError(f'a class or a function is needed to create an object, not {factory!r}')
        creation = _Creation(self, factory)
        await self._accept(self._pack_call(creation, (callee.CALL, objects.create, (factory, args, kwargs), {})))
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
        data, terms, size, _ = self.pool._pack_call(call, request)
        return data, terms._replace(number=self._address()), size, call

    def _packing(self) -> Packing:
        return self.pool._packing()  # type: ignore[no-any-return]

    def _try_accept(self, parcel: 'Parcel') -> bool:
        return self.pool._try_accept(parcel)  # type: ignore[no-any-return]

    async def _accept(self, parcel: 'Parcel') -> None:
        # It may have left since the call was made.
        self._address()
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
