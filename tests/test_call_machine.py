'''Calls and their items on both ends of a link, joined in memory, whatever pool, worker and transport do, and when.'''

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from parcels import Named, parcel
from test_protocol_machine import LONG, Joined, Needs, Side, some_definitions

from looppool.kinds import Kind, State
from looppool.payload import pickled
from looppool.protocol import PoolEnd, WorkerEnd
from looppool.window import Window

MOST = 3
'''Calls that are open at once.'''
CREDIT = 4
'''Items that may be on their way in one direction of a call.'''


class Items:
    '''One side of the items of a call, without what waits for them: an `Exchange` of the link.'''

    def __init__(self, side: Side, name: bytes) -> None:
        self.side = side
        self.name = name
        self.ident = 0
        self.out = Window(CREDIT, 1000)
        self.inbox: list[bytes] = []
        self.sent = self.received = self.owing = self.owing_bytes = 0
        self.out_ended = self.in_ended = self.discarding = self.closed = False

    def send(self, size: int, needs: Needs) -> None:
        item = self.name + b'%08d' % self.sent + bytes(size)
        if self.out.try_take(len(item)):
            self.sent += 1
            self.side.known.update(definition.key for definition in needs)
            self.side.end.send_item(self.ident, item, needs)

    def end(self) -> None:
        self.out_ended = True
        self.side.end.send_end(self.ident)

    def on_items(self, items: list[bytes]) -> None:
        assert not self.in_ended and not self.closed
        for item in items:
            assert item.startswith(self.name + b'%08d' % self.received), 'of another call, or out of order'
            self.received += 1
        self.inbox += items
        assert len(self.inbox) <= CREDIT
        if self.discarding:
            while self.inbox:
                self.take()

    def on_more(self, count: int, size: int) -> None:
        assert not self.closed
        self.out.give(size, count)

    def on_end(self) -> None:
        assert not self.in_ended and not self.closed
        self.in_ended = True

    def take(self) -> None:
        '''Let go of an item; its credit goes back, alone or in company.'''
        item = self.inbox.pop(0)
        self.owing += 1
        self.owing_bytes += len(item)
        if not self.inbox or self.owing > 1:
            self.side.end.send_more(self.ident, self.owing, self.owing_bytes)
            self.owing = self.owing_bytes = 0

    def discard(self) -> None:
        self.discarding = True
        while self.inbox:
            self.take()


class Caller(Items):
    '''Who has made a call.'''

    def __init__(self, side: Side, name: bytes) -> None:
        super().__init__(side, name)
        self.abandoned = False
        self.answers: list[Any] = []

    def on_sent(self, _link: Any, ident: int) -> None:
        self.ident = ident

    def on_value(self, body: bytes) -> None:
        self.answers.append(body)
        self.closed = True

    on_failure = on_value

    def on_error(self, error: BaseException) -> None:
        raise AssertionError('nobody died')

    def abandon(self) -> None:
        self.abandoned = self.out_ended = True
        self.discard()
        assert isinstance(self.side.end, PoolEnd)
        self.side.end.abort(self.ident)


class PoolSide(Side):
    end: PoolEnd

    def __init__(self) -> None:
        super().__init__()
        self.end = PoolEnd(self, self.deliver, self.wake, Window(1, 1))  # type: ignore[arg-type]
        self.callers: list[Caller] = []
        self.answered = 0

    def on_ready(self) -> None:
        assert self.end.state == State.READY

    def on_done(self, _size: int, count: int) -> None:
        self.answered += count

    def on_call_failed(self, _parcel: Named) -> None:
        self.answered += 1

    def on_bye(self) -> None:
        assert not self.end.calls

    @property
    def open(self) -> list[Caller]:
        return [caller for caller in self.callers if not caller.closed]


class WorkerSide(Side):
    '''What a worker does with calls: it takes them up in order, and answers in any.'''

    end: WorkerEnd

    def __init__(self) -> None:
        super().__init__()
        self.end = WorkerEnd(self, self.deliver, self.wake)  # type: ignore[arg-type]
        self.pending: list[tuple[int, bytes]] = []
        self.open: dict[int, Items] = {}
        self.aborted: set[int] = set()
        self.taken_up = 0
        self.answers: dict[int, Any] = {}
        self.pilled = False

    def on_configure(self, body: bytes) -> None:
        pass

    def on_start(self, body: bytes) -> None:
        pass

    def on_pill(self) -> None:
        self.pilled = True

    def deliver(self, kind: int, first: int, messages: list[bytes]) -> None:
        assert kind == Kind.CALL
        self.pending += enumerate(messages, first)

    def on_abort(self, ident: int) -> None:
        if ident in self.open:
            self.aborted.add(ident)
        for waiting in self.pending:
            if waiting[0] == ident:
                self.pending.remove(waiting)
                self.answer(ident, Kind.FAILED, b'dropped')
                break

    def on_early(self, ident: int) -> Items | None:
        return self.items(ident) if ident > self.taken_up else None

    def items(self, ident: int) -> Items:
        found = self.end.exchanges.get(ident)
        if not isinstance(found, Items):
            found = self.end.exchanges[ident] = Items(self, b'%08d' % (ident - 1))
            found.ident = ident
        return found

    def take_up(self) -> None:
        self.taken_up, data = self.pending.pop(0)
        assert data[:8] == b'%08d' % (self.taken_up - 1)
        self.open[self.taken_up] = self.items(self.taken_up)

    def answer(self, ident: int, kind: Kind, body: Any, needs: Needs = ()) -> None:
        assert ident not in self.answers
        self.answers[ident] = body
        self.open.pop(ident, None)
        self.end.exchanges.pop(ident, None)
        self.known.update(definition.key for definition in needs)
        (self.end.value if kind == Kind.VALUE else self.end.failed)(ident, body, needs)


class Calls(Joined):
    def __init__(self) -> None:
        super().__init__(PoolSide(), WorkerSide())

    @initialize()
    def start(self) -> None:
        self.pool.end.start(b'', b'', ())
        self.down.carry(1000)
        self.worker.end.ready()
        self.up.carry(1000)

    # What may happen

    @precondition(lambda self: self.pool.end.state == State.READY and len(self.pool.open) < MOST)
    @rule(size=st.integers(0, 30), needs=some_definitions)
    def call(self, size: int, needs: Needs) -> None:
        name = b'%08d' % len(self.pool.callers)
        caller = Caller(self.pool, name)
        self.pool.callers.append(caller)
        self.pool.known.update(definition.key for definition in needs)
        ident = self.pool.end.send_task(parcel(name + bytes(size), needs=needs, call=caller))
        assert caller.ident == ident == len(self.pool.callers)

    @precondition(lambda self: self.pool.open)
    @rule(which=st.integers(0, MOST), verb=st.integers(0, 9), size=st.integers(0, 30), needs=some_definitions)
    def use(self, which: int, verb: int, size: int, needs: Needs) -> None:
        '''Send an item, say that there are no more, give up. What follows on that is `go_on`.'''
        caller = self.pool.open[which % len(self.pool.open)]
        if verb == 0 and not caller.abandoned:
            caller.abandon()
        elif verb == 1 and not caller.out_ended:
            caller.end()
        elif not caller.out_ended:
            caller.send(size, needs)

    @precondition(lambda self: self.worker.open)
    @rule(which=st.integers(0, MOST), verb=st.integers(0, 9), size=st.integers(0, 30), needs=some_definitions)
    def produce(self, which: int, verb: int, size: int, needs: Needs) -> None:
        ident, items = list(self.worker.open.items())[which % len(self.worker.open)]
        if verb == 0:
            self.worker.answer(ident, Kind.FAILED, b'failed', needs)
        elif verb == 1:
            self.worker.answer(ident, Kind.VALUE, size if size % 2 else b'value', needs)
        elif verb == 2 and not items.out_ended:
            items.end()
        elif verb == 3:
            items.discard()
        elif not items.out_ended:
            items.send(size, needs)

    @property
    def at_its_end(self) -> bool:
        return self.pool.end.state != State.READY

    @precondition(lambda self: self.pool.end.state == State.READY and len(self.pool.callers) > 5)
    @rule()
    def stop(self) -> None:
        self.pool.end.pill()

    def steps(self, which: int, count: int) -> dict[str, Callable[[], None]]:
        '''What can be done now without anything being asked for.'''
        pool, worker = self.pool, self.worker
        full_up = [caller for caller in pool.open if caller.inbox]
        full_down = [items for items in worker.open.values() if items.inbox]
        aborted = sorted(worker.aborted & worker.open.keys())
        able: dict[str, tuple[object, Callable[[], None]]] = {
            'carry to the worker': (pool.woken or self.down.bytes, lambda: self.down.carry(count)),
            'carry to the pool': (worker.woken or self.up.bytes, lambda: self.up.carry(count)),
            'take up a call': (worker.pending, worker.take_up),
            'take an item': (full_up, lambda: full_up[which % len(full_up)].take()),
            'take an item in the worker': (full_down, lambda: full_down[which % len(full_down)].take()),
            'an aborted call ends': (aborted, lambda: worker.answer(aborted[0], Kind.FAILED, b'cancelled')),
        }
        return {name: step for name, (possible, step) in able.items() if possible}

    # What holds at any time

    @invariant()
    def promises_hold(self) -> None:
        self.every_call_is_open_until_its_one_answer()
        self.credit_is_conserved()
        self.the_books_hold_what_is_open()
        assert self.pool.woken or not self.pool.end.data_to_send()
        assert self.worker.woken or not self.worker.end.data_to_send()

    def every_call_is_open_until_its_one_answer(self) -> None:
        for caller in self.pool.callers:
            assert len(caller.answers) == caller.closed
            if caller.closed:
                # What is plain arrives pickled if it travelled alone.
                assert [pickled(answer) for answer in caller.answers] == [pickled(self.worker.answers[caller.ident])]
        assert set(self.pool.end.calls) == {caller.ident for caller in self.pool.open}
        assert self.pool.answered == len(self.pool.callers) - len(self.pool.open)

    def credit_is_conserved(self) -> None:
        '''An item's permit is held while it is on its way, waits there, or its credit is on its way back.'''
        for ident, there in self.worker.open.items():
            here = self.pool.callers[ident - 1]
            for source, target, forth, back in ((here, there, self.down, self.up), (there, here, self.up, self.down)):
                arrived = target.received
                credited = [body for _, number, body in back.of_kind(Kind.MORE) if number == ident]
                given_back = sum(int.from_bytes(body[:4], 'little') for body in credited)
                assert source.out.used == source.sent - given_back
                assert arrived <= source.sent and source.out.used <= CREDIT
                assert len(target.inbox) + target.owing <= source.out.used
                assert forth.source is source.side

    def the_books_hold_what_is_open(self) -> None:
        assert self.worker.open.keys() <= self.worker.end.exchanges.keys()
        early = self.worker.end.exchanges.keys() - self.worker.open.keys()
        assert early <= {ident for ident, _ in self.worker.pending}

    # What comes in the end

    def teardown(self) -> None:
        '''End what runs, stop, and let everybody do what is left to do: then nothing is left.'''
        if self.pool.end.state == State.READY:
            self.pool.end.pill()
        while (steps := self.steps(0, 7)) or self.worker.open:
            if steps:
                steps.popitem()[1]()
            else:
                self.worker.answer(next(iter(self.worker.open)), Kind.VALUE, b'value')
            self.promises_hold()
        assert self.worker.pilled
        self.worker.end.bye()
        self.up.carry(100_000)
        assert not self.pool.end.calls and not self.worker.end.exchanges and not self.pool.open
        assert self.pool.end.state == self.worker.end.state == State.ENDED


@pytest.mark.long
@pytest.mark.timeout(360)  # a failure takes Hypothesis up to five minutes to make small
def test_any_order_of_events_keeps_the_promises_of_calls() -> None:
    run_state_machine_as_test(Calls, settings=LONG)
