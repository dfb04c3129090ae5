'''`map`: a function over any number of items, in chunks that are calls.

1. So many chunks are under way that each worker has some to go on with; no more is read from the items.
2. The size of the chunks follows from how long an item takes: long enough to hide the way there and back, short enough
   to leave the worker's loop and the others in peace.
3. A chunk costs a call, and no asyncio task: its answer wakes whoever iterates, once for all that have come.
'''

import asyncio
import inspect
import reprlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from .callee import calls_tasks

__all__ = ['mapped']

_CHUNK_TIME: Final = 0.005
'''What a chunk is to take in the worker, in seconds, if its size is to be found.'''
_LARGEST_CHUNK: Final = 2048
_AHEAD: Final = 4
'''How many chunks are under way for each worker: enough that it has one to go on with while an answer travels.'''
_AHEAD_TIME: Final = 0.002
'''For how long a worker has to have enough of them, in seconds: those that take less travel several at once.'''
_FARTHEST_AHEAD: Final = 32
_GROWTH: Final = 4
'''By how much a chunk may be larger than those before.'''

Chunk = tuple[int, list[Any]]
'''The index of the first item, and the items.'''
Outcome = tuple[list[Any], float]
'''The values for a chunk, and the seconds that it took.'''


class Begun(Protocol):
    '''A call that was made.'''

    answer: 'asyncio.Future[Any]'

    def abandon(self) -> None: ...


@calls_tasks
def run_chunk(function: Callable[..., Any], first: int, items: list[Any]) -> Outcome | Awaitable[Outcome]:
    '''In the worker: the outcome of a chunk. Coroutines run side by side.'''
    before = time.monotonic()
    values: list[Any] = []
    try:
        values.extend(map(function, items))
        if len(values) < len(items):
            raise RuntimeError(f'{function!r} raised StopIteration')
    except Exception as error:
        _name(error, first + len(values), items[len(values)])
        raise
    if values and inspect.isawaitable(values[0]):
        return _run_together(values, first, items, before)
    return values, time.monotonic() - before


async def _run_together(awaitables: list[Any], first: int, items: list[Any], before: float) -> Outcome:
    named = zip(awaitables, range(first, first + len(items)), items, strict=True)
    running = [asyncio.ensure_future(_named(*one)) for one in named]
    try:
        values = await asyncio.gather(*running)
    finally:
        for one in running:
            one.cancel()
    return values, time.monotonic() - before


async def _named(awaitable: Any, index: int, item: Any) -> Any:
    try:
        return await awaitable
    except Exception as error:
        _name(error, index, item)
        raise


def _name(error: Exception, index: int, item: Any) -> None:
    error.add_note(f'map: item {index}, {reprlib.repr(item)}')


class _Source:
    '''The items, of a plain or an async iterable, in chunks.'''

    def __init__(self, items: Iterable[Any] | AsyncIterable[Any]) -> None:
        self._plain: Iterator[Any] | None = None
        if isinstance(items, AsyncIterable):
            self._later = aiter(items)
        else:
            self._plain = iter(items)
        self._next = 0

    def take_now(self, size: int) -> Chunk | None:
        '''The next chunk; an empty one behind the last. None if it has to be waited for.'''
        return None if self._plain is None else self._chunk(list(islice(self._plain, size)))

    async def take(self, size: int) -> Chunk:
        '''The next chunk, waited for.'''
        items: list[Any] = []
        while len(items) < size:
            try:
                items.append(await anext(self._later))
            except StopAsyncIteration:
                break
        return self._chunk(items)

    def _chunk(self, items: list[Any]) -> Chunk:
        first, self._next = self._next, self._next + len(items)
        return first, items


class _Chunks:
    '''The chunks that are under way, and those to come.

    :param begin: makes a call, at once or when there is credit.
    :param width: how many workers there are to share the chunks.
    '''

    def __init__(
        self,
        begin: Callable[..., Begun],
        width: Callable[[], int],
        function: Callable[..., Any],
        items: Iterable[Any] | AsyncIterable[Any],
        ordered: bool,
        chunksize: int | None,
    ) -> None:
        self._begin = begin
        self._width = width
        self._function = function
        self._source = _Source(items)
        self._ordered = ordered
        self._chunksize = chunksize
        self._size = chunksize or 1
        self._ahead = _AHEAD
        self._under_way: dict[asyncio.Future[Outcome], Begun] = {}
        self._ended: deque[asyncio.Future[Outcome]] = deque()
        '''Those of them that have ended, if their order does not matter.'''
        self._taking: asyncio.Future[Chunk] | None = None
        self._exhausted = False
        self._change: asyncio.Future[None] | None = None

    async def next(self) -> list[Any] | None:
        '''The values of the next chunk; None behind the last.'''
        while True:
            self._fill()
            ended = self._take_ended()
            if ended is not None:
                return self._values(ended)
            if not self._under_way and self._taking is None:
                return None
            self._change = asyncio.get_running_loop().create_future()
            await self._change

    def _fill(self) -> None:
        if self._taking is not None and self._taking.done():
            taken, self._taking = self._taking.result(), None
            self._send(taken)
        while not self._exhausted and self._taking is None and len(self._under_way) < self._ahead * self._width():
            chunk = self._source.take_now(self._size)
            if chunk is None:
                self._taking = asyncio.ensure_future(self._source.take(self._size))
                self._taking.add_done_callback(self._on_end)
            else:
                self._send(chunk)

    def _send(self, chunk: Chunk) -> None:
        if not chunk[1]:
            self._exhausted = True
            return
        call = self._begin(run_chunk, self._function, *chunk)
        self._under_way[call.answer] = call
        call.answer.add_done_callback(self._on_end)

    def _on_end(self, future: 'asyncio.Future[Any]') -> None:
        if not self._ordered and future is not self._taking:
            self._ended.append(future)
        if self._change is not None and not self._change.done():
            self._change.set_result(None)

    def _take_ended(self) -> 'asyncio.Future[Outcome] | None':
        if not self._ordered:
            return self._ended.popleft() if self._ended else None
        first = next(iter(self._under_way), None)
        return None if first is None or not first.done() else first

    def _values(self, ended: 'asyncio.Future[Outcome]') -> list[Any]:
        del self._under_way[ended]
        values, seconds = ended.result()
        if self._chunksize is None:
            self._size = _next_size(self._size, len(values), seconds)
        self._ahead = max(_AHEAD, min(int(_AHEAD_TIME / max(seconds, 1e-9)), _FARTHEST_AHEAD))
        return values

    async def close(self) -> None:
        '''Cancel what is under way.'''
        for answer, call in self._under_way.items():
            call.abandon()
            if not answer.cancel():
                answer.exception()
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.gather(self._taking, return_exceptions=True)


async def mapped(
    begin: Callable[..., Begun],
    width: Callable[[], int],
    function: Callable[..., Any],
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    ordered: bool,
    chunksize: int | None,
    progress: Any,
) -> AsyncGenerator[Any, None]:
    '''See `Verbs.map`, and `_Chunks`.'''
    chunks = _Chunks(begin, width, function, items, ordered, chunksize)
    try:
        while (values := await chunks.next()) is not None:
            for value in values:
                yield value
                if progress is not None:
                    progress.update(1)
    finally:
        await chunks.close()


def _next_size(size: int, count: int, seconds: float) -> int:
    '''A chunk of `count` items has taken `seconds`: how many the next one is to have, if it was `size` so far.'''
    fitting = int(_CHUNK_TIME / max(seconds / count, 1e-9))
    return max(1, min(fitting, _GROWTH * max(size, count), _LARGEST_CHUNK))
