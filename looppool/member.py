'''`Member`: the pool's handle on one worker slot, through all the processes that fill it.

1. A process that is retired finishes what it was sent as a former one, while the next one takes what comes. A successor
   starts beside a process that goes on, and takes its place when it is ready.
2. A member decides nothing: it does what its pool has decided.
'''

import asyncio
import math
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .callee import ANY
from .codec import Definition
from .errors import LoopPoolError, WorkerStartError
from .link import Link
from .payload import Body
from .process import Launch
from .protocol import Parcel
from .relay import Relay
from .roster import Address, Slot
from .statistics import MemberStatistics
from .verbs import Addressed

if TYPE_CHECKING:
    from .elastic import Elastic

__all__ = ['DEFAULT', 'Blueprint', 'Member']

DEFAULT: Final[Any] = object()
'''A time limit that was not given: that of the pool.'''


class Blueprint(NamedTuple):
    '''How to make a worker.'''

    launch: Launch
    encoded: tuple[Body, tuple[Definition, ...]]
    '''Its class and options.'''
    retries: int
    '''How often a task of it that may have run is run again.'''


class Member(Addressed):
    '''The pool's handle on one worker slot. It outlives restarts of its process. Use it on the pool's loop only.'''

    blueprint: Blueprint

    def __init__(self, pool: 'Elastic', slot: Slot) -> None:
        self.pool = pool
        self.slot = slot
        self.restarts = 0
        self.done = 0
        self.failed = 0
        self.results = 0
        self.state = 'new'
        self.link: Link | None = None
        self.successor: Link | None = None
        '''Of a process that is to take the place of this one as soon as it is ready.'''
        self._former: list[Link] = []
        '''Links of processes that were retired, and of dead ones whose results are not all done.'''
        self.fresh = False
        '''Whether the pool runs without it and it never was ready: if it fails to start, nothing is lost.'''
        self.ended = -1
        '''How many tasks had ended when its idleness was last looked at.'''
        self.idle_since = math.inf
        self.start_error: LoopPoolError | None = None
        '''Why it failed to, if it did.'''
        self.leaving = False
        '''Whether it finishes what it has and is not replaced.'''
        self.doomed = False
        '''Whether what it has is to end with it.'''
        self.due = ''
        '''Why it is to be recycled as soon as its lease has ended.'''
        self.last_task: int | None = None
        '''With so many tasks given to it, the process is recycled.'''
        self.given = 0
        '''How many tasks it was given.'''
        self.expires = math.inf
        '''When the process is recycled, by the loop's clock.'''
        self._restart: asyncio.TimerHandle | None = None
        self.relays: deque[Relay] = deque()
        '''Calls of other workers that wait for a process.'''

    def __repr__(self) -> str:
        return f'<Member {self.slot.address!r} of pool {self.pool.name!r}: {self.state}, pid {self.pid}>'

    @property
    def number(self) -> int:
        '''The worker's number, from 0; that of a worker with a name is below 0.'''
        return self.slot.number

    @property
    def name(self) -> str | None:
        '''The worker's name, if it was spawned with one.'''
        return self.slot.name

    @property
    def pid(self) -> int | None:
        '''The process id of the worker; None where there is no process, or its pid is not known yet.'''
        return self.link.process.pid if self.link else None

    def statistics(self) -> MemberStatistics:
        '''What the pool knows of this worker now.'''
        window = self.slot.window
        return MemberStatistics(
            number=self.number,
            state=self.state,
            pid=self.pid,
            restarts=self.restarts,
            in_flight=window.used,
            done=self.done,
            failed=self.failed,
            results=self.results,
            results_pending=self.results_pending,
            credits=max(0, window.limit - window.used),
            bytes=window.bytes,
            heartbeat=self.heartbeat_age(),
            name=self.name,
        )

    @property
    def results_pending(self) -> int:
        '''Results that have come from this worker, or from one that it replaced, and are not done.'''
        return sum(link.results_pending for link in self._links())

    @property
    def unread(self) -> int:
        '''Those of them that were not taken up.'''
        return sum(link.unread for link in self._links())

    def _pending_former(self) -> list[Link]:
        '''Those of former processes that are of interest: they end, or their results are not all taken up.'''
        return [link for link in self._former if link.results_pending or not link.buried]

    def _links(self) -> list[Link]:
        self._former = self._pending_former()
        return [*self._former, *(link for link in (self.link, self.successor) if link is not None)]

    def heartbeat_age(self) -> float | None:
        '''Seconds since the worker's loop last turned; None before it has, and where there is no process.'''
        return self.link.heartbeat_age() if self.link else None

    # What a user does with it

    def _address(self) -> Address:
        # Its number may be another's by now.
        if self.leaving:
            raise ValueError(f'worker {self.slot.address} has left pool {self.pool.name!r}')
        return self.slot.address

    async def stop(self, timeout: float | timedelta | None = DEFAULT) -> None:
        '''Let the worker finish what was accepted for it, finalise and exit; return when its process is gone.

        A worker with a name ends for good, and its name is free again. A numbered one is recycled: the next process
        takes its place at once, or if it is leased, at the end of the lease; ``pool.resize`` makes fewer of them.
        Cancelled, it goes on.

        :param timeout: seconds (or a timedelta) until what still runs is cancelled; a second later it is killed.
            Default: ``Pool(stop_timeout=...)``; None: no limit.
        :raises PoolClosed: the pool is not running.
        '''
        await self.pool.stop_member(self, timeout)

    async def kill(self) -> None:
        '''Kill the worker's processes; return when they are gone. What had begun fails with `WorkerDied`.

        A worker with a name ends for good, and what had not begun fails too. A numbered one is replaced at once, which
        does not count as a restart, and what had not begun is run elsewhere, as after any death. Cancelled, it goes on.

        :raises PoolClosed: the pool is not running.
        '''
        await self.pool.kill_member(self)

    def interrupt(self) -> None:
        '''Raise `TaskInterrupted` in the task that runs in this worker now; nothing happens if none blocks its loop.'''
        if self.link is not None and self.link.was_ready:
            self.link.interrupt(ANY)

    # For the pool

    @property
    def running(self) -> list[Link]:
        '''The links of its processes that are not gone.'''
        return [link for link in self._links() if not link.buried]

    @property
    def in_use(self) -> bool:
        '''Whether it is leased, or somebody keeps an object in it.'''
        return self.slot.lease is not None or (self.link is not None and self.link.objects > 0)

    @property
    def vacant(self) -> bool:
        '''Whether it has nothing to do and nobody who could do it.'''
        return not self.running and self._restart is None and not self.slot.window.used and self.slot.lease is None

    @property
    def may_restart(self) -> bool:
        '''Whether it waits for a process, and at most one other finishes what it has.'''
        return self.state == 'restarting' and self._restart is None and self._few_former

    @property
    def _few_former(self) -> bool:
        return sum(not link.buried for link in self._former) <= 1

    @property
    def may_be_succeeded(self) -> bool:
        '''Whether it works, for no lease, and at most one other finishes what it has.'''
        return self.state == 'ready' and not self.leaving and self.slot.lease is None and self._few_former

    def start(self) -> None:
        '''Start a process. WorkerStartError if the system can't.'''
        self.state = 'starting'
        self._restart = None
        self.link = self._make_link()

    def _make_link(self) -> Link:
        try:
            return Link(self)
        except OSError as error:
            reason = f'the system cannot start its process: {error}'
            raise WorkerStartError(self.number, None, reason, name=self.name) from error

    def start_successor(self) -> Link:
        '''Start a process beside the one that works. WorkerStartError if the system can't.'''
        self.successor = self._make_link()
        return self.successor

    def succeed(self) -> None:
        '''Put the successor in the place of the process that works, which finishes what it was sent and exits.'''
        self.retire()
        self.link, self.successor = self.successor, None

    def dismiss_successor(self, reason: str) -> None:
        if self.successor is not None:
            self.successor.dismissed = True
            self.successor.kill(reason)

    def restart_later(self, delay: float, start: Callable[['Member'], None]) -> None:
        self.dismiss_successor('another process is started anyway')
        self.state = 'restarting'
        self._restart = self.pool.asyncio_loop.call_later(delay, start, self)

    def cancel_restart(self) -> None:
        self.dismiss_successor('the worker leaves')
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
            self.state = 'stopped'

    def send_backlog(self) -> None:
        '''Send what waited for the worker to be ready.'''
        assert self.link is not None
        self.slot.deliver = self.link.end.send_task if self.last_task is None else self._send_counted
        # A worker that is recycled after so many tasks may leave the rest to the next one.
        while self.slot.backlog and self.slot.open:
            self.slot.deliver(self.slot.backlog.popleft())
        while self.relays:
            self.link.relay(self.relays.popleft())

    def _send_counted(self, parcel: Parcel) -> None:
        assert self.link is not None and self.last_task is not None
        self.link.end.send_task(parcel)
        self.given += 1
        if self.given >= self.last_task:
            self.pool.outlived(self, f'it was given {self.last_task} tasks')

    def relay(self, relay: Relay) -> None:
        '''Hand on a call of another worker, as soon as there is a process.'''
        if self.link is not None and self.state == 'ready':
            self.link.relay(relay)
        elif self.pool.supervises(self):
            self.relays.append(relay)
        else:
            relay.on_error(self.pool._refusal())

    def refuse_relays(self, error: BaseException) -> None:
        '''There will be no process.'''
        while self.relays:
            self.relays.popleft().on_error(error)

    def retire(self) -> Link:
        '''Let the process finish what it was sent and exit; what comes from now on waits for the next one.'''
        link = self.link
        assert link is not None
        link.end.pill()
        self._former = [*self._pending_former(), link]
        self.link = None
        self.close()
        self.state = 'restarting'
        return link

    def close(self) -> None:
        '''Take nothing: what comes waits.'''
        self.slot.open = False
        self.slot.deliver = self.slot.backlog.append

    def pill(self) -> None:
        '''Let the worker finish what was accepted and exit; a worker that is not ready has nothing to finish.'''
        if self.link is None:
            return
        if self.state == 'ready':
            self.link.end.pill()
            self.state = 'stopping'
        elif self.state != 'stopping':
            self.dismiss('the pool was stopped')

    def cancel(self) -> None:
        '''Cancel every task of the worker.'''
        for link in self.running:
            if link.was_ready:
                link.end.cancel()

    def dismiss(self, reason: str) -> None:
        '''Kill the worker, which has done nothing wrong.'''
        for link in self.running:
            link.dismissed = True
            link.kill(reason)

    def bury(self, link: Link) -> list[tuple[Parcel, bool]]:
        '''A process has ended: let go of it, and return what it owed.'''
        owed = link.owed()
        link.page.close()
        link.buried = True
        if link is self.link:
            self._former = [*self._pending_former(), link]
            self.link = None
            self.close()
            self.state = 'stopped'
        elif link is self.successor:
            self._former = [*self._pending_former(), link]
            self.successor = None
        return owed
