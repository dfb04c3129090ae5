'''`Link`: one process's life, as its pool knows it.

1. It has the process, its channel, its status page, and the results that came from it. It is replaced with the process;
   results that it has brought are taken up even after its death.
2. A process that ended is read to the end of its link first, and judged then.
3. A link decides nothing: it tells its pool what happened.
'''

import asyncio
import contextlib
import functools
import logging
import os
import pickle
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .channel import Channel
from .codec import Definition, Key, define, definitions, pack_error, unpack_error
from .errors import ProtocolError, WorkerDied, WorkerStartError
from .handlers import FAILURES, current_handlers, end_result
from .kinds import Kind
from .payload import Body, Payload
from .plain import PLAIN, size_of
from .process import start
from .protocol import Parcel, PoolEnd
from .relay import Relay, answer
from .runner import as_coroutine
from .segments import Sharing
from .status import StatusPage
from .window import Window
from .worker import undecorated

if TYPE_CHECKING:
    from .member import Member

__all__ = ['Link']

_log: Final = logging.getLogger('looppool')

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
        self._inbox: deque[Body] = deque()
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
            self.channel = Channel(ours, self._loop, self._work, self._on_closed, descriptors=socket.socketpair())
            undo.callback(self.channel.close)
            results = Window(settings.result_window, settings.window_bytes)
            self.end = PoolEnd(self, self._receive, self.channel.wake, results, self.channel.wake_later)
            self.end.limit_bodies(settings.max_message_bytes)
            self.end.memory = Sharing(self._loop, self.channel, self.end)
            self.channel.open(self.end)
            self.process = start(
                blueprint.launch, self._loop, theirs, page_fd, on_started=self._on_started, on_exit=self._on_exit
            )
            undo.pop_all()
        self._timer = self._loop.call_later(settings.start_timeout, self._out_of_time)
        self.end.start(pickle.dumps(configuration), *blueprint.encoded)

    def _receive(self, _kind: int, _ident: int, results: list[Body]) -> None:
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

    def on_define(self, body: bytes | Payload) -> Key:
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

    def on_call_failed(self, parcel: Parcel) -> None:
        self.member.failed += 1
        self._pool.tasks_ended(self.member, parcel[2], 1)

    def on_bye(self) -> None:
        self.said_bye = True

    def _note(self) -> str:
        return f'raised in worker {self.member.slot.address} (pid {self.process.pid}) of pool {self._pool.name!r}'

    # Calls

    def on_abandoned(self, parcel: Parcel) -> None:
        self.on_call_failed(parcel)
        parcel[3].on_error(asyncio.CancelledError())  # type: ignore[union-attr]

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
            # It waits, and sees its cancellation when the loop turns. What keeps the loop from that is another's, or an
            # asyncio task of its own, which alone is interrupted.
            age = self.heartbeat_age()
            if age is not None and age > self._pool.settings.heartbeat + grace:
                self.interrupt(ident)
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

    def on_ask(self, ident: int, head: bytes, data: Body) -> None:
        answer(self._pool, self, ident, head, data)

    def on_abort(self, ident: int) -> None:
        if ident in self.asked:
            self.asked[ident].cancel()

    def answer(self, ident: int, kind: Kind, body: Body, needs: tuple[Definition, ...]) -> None:
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
            size = size_of(body)
            results.take(size)
            result_done = self._receipt(size)
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
        total = count = 0
        try:
            while inbox:
                body = inbox.popleft()
                size = size_of(body)
                total += size
                count += 1
                try:
                    outcome = handler(body if type(body) in PLAIN else decode(body), _done_on_return)
                    coroutine = None if outcome is None else as_coroutine(outcome)
                    if coroutine is not None:
                        total -= size
                        count -= 1
                        self.end.results.take(size)
                        self._pool.handlers.run(coroutine, functools.partial(self._handled_and_done, size))
                except FAILURES:
                    self._log_failure()
                if clock() > deadline:
                    break
        finally:
            self._give_credit(total, count)

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
        self.end.let_go()
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


def _done_on_return() -> None:
    raise ValueError('the result is done when the handler returns, as it is decorated with task_done')
