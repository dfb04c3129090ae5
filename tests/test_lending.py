'''Shared memory between two ends, joined here: what is lent, said, given back and forgotten, in any order.'''

import gc
import struct
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from parcels import Segment, parcel

from looppool.errors import ProtocolError
from looppool.frames import LARGE, pack_header
from looppool.kinds import Kind, State
from looppool.lending import MOST_IDS, Shortage
from looppool.payload import Payload
from looppool.protocol import PoolEnd, WorkerEnd
from looppool.window import Window


class Handler:
    '''Takes what an end tells, and lets nobody know.'''

    def __getattr__(self, name: str) -> Any:
        if not name.startswith('on_'):
            raise AttributeError(name)
        return lambda *args: None


class Hold:
    '''Gives a payload back when it is collected.'''

    def __init__(self, end: Any, use: int) -> None:
        self._end = end
        self._use = use

    def __del__(self) -> None:
        self._end.returned.append(self._use)


class Memory:
    '''One side's: remembers what was said, and hands over what was attached.'''

    def __init__(self, end: Any) -> None:
        self.end = end
        self.said: list[int] = []
        self.short = False

    def say(self, segment: Any) -> None:
        self.said.append(segment.key)

    def attach(self, key: int, capacity: int, *, shared: bool) -> Segment:
        if self.short:
            self.short = False
            raise Shortage
        return Segment(key, capacity, shared, wanted=False)

    def hold(self, use: int) -> Hold:
        return Hold(self.end, use)


def receive(end: WorkerEnd, data: bytes) -> None:
    '''As a channel does it: where descriptors run short, go on later.'''
    try:
        end.receive_data(data)
    except Shortage:
        end.receive_data(b'')


class LendingMachine(RuleBasedStateMachine):
    '''The pool sends payloads in segments; the worker keeps or drops them; segments are wanted no more at any time.'''

    @initialize()
    def begin(self) -> None:
        self.wire: list[bytes] = []
        self.back: list[bytes] = []
        self.held: list[Payload] = []
        self.segments = {key: Segment(key) for key in range(3)}
        self.sent: list[list[tuple[int, int, int]]] = []
        self.pool = PoolEnd(Handler(), lambda *_: None, lambda: None, Window(10, 1000))
        self.worker = WorkerEnd(Handler(), self.deliver, lambda: None)
        self.pool.memory, self.worker.memory = Memory(self.pool), Memory(self.worker)
        self.pool.start(b'', b'', ())
        self.worker.receive_data(self.pool.data_to_send())
        self.worker.ready()
        self.pool.receive_data(self.worker.data_to_send())

    def deliver(self, _kind: int, _ident: int, messages: list[Any]) -> None:
        [payload] = messages
        assert [(s.key, offset, size) for s, offset, size in payload.pieces] == self.sent.pop(0)
        self.held.append(payload)

    @rule(pieces=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100), st.integers(1, 100)), min_size=1))
    def send(self, pieces: list[tuple[int, int, int]]) -> None:
        self.sent.append([(self.segments[key].key, offset, size) for key, offset, size in pieces])
        placed = [(self.segments[key], offset, size) for key, offset, size in pieces]
        self.pool.send_task(parcel(Payload(b'x', placed, None, spilled=False)))  # type: ignore[arg-type]

    @rule(key=st.integers(0, 2))
    def want_no_more(self, key: int) -> None:
        old = self.segments[key]
        old.wanted = False
        self.segments[key] = Segment(max(segment.key for segment in self.segments.values()) + 1)
        for end in list(old.ends):
            end.forget(old.key)

    @rule()
    def write(self) -> None:
        self.wire.append(self.pool.data_to_send())

    @rule()
    def write_back(self) -> None:
        self.back.append(self.worker.data_to_send())

    @precondition(lambda self: self.wire)
    @rule()
    def read(self) -> None:
        receive(self.worker, self.wire.pop(0))

    @rule()
    def run_short(self) -> None:
        self.worker.memory.short = True  # type: ignore[attr-defined]

    @precondition(lambda self: self.back)
    @rule()
    def read_back(self) -> None:
        self.pool.receive_data(self.back.pop(0))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 100))
    def drop(self, index: int) -> None:
        self.held.pop(index % len(self.held))

    @invariant()
    def what_is_said_is_counted(self) -> None:
        counts: dict[int, int] = {}
        for payload in self.pool.lent.values():
            for segment in payload.segments:
                counts[segment.key] = counts.get(segment.key, 0) + 1
        assert {key: count for key, count in self.pool._said.items() if count} == counts

    def teardown(self) -> None:
        for _ in range(3):
            for data in [*self.wire, self.pool.data_to_send()]:
                receive(self.worker, data)
            self.wire.clear()
            self.held.clear()
            gc.collect(0)
            for data in [*self.back, self.worker.data_to_send()]:
                self.pool.receive_data(data)
            self.back.clear()
        assert not self.pool.lent
        wanted = {segment.key for segment in self.segments.values()}
        assert set(self.pool._said) == set(self.worker._segments) <= wanted
        said = self.pool.memory.said  # type: ignore[attr-defined]
        assert len(said) == len(set(said))


LendingMachine.TestCase.settings = settings(max_examples=200, deadline=None)
TestLending = LendingMachine.TestCase


def test_any_number_may_be_given_back_at_once() -> None:
    pool = PoolEnd(Handler(), lambda *_: None, lambda: None, Window(10, 1000))
    pool.memory = Memory(pool)
    pool._enter(State.READY)
    worker = worker_end()
    segment: Any = Segment(5)
    worker.receive_data(SEGMENT)
    for _ in range(MOST_IDS + 10):
        pool._send_large(Kind.TASK, 1, Payload(b'', [(segment, 0, 1)], None, spilled=False))
    worker.returned.extend(range(1, MOST_IDS + 11))

    pool.receive_data(worker.data_to_send())

    assert not pool.lent


# What must not be


def worker_end() -> WorkerEnd:
    end = WorkerEnd(Handler(), lambda *_: None, lambda: None)
    end.memory = Memory(end)
    end._enter(State.READY)
    return end


def frame(kind: int, ident: int, body: bytes) -> bytes:
    return pack_header(len(body), kind, ident) + body


SEGMENT = frame(Kind.SEGMENT, 5, struct.pack('<Q?', 100, False))


def reference(*pieces: tuple[int, int, int], mode: int = 0, spilled: int = 0, count: int | None = None) -> bytes:
    packed = b''.join(struct.pack('<QQQ', *piece) for piece in pieces)
    return struct.pack('<QBBI', 1, mode, spilled, len(pieces) if count is None else count) + packed


@pytest.mark.parametrize('data', [
    frame(Kind.TASK | LARGE, 1, b''),
    frame(Kind.TASK | LARGE, 1, reference((6, 0, 1))),
    frame(Kind.TASK | LARGE, 1, reference((5, 0, 101))),
    frame(Kind.TASK | LARGE, 1, reference((5, 100, 1))),
    frame(Kind.TASK | LARGE, 1, reference((5, 2**64 - 1, 2))),
    frame(Kind.TASK | LARGE, 1, reference((5, 0, 1), mode=3)),
    frame(Kind.TASK | LARGE, 1, reference((5, 0, 1), count=2)),
    frame(Kind.TASK | LARGE, 1, reference((5, 0, 1), count=2**32 - 1)),
    frame(Kind.TASK | LARGE, 1, reference(spilled=1)),
    frame(Kind.PILL | LARGE, 1, reference((5, 0, 1))),
    frame(Kind.GIVE_BACK, 0, bytes(8)),
    frame(Kind.GIVE_BACK, 0, bytes(7)),
    frame(Kind.FORGET, 6, b''),
    frame(Kind.FORGET, 5, b'') + frame(Kind.TASK | LARGE, 1, reference((5, 0, 1))),
    SEGMENT,
    frame(Kind.SEGMENT, 6, b'short'),
])  # fmt: skip
def test_what_is_not_what_it_has_to_be_breaks_the_protocol(data: bytes) -> None:
    end = worker_end()
    end.receive_data(SEGMENT)

    with pytest.raises(ProtocolError):
        end.receive_data(data)


def test_a_message_in_shared_memory_keeps_to_the_cap() -> None:
    end = worker_end()
    end.limit_bodies(100_000)
    end.receive_data(frame(Kind.SEGMENT, 5, struct.pack('<Q?', 1 << 20, False)))

    end.receive_data(frame(Kind.TASK | LARGE, 1, reference((5, 0, 100_000))))
    with pytest.raises(ProtocolError, match='cap'):
        end.receive_data(frame(Kind.TASK | LARGE, 2, reference((5, 0, 100_001))))


def test_without_memory_none_may_come() -> None:
    end = WorkerEnd(Handler(), lambda *_: None, lambda: None)
    end._enter(State.READY)

    with pytest.raises(ProtocolError, match='where there is none'):
        end.receive_data(SEGMENT)
