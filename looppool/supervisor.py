'''`Supervisor`: starts a pool's workers, replaces those that die, and recycles those that have done enough.

1. A worker that dies is replaced at once, then with growing delays, until the restart budget is spent; then the pool
   is broken. A worker that fails while the pool starts fails the start. With ``restart='one_for_all'`` all others that
   work are replaced along with it, which counts once.
2. Recycling replaces a worker that has done nothing wrong: the process gets its pill and finishes what it was sent,
   while the next one starts and takes what comes. At most one process of a worker is on its way out when the next
   one starts.
3. Renewing does so only when the next process is ready, so that one that fails to start changes nothing.
4. A member that leaves is not replaced once it has nothing to do; one that is doomed is not replaced at all.
'''

import asyncio
import copy
import functools
import logging
import random
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final

from tornado.ioloop import IOLoop

from .budget import RestartBudget
from .codec import check_encoded, forget_bodies
from .errors import LoopPoolError, PoolClosed, WorkerStartError
from .lifecycle import CANCEL_GRACE, Lifecycle
from .link import Link
from .member import Blueprint, Member
from .process import Launch
from .protocol import Parcel
from .roster import Roster
from .settings import Settings
from .statistics import PoolStatistics
from .worker import Worker, is_idempotent

__all__ = ['Supervisor', 'retries_of']

_log: Final = logging.getLogger('looppool')

_LIMITS_PERIOD: Final = 1.0
'''Seconds between two looks at the age and the memory of the workers, where no age wants them more often.'''


class Supervisor(Lifecycle):
    '''What of a `Pool` concerns the processes of its workers.'''

    def __init__(self, settings: Settings, roster: Roster, options: dict[str, Any], ioloop: IOLoop | None) -> None:
        super().__init__(settings, roster, ioloop)
        self._options = options
        self._budget = RestartBudget(
            settings.max_restarts, settings.restart_window, settings.restart_delay, settings.max_restart_delay
        )
        self._lost_with: object = None
        '''The last fork server whose death was paid for.'''
        self.reimport: tuple[str, ...] = ()
        '''Files and folders: modules from there are imported anew by each worker that starts from now on.'''
        self._past = dict.fromkeys(_PAST, 0)
        '''What members that have left had counted.'''

    # Starting

    async def start(self) -> None:
        '''Start the workers; return when every one has initialised.

        :raises WorkerStartError: a worker failed to; the others are ended then. Its cause is the remote error.
        :raises PoolClosed: the pool was started before, or `stop` was called meanwhile.
        '''
        self.check_thread('start')
        if self.state != 'new':
            raise PoolClosed(self.name, f'can be started only once, and it is {self.state}: make a new Pool')
        self._adopt_running_loop()
        forget_bodies()
        blueprint = self._blueprint(self.settings.worker_class, self._options, self.settings.launch)
        self.state = 'starting'
        self._reason = 'is still starting: await pool.start() first'
        try:
            for member in self.members:
                member.blueprint = blueprint
                self._start(member)
            while not all(member.state == 'ready' for member in self.members):
                await self._change()
                self._raise_start_error()
        except BaseException:
            await self.kill()
            raise
        self.state = 'running'
        self._accepting = True
        self._watch_heartbeats()
        self._watch_limits()

    def _blueprint(self, worker_class: type[Worker[Any, Any]], options: dict[str, Any], launch: Launch) -> Blueprint:
        packing = self.packing
        encoded = packing.pickle_kept((worker_class, options, packing.codec, packing.variables))
        check_encoded(encoded, self.settings.max_message_bytes)
        return Blueprint(launch, encoded[:2], retries_of(worker_class, self.settings.retries))

    def _start(self, member: Member) -> None:
        member.start()
        self._tell('started', member)

    def _adopt_running_loop(self) -> None:
        running = IOLoop.current()
        if self.ioloop not in (None, running):
            raise RuntimeError('the pool was made for another IO loop than the one that runs: start it there')
        self.ioloop = running
        self.asyncio_loop = asyncio.get_running_loop()
        self._thread = get_ident()

    def _raise_start_error(self) -> None:
        if self._cause is not None:
            raise self._cause
        if self.state != 'starting':
            raise self._closed_error(self._given_up, None)

    # What the members tell

    def member_ready(self, member: Member) -> None:
        member.state = 'ready'
        member.fresh = False
        self._draw_limits(member)
        self._roster.open(member.slot)
        member.send_backlog()
        self._tell('ready', member)
        self.changed.set()

    def supervises(self, member: Member) -> bool:
        '''Whether the member will have a process again that serves everybody.'''
        return self._supervising and not member.leaving

    def tasks_ended(self, member: Member, size: int, count: int) -> None:
        '''`count` tasks of `size` bytes in all are done.'''
        self._roster.release(member.slot, size, count)
        self.changed.set()

    def task_failed(self, member: Member, parcel: Parcel, error: BaseException) -> None:
        self._roster.release(member.slot, parcel[2])
        self.changed.set()
        self._fail(member, parcel, error)

    def member_exited(self, member: Member, link: Link) -> None:
        '''A process of the member is gone, and its link was read to the end.'''
        error = link.error()
        current = link is member.link
        owed = member.bury(link)
        ended = error if self._supervising else self._closed_error(self._given_up, None)
        link.end_relays(_with_fate(ended, started=True))
        self.changed.set()
        if self.state == 'starting':
            self._cause = self._cause or error
            return
        if not link.said_bye:
            self._tell('died', member, pid=link.process.pid, cause=error)
            if not link.dismissed:
                self._log_death(error)
        if not self._supervising:
            self._give_up(member, owed)
        elif member.doomed or (current and member.fresh):
            self._lose(member, owed, error)
        else:
            self._take_over(member, link, owed, error, current)

    def _log_death(self, error: LoopPoolError) -> None:
        # Its stderr was passed on when it was written: what the log needs is how it ended.
        _log.warning('pool %r: %s', self.name, str(error).partition('\n')[0])

    # Replacing

    def _take_over(
        self, member: Member, link: Link, owed: list[tuple[Parcel, bool]], error: LoopPoolError, current: bool
    ) -> None:
        '''See that what a dead process owed is run, and that it is replaced, if it was not already.'''
        deliberate = link.dismissed or link.said_bye
        if current and not deliberate and not member.leaving and self.settings.restart == 'one_for_all':
            self._take_down_others(member)
        self._bequeath(member, owed, error, current=current)
        if member.slot.open:
            member.send_backlog()
        elif member.leaving and not member.slot.window.used and member.slot.lease is None:
            pass  # There is nothing left to do for another one.
        elif not current:
            if member.may_restart:
                member.restart_later(0.0, self._start_again)
        elif deliberate:
            self._start_after(0.0, member)
        else:
            self._replace(member, error, link.process.lost_with)

    def _bequeath(
        self, member: Member, owed: list[tuple[Parcel, bool]], error: LoopPoolError, *, current: bool
    ) -> None:
        '''Hand on what had not started, and fail what may have run.'''
        failed, moved_to = (self._roster.bury if current else self._roster.take_back)(member.slot, owed)
        for slot in moved_to:
            # One that was recycled by the first of them leaves the rest to its next process.
            if slot.open:
                self.members[slot.number].send_backlog()
        for parcel in failed:
            self._fail(member, parcel, _with_fate(error, started=True))

    def _take_down_others(self, member: Member) -> None:
        others = [other for other in self.everybody() if other is not member and other.state == 'ready']
        others = [other for other in others if not other.leaving]
        for other in others:
            # First of all, so that nothing moves to a worker that is about to be killed.
            other.close()
        for other in others:
            other.dismiss(f"worker {member.slot.address} died, and restart='one_for_all'")

    def _replace(self, member: Member, error: LoopPoolError, lost_with: object) -> None:
        if lost_with is not None and lost_with is self._lost_with:
            # All workers died with one fork server: that is one accident, and the first of them has paid for it.
            self._start_after(0.0, member)
        else:
            self._lost_with = lost_with
            self._restart(member, error)

    def _restart(self, member: Member, error: LoopPoolError) -> None:
        delay = self._budget.spend(self.asyncio_loop.time())
        if delay is None:
            self._break(error)
        else:
            self._start_after(delay, member)

    def _start_after(self, delay: float, member: Member) -> None:
        member.restarts += 1
        member.restart_later(delay, self._start_again)
        self._tell('restarted', member)

    def _start_again(self, member: Member) -> None:
        try:
            self._start(member)
        except WorkerStartError as error:
            self._log_death(error)
            self._restart(member, error)

    def _lose(self, member: Member, owed: list[tuple[Parcel, bool]], error: LoopPoolError) -> None:
        '''Nobody comes in the place of this member: what it had goes where it can, and fails where it can't.'''
        member.refuse_relays(_with_fate(error, started=False))
        slot = member.slot
        owed = owed + [(parcel, False) for parcel in slot.backlog]
        slot.backlog.clear()
        self._bequeath(member, owed, error, current=True)
        for parcel in slot.backlog:
            self._roster.release(slot, parcel[2])
            self._fail(member, parcel, _with_fate(error, started=False))
        slot.backlog.clear()
        # A permit may have been given that is not used yet.
        slot.deliver = functools.partial(self._lose_late, member, error)

    def _lose_late(self, member: Member, error: LoopPoolError, parcel: Parcel) -> None:
        member.slot.backlog.append(parcel)
        self._lose(member, [], error)

    def _watch_heartbeats(self) -> None:
        timeout = self.settings.heartbeat_timeout
        if timeout is None or self.state not in ('running', 'stopping'):
            return
        for member in self.everybody():
            for link in member.running:
                age = link.heartbeat_age()
                if link.was_ready and age is not None and age > timeout:
                    link.kill(f'its loop has not turned for {age:.1f} s')
        self.asyncio_loop.call_later(timeout / 4, self._watch_heartbeats)

    # Recycling

    def _draw_limits(self, member: Member) -> None:
        '''Decide how long the member's new process may live. Workers with names are kept: they may have a state.'''
        if member.name is not None:
            return
        settings = self.settings
        share = 1 - settings.recycle_jitter * random.random()
        if settings.max_tasks_per_worker is not None:
            member.given = 0
            member.last_task = max(1, round(settings.max_tasks_per_worker * share))
        if settings.max_age is not None:
            member.expires = self.asyncio_loop.time() + settings.max_age * share

    def _watch_limits(self) -> None:
        max_age, max_rss = self.settings.max_age, self.settings.max_rss
        if (max_age is None and max_rss is None) or self.state not in ('running', 'stopping'):
            return
        now = self.asyncio_loop.time()
        for member in self.members:
            if member.state == 'ready' and now >= member.expires:
                self.outlived(member, f'it is older than {max_age:g} s')
            elif member.state == 'ready' and max_rss is not None and member.pid is not None:
                rss = _resident(member.pid)
                if rss > max_rss:
                    self.outlived(member, f'it uses {rss:,} bytes of memory')
        period = _LIMITS_PERIOD if max_age is None else min(_LIMITS_PERIOD, max_age / 4)
        self.asyncio_loop.call_later(period, self._watch_limits)

    def outlived(self, member: Member, reason: str) -> None:
        '''A worker has done enough: recycle it, or else as soon as nobody keeps an object there.'''
        if member.link is not None and member.link.objects:
            member.due = reason
        else:
            self.recycle(member, reason)

    def recycle(self, member: Member, reason: str, timeout: float | None = None) -> Link | None:
        '''Replace the member's process by a new one, after the end of its lease if it has one.

        :param reason: for the log.
        :param timeout: seconds until what the old process still runs is cancelled; a second later it is killed.
        :returns: the old process, which finishes what it has; None if there is none that is ready.
        '''
        if member.state != 'ready' or member.leaving or not self._supervising:
            return None
        if member.slot.lease is not None:
            member.due = reason
            return None
        member.due = ''
        pid = member.pid
        link = member.retire()
        _log.info('pool %r: worker %s (pid %s) is recycled: %s', self.name, member.slot.address, pid, reason)
        self._tell('recycled', member, pid=pid)
        if member.may_restart:
            member.restart_later(0.0, self._start_again)
        if timeout is not None:
            self._run_errand(self._see_out(link, self.asyncio_loop.time() + timeout))
        return link

    async def _see_out(self, link: Link, deadline: float | None) -> None:
        '''Wait until a process that finishes what it has is gone; past the deadline, cancel, then kill.'''
        await self._until(lambda: link.buried, deadline)
        if not link.buried:
            link.end.cancel()
            await self._until(lambda: link.buried, self.asyncio_loop.time() + CANCEL_GRACE)
        if not link.buried:
            link.dismissed = True
            link.kill('it was stopped, and its time was up')

    # Renewing

    async def renew(self, member: Member) -> None:
        '''Replace the member's process by a new one, as soon as that is ready and the member is not leased.

        Returns when the new one works; the old one finishes what it has beside it, and objects that live there end with
        it. Does nothing if the member leaves. Cancelled, or if the new one fails, nothing has changed.

        :raises WorkerStartError: the new process did not start. It does not count as a restart.
        :raises WorkerDied: it died while it waited for the end of a lease.
        :raises PoolClosed: the pool is not running any more.
        '''
        await self._renewal(member, lambda: member.may_be_succeeded and member.successor is None)
        if member.leaving:
            return
        link = member.start_successor()
        self._tell('started', member, pid=link.process.pid)
        try:
            await self._renewal(member, lambda: link.buried or (link.was_ready and member.may_be_succeeded))
            if not link.buried and not member.leaving:
                self._succeed(member)
        finally:
            if link is member.successor:
                member.dismiss_successor('nobody waits for it any more')
        if link.buried and not link.dismissed:
            raise link.error()

    async def _renewal(self, member: Member, condition: Callable[[], bool]) -> None:
        '''Wait for a step of a renewal, or until there is nothing to renew.'''
        await self._until(lambda: member.leaving or not self._accepting or condition(), None)
        if not self._accepting:
            raise self._refusal()

    def _succeed(self, member: Member) -> None:
        pid, member.due = member.pid, ''
        member.succeed()
        _log.info('pool %r: worker %s (pid %s) is renewed', self.name, member.slot.address, pid)
        self._tell('recycled', member, pid=pid)
        self.member_ready(member)

    # What it tells

    def statistics(self) -> PoolStatistics:
        '''What the pool knows of itself and its workers now.'''
        members, named, leaving = (
            tuple(member.statistics() for member in group)
            for group in (self.members, self.named.values(), self._leaving)
        )
        sums = {
            field: sum(getattr(member, field) for member in (*members, *named, *leaving)) + self._past.get(field, 0)
            for field in (*_PAST, 'in_flight', 'results_pending', 'credits', 'bytes')
        }
        return PoolStatistics(
            self.name, self.state, self._roster.waiting, len(members), members=members, named=named, **sums
        )


_PAST: Final = ('restarts', 'done', 'failed', 'results')
'''What a pool counts of all the workers that it ever had.'''


def retries_of(worker_class: type, retries: int) -> int:
    '''How often a task of such a worker that may have run is run again.'''
    marked = is_idempotent(worker_class) or is_idempotent(getattr(worker_class, '_process_message', None))
    return max(retries, 1) if marked else retries


def _resident(pid: int) -> int:
    '''The memory that a process uses now, in bytes; 0 if it is gone.'''
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _with_fate(error: LoopPoolError, *, started: bool) -> LoopPoolError:
    '''The same death, as told to one of the tasks that were owed.'''
    told = copy.copy(error)
    told.__dict__['started'] = started
    return told
