'''`Leasing` and `Lease`: a worker for one user alone, for a while.

1. Those who wait for a lease are served first come, first served. The roster picks the worker; what it already has ends
   before the lease begins.
2. The lease is of the worker, not of its process: one that dies meanwhile is replaced, and the lease goes on.
'''

import asyncio
from collections import deque
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from types import TracebackType
from typing import Any

from .elastic import Elastic
from .errors import Full
from .lifecycle import checked_seconds
from .member import Member
from .objects import Key, RemoteObject
from .verbs import Addressed, Verbs

__all__ = ['Lease', 'Leasing']


class Lease(Addressed):
    '''A worker that serves nobody else. Its verbs are those of a pool and of a member.

    :ivar member: the worker.
    :ivar ended: whether the lease is over.
    '''

    def __init__(self, member: Member, address: int) -> None:
        self.member = member
        self.pool = member.pool
        self.ended = False
        self._own_address = address

    def __repr__(self) -> str:
        return f'<Lease of {self.member!r}{": ended" * self.ended}>'

    @property
    def number(self) -> int:
        '''The worker's number.'''
        return self.member.number

    @property
    def pid(self) -> int | None:
        '''The worker's process id; None where there is no process, or it is not known yet.'''
        return self.member.pid

    def _keep(self, link: Any, key: Key) -> RemoteObject:
        # Others' calls wait for the end of the lease.
        return RemoteObject(self, key, link=link, keeps=True)

    def _lasting(self) -> Verbs:
        return self.member if self.ended else self

    def _where(self) -> tuple[str, int | str]:
        return self.member._where()

    def _address(self) -> int:
        if self.ended:
            raise _over()
        return self._own_address


class Leasing(Elastic):
    '''What of a `Pool` concerns leases.'''

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lessees: deque[object] = deque()
        '''Those who wait for a lease.'''

    def reserve(
        self, timeout: float | timedelta | None = None, *, wait: bool = True, recycle_on_error: bool = True
    ) -> AbstractAsyncContextManager[Lease]:
        '''Have a worker for yourself: ``async with pool.reserve() as lease: await lease.put(message)``.

        While it is leased, messages go past it; what others address to it waits, or raises `Full`. When the lease
        begins, nothing of others is in flight there: no broadcast, no message. A broadcast waits for all leases to end:
        who waits for one with a lease in hand waits for ever. What was put and not done when the lease ends goes on.

        :param timeout: seconds (or a timedelta) to wait for a worker; None: no limit.
        :param wait: False: raise `Full` if no worker is free at once.
        :param recycle_on_error: leaving by an exception or a cancellation replaces the worker by a new process. The old
            one finishes what it has; after ``Pool(stop_timeout=...)`` that is cancelled.
        :raises TimeoutError: on entering: no worker was free within `timeout`.
        :raises Full: on entering: `wait` is False, and no worker is free.
        :raises PoolClosed: on entering: the pool is not running.
        :raises ValueError: `timeout` is no time.
        '''
        return _Reservation(self, checked_seconds(timeout), wait, recycle_on_error)

    def begin_lease(self, address: int, *, free: bool) -> Member | None:
        '''Keep others from a worker; it may still have to end what it has. None if there is none.'''
        slot = self._roster.lease(address, free=free)
        return None if slot is None else self.members[slot.number]

    def end_lease(self, member: Member, *, recycle: bool) -> None:
        '''Give a worker back to the others, or a new process in its place.'''
        self._roster.end_lease(member.slot, _over())
        self.changed.set()
        if recycle:
            self.recycle(member, 'its lease ended with an error', self.settings.stop_timeout)
        elif member.due:
            self.outlived(member, member.due)

    async def wait_for_lease(self, address: int) -> Member:
        '''Wait until a worker is leased and has nothing to do. Cancelled, nothing is leased.'''
        while True:
            place = object()
            self._lessees.append(place)
            try:
                member = await self._first_in_line(place, address)
            finally:
                self._lessees.remove(place)
                self.changed.set()
            if await self._has_ended_all(member):
                return member

    async def _has_ended_all(self, member: Member) -> bool:
        '''Wait until a leased worker has nothing to do. False, and the lease is over: it will never be ready again.'''
        slot = member.slot
        slot.on_empty = self.changed.set
        try:
            while slot.window.used or not slot.open:
                if member.doomed:
                    self.end_lease(member, recycle=False)
                    return False
                await self._change()
                self.check_running('reserve')
        except BaseException:
            self.end_lease(member, recycle=False)
            raise
        return True

    async def _first_in_line(self, place: object, address: int) -> Member:
        while True:
            self.check_running('reserve')
            member = self.begin_lease(address, free=False) if self._lessees[0] is place else None
            if member is not None:
                return member
            await self._change()

    def lease_now(self, address: int) -> Member:
        '''Lease a worker that has nothing to do; `Full` if there is none, or others wait.'''
        member = None if self._lessees else self.begin_lease(address, free=True)
        if member is None:
            raise Full('worker', f'pool {self.name!r}')
        return member


class _Reservation(AbstractAsyncContextManager[Lease]):
    '''A lease from its beginning to its end.'''

    def __init__(self, pool: Leasing, timeout: float | None, wait: bool, recycle_on_error: bool) -> None:
        self._pool = pool
        self._timeout = timeout
        self._wait = wait
        self._recycle_on_error = recycle_on_error
        self._lease: Lease | None = None

    async def __aenter__(self) -> Lease:
        if self._lease is not None:
            raise RuntimeError('a reservation is good for one lease: call pool.reserve() again')
        self._pool.check_running('reserve')
        address = self._pool.next_address()
        if self._wait:
            async with asyncio.timeout(self._timeout):
                member = await self._pool.wait_for_lease(address)
        else:
            member = self._pool.lease_now(address)
        self._lease = Lease(member, address)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._lease is not None
        self._lease.ended = True
        self._pool.end_lease(self._lease.member, recycle=error is not None and self._recycle_on_error)


def _over() -> RuntimeError:
    return RuntimeError('the lease has ended: reserve a worker again')
