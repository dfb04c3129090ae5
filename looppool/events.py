'''What happens to a pool and its workers, as a stream of frozen events.

Every iterator gets every event from its making on. Its memory is bounded: one that is slow loses the oldest events, and
is told how many. Nobody waits for it.
'''

import asyncio
import dataclasses
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

__all__ = ['KINDS', 'Events', 'Feed', 'PoolEvent']

KINDS: Final = ('started', 'ready', 'died', 'restarted', 'recycled', 'resized', 'stopped')


@dataclasses.dataclass(frozen=True, slots=True)
class PoolEvent:
    '''Something that happened.

    :ivar kind: ``'started'``: a process was started; ``'ready'``: it takes tasks; ``'died'``: it ended unasked, or was
        killed; ``'restarted'``: a dead worker gets a new process; ``'recycled'``: a worker gets a new process, and the
        old one finishes what it has; ``'resized'``: the pool has another number of workers; ``'stopped'``: a worker has
        ended for good, or without a number, the pool has ended.
    :ivar time: when, in seconds since the epoch.
    :ivar number: the worker's number; None where the event is about the pool.
    :ivar name: the worker's name, if it has one.
    :ivar pid: of the process that it is about, if it is known.
    :ivar cause: why a worker died: `WorkerDied` or `WorkerStartError`; why the pool broke: `PoolBroken`.
    :ivar size: how many workers the pool has now, those with names not counted.
    :ivar missed: how many events were dropped just before this one, as the iterator was too slow.
    '''

    kind: str
    time: float
    number: int | None = None
    name: str | None = None
    pid: int | None = None
    cause: BaseException | None = None
    size: int = 0
    missed: int = 0


class Events(AsyncIterator[PoolEvent]):
    '''Iterates over what happens from now on. Made by ``pool.events()``.

    :param limit: so many events are kept for an iterator that is slow.
    '''

    def __init__(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f'limit has to be a whole number of at least 1, not {limit!r}')
        self._kept: deque[PoolEvent] = deque(maxlen=limit)
        self._missed = 0
        self._ended = False
        self._changed = asyncio.Event()

    def put(self, event: PoolEvent) -> None:
        self._missed += len(self._kept) == self._kept.maxlen
        self._kept.append(event)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def __anext__(self) -> PoolEvent:
        while not self._kept:
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        event, missed = self._kept.popleft(), self._missed
        self._missed = 0
        return dataclasses.replace(event, missed=missed) if missed else event


class Feed:
    '''Hands a pool's events to all iterators that somebody still has.'''

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[Events] = weakref.WeakSet()
        self._ended = False

    def listen(self, limit: int) -> Events:
        events = Events(limit)
        if self._ended:
            events.end()
        self._listeners.add(events)
        return events

    def put(self, kind: str, **facts: Any) -> None:
        if self._listeners:
            event = PoolEvent(kind, time.time(), **facts)
            for events in list(self._listeners):
                events.put(event)

    def end(self) -> None:
        self._ended = True
        for events in list(self._listeners):
            events.end()
