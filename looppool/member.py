'''`Member`: the pool's handle on one worker slot, through all the processes that fill it.

1. A `Link` is one process's life: the process, its channel, its status page, and the results that came from it. It is
   replaced with the process; results that it has brought are taken up even after its death. A process that is retired
   finishes what it was sent as a former one, while the next one takes what comes. A successor starts beside a process
   that goes on, and takes its place when it is ready.
2. A process that ended is read to the end of its link first, and judged then.
3. A member decides nothing: it tells its pool what happened.
'''

import asyncio
import contextlib
import functools
import logging
import math
import os
import pickle
import socket
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .callee import ANY
from .calls import Addressed
from .channel import Channel
from .codec import Definition, Key, define, definitions, pack_error, unpack_error
from .errors import LoopPoolError, ProtocolError, WorkerDied, WorkerStartError
from .handlers import FAILURES, current_handlers, end_result
from .kinds import Kind
from .process import Launch, start
from .protocol import Parcel, PoolEnd
from .relay import Relay, answer
from .roster import Address, Slot
from .runner import as_coroutine
from .statistics import MemberStatistics
from .status import StatusPage
from .window import Window
from .worker import undecorated

if TYPE_CHECKING:
    from .elastic import Elastic

__all__ = ['DEFAULT', 'Blueprint', 'Link', 'Member']

_log: Final = logging.getLogger('looppool')

DEFAULT: Final[Any] = object()
'''A time limit that was not given: that of the pool.'''
_INTERRUPT_PERIOD: Final = 0.02
'''Seconds between attempts to interrupt a call: it may just be where it can't be.'''
_EXIT_GRACE: Final = 1.0
'''Seconds that a process gets to end after it has closed its link.'''


class Link:
    '''One process's life. It is the `PoolHandler` of its end.'''

    def __init__(self, member: 'Member') -> None:
        self.member = member
        self.was_ready = False
        self._early = False
        self.said_bye = False
        self.dismissed = False
        '''Whether the pool killed it for reasons of its own.'''
        self.fault = ''
        '''Why the pool killed it.'''
        self.start_error: BaseException | None = None
        self.objects = 0
        '''How many `RemoteObject`s keep objects alive in it.'''
        self.buried = False
        '''Whether its process is gone, and was judged.'''
        self._pool = member.pool
        self._loop = self._pool.asyncio_loop
        self._inbox: deque[bytes] = deque()
        self.asked: dict[int, Relay | asyncio.Task[Any]] = {}
        '''What the worker has asked and was not told yet.'''
        self._decode = self._pool.packing.unpack
        settings = self._pool.settings
        blueprint = member.blueprint
        configuration = settings.configuration(member.number, member.name, blueprint.launch)
        configuration |= {'pool_key': self._pool.key, 'reimport': self._pool.reimport}
        # All of it, or nothing: descriptors may run out at any step.
        with contextlib.ExitStack() as at_end, contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            at_end.callback(theirs.close)
            undo.callback(ours.close)
            self.page, page_fd = StatusPage.create()
            at_end.callback(os.close, page_fd)
            undo.callback(self.page.close)
            self.channel = Channel(ours, self._loop, self._work, self._on_closed)
            undo.callback(self.channel.close)
            results = Window(settings.result_window, settings.window_bytes)
            self.end = PoolEnd(self, self._receive, self.channel.wake, results, self.channel.wake_later)
            self.end.limit_bodies(settings.max_message_bytes)
            self.channel.open(self.end)
            self.process = start(
                blueprint.launch, self._loop, theirs, page_fd, on_started=self._on_started, on_exit=self._on_exit
            )
            undo.pop_all()
        self._timer = self._loop.call_later(settings.start_timeout, self._out_of_time)
        self.end.start(pickle.dumps(configuration), *blueprint.encoded)

    def _receive(self, _kind: int, _ident: int, results: list[bytes]) -> None:
        self._inbox.extend(results)

    # What the link tells

    def on_ready(self) -> None:
        if self.process.pid is None:
            # It has overtaken the fork server's report: `_on_started` comes back to it.
            self._early = True
            return
        self._timer.cancel()
        self.was_ready = True
        if self is self.member.successor:
            self._pool.changed.set()
        else:
            self._pool.member_ready(self.member)

    def _on_started(self) -> None:
        if self._early:
            self._early = False
            self.on_ready()

    def on_start_failed(self, body: bytes) -> None:
        self.start_error = unpack_error(body, self._note())

    def on_define(self, body: bytes) -> Key:
        return define(body)

    def on_done(self, size: int, count: int) -> None:
        self.member.done += count
        self._pool.tasks_ended(self.member, size, count)

    def understand(self, body: bytes) -> BaseException:
        return unpack_error(body, self._note())

    def cut_short(self, error: BaseException) -> BaseException:
        ended: BaseException = self._pool.cut_short(error)
        return ended

    def on_failed(self, parcel: Parcel, error: BaseException) -> None:
        self._pool.task_failed(self.member, parcel, error)

    def on_answered(self, parcel: Parcel, *, failed: bool) -> None:
        if failed:
            self.member.failed += 1
        else:
            self.member.done += 1
        self._pool.tasks_ended(self.member, len(parcel[0]), 1)

    def on_bye(self) -> None:
        self.said_bye = True

    def _note(self) -> str:
        return f'raised in worker {self.member.slot.address} (pid {self.process.pid}) of pool {self._pool.name!r}'

    # Calls

    def send(self, parcel: Parcel) -> None:
        '''Send what was accepted for this worker.'''
        call = parcel[1].call
        if call is None:
            self.end.send_task(parcel)
        elif call.abandoned:
            self.member.failed += 1
            self._pool.tasks_ended(self.member, len(parcel[0]), 1)
            call.on_error(asyncio.CancelledError())
        else:
            call.on_sent(self, self.end.send_task(parcel))

    def abandon(self, ident: int) -> None:
        '''Cancel a call: see that it ends, whatever it takes.'''
        if self.end.awaits(ident) and not self.process.ended:
            self.end.abort(ident)
            self._loop.call_later(self._pool.settings.cancel_grace, self._insist, ident, 0.0)

    def _insist(self, ident: int, deadline: float) -> None:
        '''Interrupt a cancelled call that blocks its worker's loop; past the deadline, kill the worker.'''
        if not self.end.awaits(ident) or self.process.ended:
            return
        grace, now = self._pool.settings.cancel_grace, self._loop.time()
        if self.page.stepping != ident:
            # It waits, and sees its cancellation when the loop turns: whatever blocks that is another's.
            self._loop.call_later(grace, self._insist, ident, 0.0)
        elif deadline and now >= deadline:
            self.kill(f'a cancelled call blocked its loop for more than {2 * grace:g} s and could not be interrupted')
        else:
            self.interrupt(ident)
            self._loop.call_later(_INTERRUPT_PERIOD, self._insist, ident, deadline or now + grace)

    def interrupt(self, ident: int) -> None:
        '''Raise `TaskInterrupted` in a call, if it runs now.'''
        self.page.interrupt = ident
        self.process.interrupt()

    # What the worker asks

    def on_ask(self, ident: int, head: bytes, data: bytes) -> None:
        answer(self._pool, self, ident, head, data)

    def on_abort(self, ident: int) -> None:
        if ident in self.asked:
            self.asked[ident].cancel()

    def answer(self, ident: int, kind: Kind, body: bytes, needs: tuple[Definition, ...]) -> None:
        '''Tell the worker what came of what it asked.'''
        del self.asked[ident]
        if not self.process.ended:
            self.end.answer(ident, kind, body, needs)

    def fail(self, ident: int, error: BaseException) -> None:
        '''Tell the worker that what it asked has failed.'''
        self.answer(ident, Kind.REFUSAL, *pack_error(error, self.end.max_own_body))

    def relay(self, relay: Relay) -> None:
        '''Hand on a call of another worker.'''
        relay.on_sent(self, self.end.relay(relay, relay.data, definitions(relay.asker.end.known)))

    def end_relays(self, error: BaseException) -> None:
        '''The process is gone: nobody answers what was handed on to it, and nobody waits for what it asked.'''
        relays, self.end.relays = self.end.relays, {}
        for relay in relays.values():
            relay.on_error(error)
        for asked in list(self.asked.values()):
            asked.cancel()

    def hold(self, count: int) -> None:
        '''So many more objects are kept alive in the worker, or fewer.'''
        self.objects += count
        if self.member.due and self is self.member.link:
            self._pool.outlived(self.member, self.member.due)

    # Results

    def _work(self, deadline: float) -> bool:
        # Known from the handler's first step on, which may run at once and ask for a stop.
        current_handlers.set(self._pool.handlers)
        handler, done_on_return = undecorated(self._pool.process_message)
        before = len(self._inbox)
        if done_on_return:
            self._take_up_and_end(handler, deadline)
        else:
            self._take_up(handler, deadline)
        self.member.results += before - len(self._inbox)
        if self._pool.draining:
            self._pool.changed.set()
        return bool(self._inbox)

    def _take_up(self, handler: Callable[..., Any], deadline: float) -> None:
        '''Take up results that end when the handler, or somebody later, calls their `result_done`.'''
        inbox, results, decode = self._inbox, self.end.results, self._decode
        while inbox:
            body = inbox.popleft()
            results.take(len(body))
            result_done = self._receipt(len(body))
            try:
                outcome = handler(decode(body), result_done)
                coroutine = None if outcome is None else as_coroutine(outcome)
                if coroutine is not None:
                    self._pool.handlers.run(coroutine, functools.partial(self._handled, result_done))
            except FAILURES:
                self._log_failure()
                end_result(result_done)
            except BaseException:
                end_result(result_done)
                raise
            if time.monotonic() > deadline:
                break

    def _take_up_and_end(self, handler: Callable[..., Any], deadline: float) -> None:
        '''Take up results that end when `handler` returns: the credits go back together, and no one needs a receipt.'''
        inbox, decode, clock = self._inbox, self._decode, time.monotonic
        size = count = 0
        try:
            while inbox:
                body = inbox.popleft()
                size += len(body)
                count += 1
                try:
                    outcome = handler(decode(body), _done_on_return)
                    coroutine = None if outcome is None else as_coroutine(outcome)
                    if coroutine is not None:
                        size -= len(body)
                        count -= 1
                        self.end.results.take(len(body))
                        self._pool.handlers.run(coroutine, functools.partial(self._handled_and_done, len(body)))
                except FAILURES:
                    self._log_failure()
                if clock() > deadline:
                    break
        finally:
            self._give_credit(size, count)

    def _handled(self, result_done: Callable[[], None], error: BaseException | None) -> None:
        if error is not None:
            end_result(result_done)
            self._pool.handlers.result_failed(error)

    def _handled_and_done(self, size: int, error: BaseException | None) -> None:
        self.end.results.give(size, 1)
        self._give_credit(size, 1)
        if error is not None:
            self._pool.handlers.result_failed(error)

    def _log_failure(self) -> None:
        _log.exception('a result of worker %s could not be processed', self.member.slot.address)

    def _receipt(self, size: int) -> Callable[[], None]:
        '''A function that, called once, gives back the credit of a result of `size` bytes.'''

        def result_done() -> None:
            nonlocal size
            self._pool.check_thread('process_message', 'ioloop.add_callback(result_done)')
            if size < 0:
                raise ValueError('result_done() was called twice for one result')
            self.end.results.give(size, 1)
            self._give_credit(size, 1)
            size = -1

        return result_done

    def _give_credit(self, size: int, count: int) -> None:
        if count:
            self.end.give_credit(size, count)
            if self._pool.draining:
                self._pool.changed.set()

    @property
    def unread(self) -> int:
        '''Results that have come and were not taken up.'''
        return len(self._inbox)

    @property
    def results_pending(self) -> int:
        return self.unread + self.end.results.used

    def heartbeat_age(self) -> float | None:
        '''Seconds since the worker's loop last turned; None before it has.'''
        beat = self.page.heartbeat
        return time.monotonic() - beat if beat else None

    # The end

    def kill(self, fault: str = '') -> None:
        self.fault = self.fault or fault
        self.process.kill()

    def _out_of_time(self) -> None:
        self.kill(f'it was not ready after {self._pool.settings.start_timeout:g} s')

    def _on_closed(self, error: ProtocolError | None) -> None:
        if error:
            self.kill(f'it broke the protocol: {error}')
        else:
            self._loop.call_later(_EXIT_GRACE, self.kill, 'it closed its link and did not exit')

    def _on_exit(self) -> None:
        self._timer.cancel()
        self.channel.read_to_end()
        self.channel.work_soon()
        self._pool.member_exited(self.member, self)

    def owed(self) -> list[tuple[Parcel, bool]]:
        '''What the process owes at its death, in the order sent, and whether each may have run.'''
        taken_up = self.page.taken_up
        owed = sorted({**self.end.owed, **self.end.calls}.items())
        self.end.owed.clear()
        self.end.calls.clear()
        return [(parcel, ident <= taken_up) for ident, parcel in owed]

    def error(self, *, started: bool | None = None) -> WorkerDied | WorkerStartError:
        '''What the process's end means.'''
        number, process = self.member.number, self.process
        died = WorkerDied(
            number, process.pid, process.exitcode, started=started, reason=self.fault, stderr=process.stderr_end(),
            name=self.member.name,
        )  # fmt: skip
        if self.was_ready:
            return died
        if self.start_error is None:
            return WorkerStartError(
                number, process.pid, self.fault or died.how, process.stderr_end(), name=self.member.name
            )
        text = str(self.start_error).partition('\n')[0]
        reason = f'it failed with {type(self.start_error).__name__}: {text}'
        error = WorkerStartError(number, process.pid, reason, name=self.member.name)
        error.__cause__ = self.start_error
        return error


class Blueprint(NamedTuple):
    '''How to make a worker.'''

    launch: Launch
    encoded: tuple[bytes, tuple[Definition, ...]]
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

    def _links(self) -> list[Link]:
        self._former = [link for link in self._former if link.results_pending or not link.buried]
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
        self.slot.deliver = self.link.send if self.last_task is None else self._send_counted
        # A worker that is recycled after so many tasks may leave the rest to the next one.
        while self.slot.backlog and self.slot.open:
            self.slot.deliver(self.slot.backlog.popleft())
        while self.relays:
            self.link.relay(self.relays.popleft())

    def _send_counted(self, parcel: Parcel) -> None:
        assert self.link is not None and self.last_task is not None
        self.link.send(parcel)
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
        self._former.append(link)
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
            self._former.append(link)
            self.link = None
            self.close()
            self.state = 'stopped'
        elif link is self.successor:
            self._former.append(link)
            self.successor = None
        return owed


def _done_on_return() -> None:
    raise ValueError('the result is done when the handler returns, as it is decorated with task_done')
