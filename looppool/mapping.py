'''`map`: a function over any number of items, in chunks that are calls.

1. So many chunks are under way that each worker has some to go on with; no more is read from the items.
2. The size of the chunks follows from how long an item takes: long enough to hide the way there and back, short enough
   to leave the worker's loop and the others in peace.
'''

import asyncio
import inspect
import reprlib
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from .callee import calls_tasks
from .runner import caught

__all__ = ['mapped']

_CHUNK_TIME: Final = 0.005
'''What a chunk is to take in the worker, in seconds, if its size is to be found.'''
_LARGEST_CHUNK: Final = 2048
_AHEAD: Final = 4
'''How many chunks are under way for each worker: enough that it has one to go on with while an answer travels.'''
_GROWTH: Final = 4
'''By how much a chunk may be larger than those before.'''

Chunk = tuple[int, list[Any]]
'''The index of the first item, and the items.'''


@calls_tasks
async def run_chunk(function: Callable[..., Any], first: int, items: list[Any]) -> tuple[list[Any], float]:
    '''In the worker: the values for a chunk, and the seconds that it took. Coroutines run side by side.'''
    before = time.monotonic()
    values = []
    for index, item in enumerate(items, first):
        try:
            values.append(function(item))
        except Exception as error:
            _name(error, index, item)
            raise
    if values and inspect.isawaitable(values[0]):
        named = zip(values, range(first, first + len(items)), items, strict=True)
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


async def mapped(
    call: Callable[..., Any],
    width: Callable[[], int],
    function: Callable[..., Any],
    items: Iterable[Any] | AsyncIterable[Any],
    *,
    ordered: bool,
    chunksize: int | None,
    progress: Any,
) -> AsyncGenerator[Any, None]:
    '''See `Verbs.map`.

    :param call: makes a call.
    :param width: how many workers there are to share the chunks.
    '''
    source, size, exhausted = _Source(items), chunksize or 1, False
    taking: asyncio.Future[Chunk] | None = None
    under_way: list[asyncio.Future[Any]] = []
    try:
        while under_way or not exhausted:
            while taking is None and not exhausted and len(under_way) < _AHEAD * width():
                taken = source.take_now(size)
                if taken is None:
                    taking = asyncio.ensure_future(source.take(size))
                elif taken[1]:
                    under_way.append(asyncio.ensure_future(caught(call, run_chunk, function, *taken)))
                else:
                    exhausted = True
            candidates = under_way[:1] if ordered else list(under_way)
            waited_for: list[asyncio.Future[Any]] = [*candidates, *([taking] if taking else [])]
            if waited_for and not any(future.done() for future in waited_for):
                await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if taking is not None and taking.done():
                first, chunk = taking.result()
                taking, exhausted = None, not chunk
                if chunk:
                    under_way.append(asyncio.ensure_future(caught(call, run_chunk, function, first, chunk)))
            for ended in candidates:
                if ended.done():
                    under_way.remove(ended)
                    if isinstance(ended.result(), SystemExit):
                        raise ended.result()
                    values, seconds = ended.result()
                    if chunksize is None:
                        size = _next_size(size, len(values), seconds)
                    for value in values:
                        yield value
                        if progress is not None:
                            progress.update(1)
    finally:
        rest: list[asyncio.Future[Any]] = [*under_way, *([taking] if taking else [])]
        for future in rest:
            future.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


def _next_size(size: int, count: int, seconds: float) -> int:
    '''A chunk of `count` items has taken `seconds`: how many the next one is to have, if it was `size` so far.'''
    fitting = int(_CHUNK_TIME / max(seconds / count, 1e-9))
    return max(1, min(fitting, _GROWTH * max(size, count), _LARGEST_CHUNK))
