'''`Lifecycle`: what a pool is now, and the way down to its end.

1. Stopping is one way down: drain (workers that die meanwhile are still replaced), pill, and when the time is up
   cancel, then SIGKILL. Killing is its last step alone. A broken pool goes the same last step.
2. Whatever was accepted and will not run any more is told to the application.
'''

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from datetime import timedelta
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Self

from tornado.ioloop import IOLoop

from .codec import cancelled_elsewhere
from .errors import LoopPoolError, PoolBroken, PoolClosed
from .events import Events, Feed
from .handlers import Handlers, current_handlers
from .member import DEFAULT, Member
from .objects import pools
from .packing import Packing
from .protocol import Parcel
from .roster import Roster
from .segments import most_segments, open_store
from .settings import Settings
from .signals import unwatch, watch
from .verbs import Verbs

__all__ = ['CANCEL_GRACE', 'END', 'Lifecycle', 'checked_seconds']

_log: Final = logging.getLogger('looppool')

CANCEL_GRACE: Final = 1.0
'''Seconds that workers get between cancel and SIGKILL.'''
END: Final[Any] = object()
'''Behind the last result.'''


class Lifecycle(Verbs):
    '''What of a `Pool` concerns the pool as a whole, and its end above all.

    :ivar state: ``'new'``, ``'starting'``, ``'running'``, ``'stopping'``, ``'stopped'`` or ``'broken'``.
    :ivar members: one `Member` a worker, by number.
    :ivar named: the workers that have names, by name.
    :ivar ioloop: the Tornado loop that the pool lives on; None before it is started, if none was given.
    :ivar packing: what is done with what goes over its links.
    :ivar changed: set whenever something has happened that a start or a stop may wait for.
    :ivar draining: whether a stop waits for results to be done.
    '''

    process_message: Callable[[Any, Callable[[], None]], Any]
    process_failure: Callable[[Any, BaseException], Any]

    asyncio_loop: asyncio.AbstractEventLoop
    '''The asyncio loop of `ioloop`.'''

    def __init__(self, settings: Settings, roster: Roster, ioloop: IOLoop | None) -> None:
        if ioloop is not None and not isinstance(ioloop, IOLoop):
            raise TypeError(f'ioloop has to be a tornado.ioloop.IOLoop or None, not {ioloop!r}')
        self.settings = settings
        self.key = os.urandom(8).hex()
        '''What tells it from all other pools.'''
        pools[self.key] = self
        self.name = settings.name
        self.state = 'new'
        self.ioloop = ioloop
        self.changed = asyncio.Event()
        self.draining = False
        self._store = open_store(settings.max_bytes, most_segments())
        self.packing = Packing(settings.codec, settings.contextvars, self._store)
        self.handlers = Handlers(self.name, self.changed, self.packing)
        self._roster = roster
        self.members: tuple[Member, ...] = ()
        self.named: dict[str, Member] = {}
        self._leaving: list[Member] = []
        '''Those that finish what they have and are not replaced.'''
        self._feed = Feed()
        self._results: asyncio.Queue[Any] = asyncio.Queue()
        '''Results that nobody has taken yet, each with its `result_done`.'''
        self._thread: int | None = None
        self._accepting = False
        self._supervising = True
        self._abandoned = False
        self._reason = 'was not started: await pool.start() first'
        self.untold = 0
        '''Tasks that ended with the pool, and about which the log has said nothing.'''
        self._given_up = ''
        '''Why no worker is replaced any more.'''
        self._cause: BaseException | None = None
        self._closed = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._errands: set[asyncio.Task[None]] = set()
        '''What sees single workers to their ends.'''
        self._signals: tuple[int, ...] = ()
        self._signum: int | None = None

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.name!r}: {self.state}, {len(self.members)} workers>'

    def _disown(self) -> None:
        '''In a forked child: the pool is the parent's. Nothing here puts to its workers, stops them or kills them.'''
        self._accepting = self._supervising = False
        self.state, self._reason = 'stopped', 'belongs to the process that this one was forked from'
        self._closed.set()

    def everybody(self) -> list[Member]:
        '''All members that have, or may get, a process: also those with names, and those that leave.'''
        return [*self.members, *self.named.values(), *self._leaving]

    def events(self, limit: int = 1000) -> Events:
        '''Iterate over what happens from now on: ``async for event in pool.events()``. It ends with the pool.

        Each iterator gets every event.

        :param limit: so many events are kept for an iterator that is slow; then it loses the oldest, and the next one's
            ``missed`` says how many.
        :returns: `Events`, an async iterator of `PoolEvent`.
        :raises ValueError: `limit` is no whole number of at least 1.
        '''
        return self._feed.listen(limit)

    def _tell(self, kind: str, member: Member, **facts: Any) -> None:
        self._feed.put(
            kind, **{'number': member.number, 'name': member.name, 'pid': member.pid, 'size': len(self.members)} | facts
        )

    async def _change(self) -> None:
        '''Wait until something about a member or a task has changed.'''
        self.changed.clear()
        await self.changed.wait()

    def _refusal(self) -> LoopPoolError:
        '''Why the pool takes nothing.'''
        return self._closed_error(self._reason, None)

    def _closed_error(self, reason: str, started: bool | None) -> LoopPoolError:
        if self.state == 'broken':
            settings = self.settings
            return PoolBroken(
                self.name, settings.max_restarts, settings.restart_window, self._cause, started=started
            )
        return PoolClosed(self.name, reason, started=started)

    def cut_short(self, error: BaseException) -> LoopPoolError:
        '''What the caller gets for the CancelledError of a call that it did not cancel.'''
        if self._supervising:
            return cancelled_elsewhere(error)
        ended = self._closed_error(self._given_up, started=True)
        ended.__cause__ = error.__cause__
        return ended

    def check_thread(self, method: str, instead: str = '') -> None:
        '''RuntimeError if this is not the thread of the pool's loop.'''
        if self._thread not in (None, get_ident()):
            instead = instead or f'ioloop.add_callback(pool.{method}, ...)'
            raise RuntimeError(
                f'pool {self.name!r} was used from another thread than that of its loop: use pool.{instead}'
            )

    def _fail(self, member: Member, parcel: Parcel, error: BaseException) -> None:
        member.failed += 1
        call = parcel[3]
        if call is not None:
            call.on_error(error)
            return
        self.handlers.fail(self.process_failure, parcel[0], error)

    def _give_up(self, member: Member, owed: list[tuple[Parcel, bool]]) -> None:
        '''Fail all that the member had accepted; nobody will run it any more.'''
        member.refuse_relays(self._closed_error(self._given_up, False))
        waiting = [(parcel, False) for parcel in member.slot.backlog]
        member.slot.backlog.clear()
        for parcel, started in owed + waiting:
            member.slot.window.give(parcel[2], 1)
            self._fail(member, parcel, self._closed_error(self._given_up, started))

    def _run_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        '''Run what outlives the wish of whoever asked for it.'''
        task = asyncio.Task(errand, loop=self.asyncio_loop)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    # Stopping

    async def stop(self, timeout: float | timedelta | None = DEFAULT) -> None:
        '''Take nothing new, let every accepted task end, then let the workers finalise and exit.

        It may be called again, while the pool starts, or from a handler. Those who wait in `put` get `PoolClosed`.
        If it is cancelled, the workers are killed.

        :param timeout: seconds (or a timedelta) until what still runs is cancelled; a second later it is killed.
            Default: `stop_timeout`; None: no limit.
        :raises ValueError: `timeout` is no time.
        '''
        self.check_thread('stop')
        seconds = self.settings.stop_timeout if timeout is DEFAULT else checked_seconds(timeout)
        if self.state == 'starting':
            self._abandon('was stopped while it started')
        await self._close(seconds)

    async def kill(self) -> None:
        '''End the workers at once with SIGKILL; every task that has not ended fails with `PoolClosed`.'''
        self.check_thread('kill')
        self._abandon('was killed')
        await self._close(None)

    async def join(self) -> int | None:
        '''Wait until the pool has stopped.

        :returns: the signal that stopped it (see `stop_on_signals`), or None.
        :raises PoolBroken: it broke.
        '''
        await self._closed.wait()
        if self.state == 'broken':
            raise self._refusal()
        return self._signum

    def stop_on_signals(self, *signals: int) -> None:
        '''Stop when this process gets one of `signals`; a second one kills. For the main thread, when started.

        Default: SIGTERM and SIGINT. Await `join`, which tells the signal, and exit with ``128 + signal``.
        The handlers are removed when the pool has stopped.
        '''
        if self._thread is None or self._closed.is_set():
            raise self._refusal()
        self._unwatch_signals()
        self._signals = tuple(set(signals)) or (signal.SIGTERM, signal.SIGINT)
        for signum in self._signals:
            watch(self.asyncio_loop, signum, self._on_signal)

    def _unwatch_signals(self) -> None:
        for signum in self._signals:
            unwatch(self.asyncio_loop, signum, self._on_signal)
        self._signals = ()

    def _on_signal(self, signum: int) -> None:
        if self._signum is not None:
            self._abandon(f'was killed by a second signal ({signal.Signals(signum).name})')
        self._signum = self._signum or signum
        self._begin_to_close(self.settings.stop_timeout)

    async def start(self) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await (self.stop() if error is None else self.kill())

    async def _close(self, timeout: float | None) -> None:
        if self._thread is None:
            if self.state == 'new':
                self.state, self._reason = 'stopped', 'was stopped before it was started'
                self._results.put_nowait((END, None))
                self._closed.set()
            return
        self._begin_to_close(timeout)
        if current_handlers.get() is self.handlers:
            self.handlers.stoppers += 1
            self.changed.set()
        try:
            while not self._closed.is_set():
                self._begin_to_close(timeout)
                assert self._closing is not None
                await asyncio.wait([self._closing])
        except BaseException:
            self._abandon('was killed, as its stop was cancelled')
            raise

    def _begin_to_close(self, timeout: float | None) -> None:
        # The task may have been cancelled with all others of the loop: then it is begun again.
        if self._closing is None or (self._closing.done() and not self._closed.is_set()):
            self._closing = asyncio.Task(self._shut_down(timeout), loop=self.asyncio_loop)

    async def _shut_down(self, timeout: float | None) -> None:
        deadline = None if timeout is None else self.asyncio_loop.time() + timeout
        if self._supervising:
            self._refuse_more('is stopping')
        self.draining = True
        try:
            await self._until(self._is_drained, deadline)
            await self._stop_members(deadline)
            await self._until(self._is_quiet, deadline)
        finally:
            self._abandon('was stopped before the task ended')
        await self._until(self._is_empty, None)
        self._finish()

    async def _stop_members(self, deadline: float | None) -> None:
        drained = self._is_drained()
        self._give_up_supervising('was stopped before the task ended')
        for member in self.everybody():
            member.cancel_restart()
            if not drained:
                member.cancel()
            member.pill()
        grace = self.asyncio_loop.time() + CANCEL_GRACE
        await self._until(self._is_empty, max(deadline, grace) if drained and deadline else deadline and grace)

    def _is_drained(self) -> bool:
        '''Whether every task has ended, or nobody will end the rest.'''
        return not self._supervising or not any(member.slot.window.used for member in self.everybody())

    def _is_quiet(self) -> bool:
        '''Whether the handlers are done with all that has come.'''
        if self._abandoned:
            return True
        # A handler that itself waits for this stop can't end before it, and nor can its result.
        stoppers = self.handlers.stoppers
        pending = sum(member.results_pending for member in self.everybody()) - self._results.qsize()
        return pending <= stoppers and self.handlers.running <= stoppers and not self.handlers.untold

    def _is_empty(self) -> bool:
        '''Whether every process is gone and all that came from them was taken up.'''
        return all(not member.running and not member.unread for member in self.everybody())

    async def _until(self, condition: Callable[[], bool], deadline: float | None) -> None:
        '''Wait until `condition` holds or the loop's clock has reached `deadline`.'''
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not condition():
                    await self._change()

    def _give_up_supervising(self, reason: str) -> None:
        if self._supervising:
            self._supervising = False
            self._given_up = reason
            self.changed.set()

    def _refuse_more(self, reason: str, state: str = 'stopping') -> None:
        self._accepting = False
        self.state = state
        self._reason = reason
        self._roster.dismiss_waiters(self._refusal())
        self.changed.set()

    def _abandon(self, reason: str, state: str = 'stopping') -> None:
        '''Kill what there is, and replace nothing any more.'''
        if self.state in ('stopped', 'broken', 'new'):
            return
        self._abandoned = True
        self._give_up_supervising(reason)
        self._refuse_more('is stopping', state)
        for member in self.everybody():
            member.cancel_restart()
            member.dismiss(f'the pool {self._given_up}')
        self.changed.set()

    def _break(self, cause: LoopPoolError) -> None:
        self._cause = cause
        self._abandon('is broken', 'broken')
        _log.error('%s', self._refusal())
        self._begin_to_close(None)

    def _finish(self) -> None:
        self._unwatch_signals()
        if self.state != 'broken':
            self.state, self._reason = 'stopped', 'has stopped'
        for member in self.everybody():
            member.state = 'stopped'
            self._give_up(member, [])
        # Behind the failures that are still to be told.
        self.asyncio_loop.call_soon(self._tell_the_end)

    def _tell_the_end(self) -> None:
        if self.untold:
            _log.error('pool %r %s: %d tasks had not ended', self.name, self._given_up, self.untold)
        self._results.put_nowait((END, None))
        self._feed.put('stopped', cause=self._refusal() if self.state == 'broken' else None, size=len(self.members))
        self._feed.end()
        self._roster.retained.clear()
        if self._store is not None:
            self._store.close()
        self._closed.set()
        self.changed.set()


def checked_seconds(timeout: object) -> float | None:
    '''A time limit in seconds. ValueError if it is no number, no timedelta and not None.'''
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if timeout is None or (isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0):
        return timeout
    raise ValueError(f'timeout has to be a number of seconds, a timedelta or None, not {timeout!r}')


def _disown_pools() -> None:
    for pool in list(pools.values()):
        pool._disown()
    pools.clear()


os.register_at_fork(after_in_child=_disown_pools)
