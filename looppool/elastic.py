'''`Elastic`: how many workers a pool has, and which: it grows, shrinks, and takes in workers with names.

1. Workers without a name have the numbers from 0 to ``size - 1``. A new one gets the next number; the one with the
   highest number leaves first.
2. A pool grows by one when every worker is busy, or a claim has failed; when that one is ready, it looks again. One
   that fails to start on the way is withdrawn, and growing pauses for a while: it never breaks a pool that runs.
3. A worker that leaves gets nothing new from then on and ends everything that was accepted for it. Then it gets its
   pill. If it dies before, a replacement does the rest.
'''

import asyncio
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from tornado.ioloop import IOLoop

from .budget import RestartBudget
from .errors import LoopPoolError, WorkerDied, WorkerStartError
from .lifecycle import CANCEL_GRACE, checked_seconds
from .member import DEFAULT, Blueprint, Member
from .process import Launch
from .protocol import Parcel
from .roster import Address, Roster, Slot, WatchfulRoster
from .settings import Settings, checked_options, checked_worker_class
from .supervisor import Supervisor
from .window import Window
from .worker import Worker

__all__ = ['Elastic']


class Elastic(Supervisor):
    '''What of a `Pool` concerns the number of its workers, and each of them for itself.'''

    def __init__(self, settings: Settings, distribution: str, options: dict[str, Any], ioloop: IOLoop | None) -> None:
        self._min, self._max = settings.min_size, settings.max_size
        slots = [_make_slot(settings, number) for number in range(self._min)]
        if self._min == self._max:
            roster = Roster(slots, distribution)
        else:
            roster = WatchfulRoster(slots, distribution, settings.busy, self._on_busy)
        super().__init__(settings, roster, options, ioloop)
        self.members = tuple(Member(self, slot) for slot in slots)
        self._addresses = itertools.count(-1, -1)
        '''Of workers with names, and of leases.'''
        self._growth = RestartBudget(
            settings.max_restarts, settings.restart_window, settings.restart_delay, settings.max_restart_delay
        )
        self._growing: asyncio.TimerHandle | None = None
        '''When to look whether to grow.'''

    async def start(self) -> None:
        await super().start()
        self._watch_idleness()

    async def put(self, message: Any, worker_num: Address | None = None) -> None:
        raise NotImplementedError

    def put_nowait(self, message: Any, worker_num: Address | None = None) -> None:
        raise NotImplementedError

    def member(self, which: Address) -> Member:
        '''The worker with this number, or with this name.

        :raises ValueError: there is none.
        '''
        if isinstance(which, str) and which in self.named:
            return self.named[which]
        if not isinstance(which, str) and which in range(len(self.members)) and not isinstance(which, bool):
            return self.members[which]
        raise ValueError(self._no_worker(which))

    def _no_worker(self, which: object) -> str:
        return f'worker_num has to be from 0 to {len(self.members) - 1} or the name of a worker, not {which!r}'

    def next_address(self) -> int:
        '''An address that no worker and no lease has.'''
        return next(self._addresses)

    # Growing

    def member_ready(self, member: Member) -> None:
        super().member_ready(member)
        # Copies of retained broadcasts alone do not make a new worker busy.
        if member.slot.window.used > len(self._roster.retained):
            self._look_again()

    def _on_busy(self) -> None:
        # From the loop: starting a process takes milliseconds, and whoever puts should not wait for that.
        if self._growing is None and self.state == 'running' and len(self.members) < self._max:
            self._growing = self.asyncio_loop.call_later(0.0, self._grow)

    def _look_again(self) -> None:
        if isinstance(self._roster, WatchfulRoster) and self._roster.all_busy:
            self._on_busy()

    def _grow(self) -> None:
        self._growing = None
        if self.state == 'running' and len(self.members) < self._max and not any(m.fresh for m in self.members):
            self._grow_to(len(self.members) + 1)

    def _grow_to(self, size: int) -> list[Member]:
        '''Start workers until there are `size`; returns those that were started.'''
        started: list[Member] = []
        while len(self.members) < size:
            member = Member(self, _make_slot(self.settings, len(self.members)))
            member.blueprint = self.members[0].blueprint
            self.members += (member,)
            started.append(member)
            if not self._start_fresh(member):
                break
        if started:
            self._feed.put('resized', size=len(self.members))
        return started

    def _start_fresh(self, member: Member) -> bool:
        member.fresh = True
        self._roster.add(member.slot)
        try:
            self._start(member)
        except WorkerStartError as error:
            self._log_death(error)
            self._lose(member, [], error)
            return False
        return True

    def _lose(self, member: Member, owed: list[tuple[Parcel, bool]], error: LoopPoolError) -> None:
        if member.fresh:
            self._withdraw(member, error)
        super()._lose(member, owed, error)

    def _withdraw(self, member: Member, error: LoopPoolError) -> None:
        '''A worker that the pool can do without has failed to start.'''
        member.fresh = False
        member.start_error = error
        member.doomed = True
        if member.name is not None:
            self._leave([member])
        elif member in self.members:
            # Numbers have no gaps: those that were to come after it go too.
            for later in self.members[member.number + 1 :]:
                later.start_error = error
            delay = self._growth.spend(self.asyncio_loop.time())
            if self._growing is None:
                pause = self.settings.restart_window if delay is None else max(delay, self.settings.restart_delay)
                self._growing = self.asyncio_loop.call_later(pause, self._grow_if_busy)
            self._shrink_to(member.number)

    def _grow_if_busy(self) -> None:
        self._growing = None
        self._look_again()

    async def _until_ready(self, members: Iterable[Member]) -> None:
        '''Wait for workers that start, unless they leave.'''
        while True:
            if not self._accepting:
                raise self._refusal()
            for member in members:
                if member.start_error is not None:
                    raise member.start_error
            if all(member.state == 'ready' or member.leaving for member in members):
                return
            await self._change()

    async def warm(self, size: int) -> None:
        '''Have at least `size` workers ready, ahead of the work. They leave again when they are idle.

        :raises ValueError: it is more than ``max_size``.
        :raises WorkerStartError: a new worker failed to start. Those that the pool had work on.
        :raises PoolClosed: the pool is not running.
        '''
        self.check_running('warm')
        _check_size(size)
        if size > self._max:
            raise ValueError(f'size has to be at most max_size, {self._max}, not {size}')
        started = self._grow_to(size)
        await self._until_ready([*self.members[:size], *started])

    async def resize(self, size: int) -> None:
        '''Have exactly `size` workers from now on, whatever ``min_size`` and ``max_size`` were.

        Returns when the new ones are ready, or those with the highest numbers have ended all that was accepted for
        them, and are gone. A worker's share of ``max_tasks``, ``max_results`` and ``max_bytes`` stays what it is.
        Cancelled, it goes on.

        :raises ValueError: `size` is no whole number of at least 1.
        :raises WorkerStartError: a new worker failed to start. Those that the pool had work on.
        :raises PoolClosed: the pool is not running, or was stopped meanwhile.
        '''
        self.check_running('resize')
        _check_size(size)
        self._min = self._max = size
        started = self._grow_to(size)
        left = self._shrink_to(size)
        await self._until_ready(started)
        await self._until(lambda: all(member.vacant for member in left) or self._closed.is_set(), None)

    # Shrinking

    def _shrink_to(self, size: int) -> list[Member]:
        '''Let the workers from number `size` on leave; returns them.'''
        left = list(self.members[size:])
        if left:
            self.members = self.members[:size]
            self._leave(left)
            self._feed.put('resized', size=size)
        return left

    def _leave(self, members: list[Member], timeout: float | None = None) -> None:
        '''Members end what they have, and then for good.

        :param timeout: seconds until what still runs is cancelled; a second later they are killed.
        '''
        deadline = None if timeout is None else self.asyncio_loop.time() + timeout
        for member in reversed(members):
            member.leaving, member.fresh = True, False
            member.slot.on_empty = self.changed.set
            self._leaving.append(member)
            if member.name is not None:
                del self.named[member.name]
            gone = ValueError(f'worker {member.slot.address} has left pool {self.name!r}')
            self._roster.remove(member.slot, gone)
            self._run_errand(self._see_off(member, deadline))

    async def _see_off(self, member: Member, deadline: float | None) -> None:
        '''See a member that leaves to its end.'''

        def done() -> bool:
            return not self._supervising or (not member.slot.window.used and member.slot.lease is None)

        await self._until(done, deadline)
        if not done():
            member.cancel()
            await self._until(done, self._grace())
        if done() and self._supervising:
            member.cancel_restart()
            member.pill()
            limit = deadline and max(deadline, self._grace())
            await self._until(lambda: member.vacant or not self._supervising, limit)
        if self._supervising and not member.vacant:
            self._doom(member, 'it was stopped, and its time was up')
        await self._until(lambda: member.vacant or self._closed.is_set(), None)
        self._tell('stopped', member)
        await self._until(lambda: not member.results_pending or self._closed.is_set(), None)
        self._forget(member)

    def _grace(self) -> float:
        return self.asyncio_loop.time() + CANCEL_GRACE

    def _forget(self, member: Member) -> None:
        member.state = 'stopped'
        self._leaving.remove(member)
        for field in self._past:
            self._past[field] += getattr(member, field)

    def _doom(self, member: Member, reason: str) -> None:
        '''Kill a member that leaves, with all that it has.'''
        member.doomed = True
        member.cancel_restart()
        member.dismiss(reason)
        self.changed.set()
        if not member.running:
            # No exit will tell.
            self._lose(member, [], WorkerDied(member.number, None, None, reason=reason, name=member.name))

    # Single workers

    async def spawn(
        self,
        name: str,
        *,
        worker_class: type[Worker[Any, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        context: str | None = None,
    ) -> Member:
        '''Start a worker that has a name, and return its `Member` when it is ready.

        It gets what is put to it, and broadcasts; nothing else. It is replaced when it dies, and kept until
        ``await member.stop()`` or the pool ends: it is not recycled, and not counted in the pool's size. ``_number`` is
        below 0 there. Cancelled, nothing is left of it.

        :param name: not empty, and not that of another worker of the pool.
        :param worker_class: its class; default: the pool's.
        :param options: keyword arguments for its ``_initialise``; default: the pool's, if it has the pool's class.
        :param context: how to start it; default: as the others.
        :raises ValueError: there is a worker with that name; or the context is unknown.
        :raises TypeError: the name is no string, or the class no subclass of `Worker`.
        :raises WorkerStartError: it did not become ready.
        :raises PoolClosed: the pool is not running.
        '''
        self.check_running('spawn')
        self._check_name(name)
        slot = _make_slot(self.settings, self.next_address(), name)
        member = Member(self, slot)
        member.blueprint = self._other_blueprint(worker_class, options, context)
        self.named[name] = member
        self._start_fresh(member)
        try:
            await self._until_ready([member])
        except BaseException:
            if not member.leaving:
                self._leave([member])
                self._doom(member, 'nobody waits for it any more')
            raise
        return member

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f'name has to be a string, not {name!r}')
        if not name or name in self.named:
            why = f'there is a worker with the name {name!r}' if name else 'name may not be empty'
            raise ValueError(f'pool {self.name!r}: {why}')

    def _other_blueprint(
        self, worker_class: type[Worker[Any, Any]] | None, options: Mapping[str, Any] | None, context: str | None
    ) -> Blueprint:
        usual = self._options if worker_class is None else {}
        return self._blueprint(
            self.settings.worker_class if worker_class is None else checked_worker_class(worker_class),
            usual if options is None else checked_options(options),
            _in_context(self.settings.launch, context),
        )

    async def stop_member(self, member: Member, timeout: float | timedelta | None = DEFAULT) -> None:
        '''See `Member.stop`.'''
        self.check_running('stop_member')
        seconds = self.settings.stop_timeout if timeout is DEFAULT else checked_seconds(timeout)
        if member.leaving or member.name is not None:
            if not member.leaving:
                self._leave([member], seconds)
            await self._until(lambda: member.vacant, None)
        else:
            link = self.recycle(member, 'it was stopped', seconds) or (member.link if member.due else None)
            await self._until(lambda: link is None or link.buried, None)

    async def kill_member(self, member: Member) -> None:
        '''See `Member.kill`.'''
        self.check_running('kill_member')
        links = member.running
        if member.name is not None and not member.leaving:
            self._leave([member])
        if member.leaving:
            self._doom(member, 'it was killed by Member.kill')
        else:
            member.dismiss('it was killed by Member.kill')
        await self._until(lambda: all(link.buried for link in links), None)

    def check_running(self, method: str) -> None:
        '''Raise what a pool that takes nothing raises; RuntimeError if this is not the thread of its loop.'''
        self.check_thread(method)
        if not self._accepting:
            raise self._refusal()

    # Idleness

    def _watch_idleness(self) -> None:
        '''For each worker that was idle for `idle_ttl`, let the one with the highest number leave.'''
        idle_ttl = self.settings.idle_ttl
        if idle_ttl is None or self._min == self._max or self.state != 'running':
            return
        now = self.asyncio_loop.time()
        for member in self.members:
            ended = member.done + member.failed
            if member.slot.window.used or member.in_use or ended != member.ended:
                member.ended, member.idle_since = ended, now
            elif now - member.idle_since >= idle_ttl and not member.leaving and self._may_shrink():
                member.idle_since = now
                self._shrink_to(len(self.members) - 1)
        self.asyncio_loop.call_later(idle_ttl / 4, self._watch_idleness)

    def _may_shrink(self) -> bool:
        last = self.members[-1]
        return len(self.members) > self._min and not last.in_use and not last.fresh


def _make_slot(settings: Settings, number: int, name: str | None = None) -> Slot:
    return Slot(number, Window(settings.task_window, settings.window_bytes), name)


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f'size has to be a whole number of at least 1, not {size!r}')


def _in_context(launch: Launch, context: str | None) -> Launch:
    '''The same, in another context, without what only the one has.'''
    if context in (None, launch.context):
        return launch
    return dataclasses.replace(launch, context=context, preload=(), executable=None)
