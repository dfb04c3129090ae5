'''The rules of one end of a link: what is legal when, what is refused, and that nothing hostile does more than that.'''

import contextlib
import pickle
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parcels import Segment, parcel, run

from looppool.codec import Definition, Key
from looppool.errors import ProtocolError
from looppool.frames import ALONE, RUN, Frame, Parser, pack_header
from looppool.kinds import ASKED, Kind, State
from looppool.kinds import LEGAL as TABLE
from looppool.lending import OWN_BODY
from looppool.payload import Payload
from looppool.protocol import PoolEnd, WorkerEnd
from looppool.window import Window

BOTH_WAYS = {
    Kind.DEFINE, Kind.ITEM, Kind.MORE, Kind.END, Kind.ABORT, Kind.SEGMENT, Kind.FORGET, Kind.GIVE_BACK
}  # fmt: skip
TO_WORKER = BOTH_WAYS | {
    Kind.CONFIGURE, Kind.START, Kind.TASK, Kind.CALL, Kind.RELAY, Kind.ANSWER, Kind.REFUSAL, Kind.CREDIT,
    Kind.PILL, Kind.CANCEL,
}
TO_POOL = BOTH_WAYS | {
    Kind.READY, Kind.START_FAILED, Kind.RESULT, Kind.DONE, Kind.FAILED, Kind.VALUE, Kind.ASK, Kind.BYE
}
STATES = list(State)
NEW, STARTING, READY, STOPPING, ENDED = STATES
LEGAL = {
    Kind.CONFIGURE: {NEW},
    Kind.START: {STARTING},
    Kind.TASK: {READY},
    Kind.CALL: {READY},
    Kind.RELAY: {READY, STOPPING, ENDED},
    Kind.ASK: {STARTING, READY, STOPPING},
    Kind.ABORT: {STARTING, READY, STOPPING, ENDED},
    Kind.ITEM: {STARTING, READY, STOPPING, ENDED},
    Kind.MORE: {STARTING, READY, STOPPING, ENDED},
    Kind.END: {STARTING, READY, STOPPING, ENDED},
    Kind.VALUE: {READY, STOPPING},
    Kind.ANSWER: {STARTING, READY, STOPPING, ENDED},
    Kind.REFUSAL: {STARTING, READY, STOPPING, ENDED},
    Kind.CREDIT: {STARTING, READY, STOPPING, ENDED},
    Kind.PILL: {READY},
    Kind.CANCEL: {READY, STOPPING, ENDED},
    Kind.DEFINE: {STARTING, READY, STOPPING},
    Kind.READY: {STARTING},
    Kind.START_FAILED: {STARTING},
    Kind.RESULT: {STARTING, READY, STOPPING},
    Kind.DONE: {READY, STOPPING},
    Kind.FAILED: {READY, STOPPING},
    Kind.BYE: {STOPPING},
    Kind.SEGMENT: {STARTING, READY, STOPPING, ENDED},
    Kind.FORGET: {STARTING, READY, STOPPING, ENDED},
    Kind.GIVE_BACK: {STARTING, READY, STOPPING, ENDED},
}
'''What may be received in which state, said once more, so that nobody changes it unawares.'''
NO_CREDIT = struct.pack('<Q', 0)
NONSENSE = b'nonsense'
DEFINITION = Definition(('elsewhere', 1), b'definition', ())


class Recorder:
    '''Takes the calls of either end, and what is handed on.'''

    abandoned = False

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.inbox: list[tuple[int, bytes]] = []
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def deliver(self, kind: int, ident: int, messages: list[bytes]) -> None:
        self.inbox += [(ident, message) for message in messages]

    def on_define(self, body: bytes) -> Key:
        self.calls.append(('on_define', body))
        return ('sender', len(self.calls))

    def understand(self, body: bytes) -> BaseException:
        if body == NONSENSE:
            raise ProtocolError('nonsense')
        return RuntimeError(body)

    def on_early(self, ident: int) -> 'Recorder':
        return self

    def attach(self, key: int, capacity: int, *, shared: bool) -> Segment:
        return Segment(key, capacity, shared)

    def hold(self, use: int) -> object:
        return None

    def say(self, segment: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if not name.startswith('on_'):
            raise AttributeError(name)
        return lambda *args, **_: self.calls.append((name, *args))

    def total(self, name: str, index: int) -> int:
        return sum(call[index] for call in self.calls if call[0] == name)


def pool_end(state: State = State.READY) -> tuple[PoolEnd, Recorder]:
    '''A pool's end in that state, which owes task 1 and call 2 from READY on.'''
    recorder = Recorder()
    end = PoolEnd(recorder, recorder.deliver, recorder.wake, Window(4, 100))
    end.asks[ASKED | 9] = recorder
    lend(end, recorder)
    if state >= State.STARTING:
        end.start(b'configuration', b'worker', ())
    if state >= State.READY:
        end.receive_data(frame(Kind.READY))
        end.send_task(parcel(b'task 1'))
        end.send_task(parcel(b'call 2', call=recorder))
    if state >= State.STOPPING:
        end.pill()
    if state >= State.ENDED:
        end.receive_data(frame(Kind.BYE))
    assert end.state == state
    end.data_to_send()
    recorder.calls.clear()
    return end, recorder


def worker_end(state: State = State.READY) -> tuple[WorkerEnd, Recorder]:
    recorder = Recorder()
    end = WorkerEnd(recorder, recorder.deliver, recorder.wake)
    end.asks[ASKED | 9] = recorder
    lend(end, recorder)
    if state >= State.STARTING:
        end.receive_data(frame(Kind.CONFIGURE))
        end.results = Window(4, 100)
    if state >= State.READY:
        end.ready()
    if state >= State.STOPPING:
        end.receive_data(frame(Kind.PILL))
    if state >= State.ENDED:
        end.bye()
    assert end.state == state
    end.data_to_send()
    recorder.calls.clear()
    return end, recorder


def lend(end: PoolEnd | WorkerEnd, recorder: Recorder) -> None:
    '''Each side has a segment of the other's, and payload 9 is lent.'''
    segment = Segment(9)
    end.memory = recorder
    end._segments[9] = segment
    end._said[9] = 1
    end.lent[9] = Payload(b'', [(segment, 0, 100)], None, spilled=False)


def frame(kind: int, ident: int = 0, body: bytes = b'') -> bytes:
    return pack_header(len(body), kind, ident) + body


def well_formed(kind: Kind) -> bytes:
    if kind == Kind.CREDIT:
        return frame(kind, 0, NO_CREDIT)
    if kind == Kind.MORE:
        return frame(kind, ASKED | 9, struct.pack('<IQ', 0, 0))
    if kind == Kind.SEGMENT:
        return frame(kind, 1, struct.pack('<Q?', 4096, False))
    if kind == Kind.GIVE_BACK:
        return frame(kind, 0, ids(9))
    ident = {Kind.FAILED: 1, Kind.DONE: 1, Kind.VALUE: 2, Kind.FORGET: 9}.get(kind, ASKED | 9)
    return frame(kind, ident, bytes(4) if kind == Kind.ASK else b'')


def ids(*numbers: int) -> bytes:
    return struct.pack(f'<{len(numbers)}Q', *numbers)


def frames_of(end: PoolEnd | WorkerEnd) -> list[Frame]:
    return Parser().feed(all_of(end))


def all_of(end: PoolEnd | WorkerEnd) -> bytes:
    return b''.join(iter(end.data_to_send, b''))


# What is legal when


def test_the_table_is_as_it_was_meant() -> None:
    assert {kind: set(states) for kind, states in TABLE.items()} == LEGAL
    assert set(LEGAL) == set(Kind) == TO_WORKER | TO_POOL


@pytest.mark.parametrize('state', STATES, ids=lambda state: state.name)
@pytest.mark.parametrize('kind', Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize(('make', 'its_kinds'), [(pool_end, TO_POOL), (worker_end, TO_WORKER)], ids=['pool', 'worker'])
def test_a_frame_is_handled_where_the_table_allows_it(make: Any, its_kinds: Any, kind: Kind, state: State) -> None:
    end, recorder = make(state)

    if kind in its_kinds and state in LEGAL[kind]:
        end.receive_data(well_formed(kind))
        # An answer is told to the pool and to the caller.
        two = kind in (Kind.VALUE, Kind.ANSWER, Kind.REFUSAL)
        of_memory = kind in (Kind.SEGMENT, Kind.FORGET, Kind.GIVE_BACK)
        assert len(recorder.calls) + len(recorder.inbox) == 1 + two - of_memory
    else:
        with pytest.raises(ProtocolError, match=f'kind {kind:d} .*{state.name}'):
            end.receive_data(well_formed(kind))
        assert not recorder.calls and not recorder.inbox


@pytest.mark.parametrize('state', STATES, ids=lambda state: state.name)
@pytest.mark.parametrize('kind', Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize(('make', 'its_kinds'), [(pool_end, TO_POOL), (worker_end, TO_WORKER)], ids=['pool', 'worker'])
def test_only_messages_come_in_runs(make: Any, its_kinds: Any, kind: Kind, state: State) -> None:
    end, recorder = make(state)
    data = frame(kind | RUN, ASKED | 9, run(b'a', b'b'))

    if kind in its_kinds & {Kind.TASK, Kind.CALL, Kind.RELAY, Kind.RESULT} and state in LEGAL[kind]:
        end.receive_data(data)
        assert recorder.inbox == [(ASKED | 9, b'a'), (ASKED | 9, b'b')]
    elif kind == Kind.ITEM and state in LEGAL[kind]:
        end.receive_data(data)
        assert recorder.calls == [('on_items', [b'a', b'b'])]
    elif kind in its_kinds & {Kind.VALUE} and state in LEGAL[kind]:
        end.receive_data(frame(kind | RUN, 0, run((2, b'a'))))
        assert recorder.calls == [('on_value', b'a'), ('on_done', 6, 1)]
    else:
        with pytest.raises(ProtocolError, match=f'kind {kind | RUN:d} .*{state.name}'):
            end.receive_data(data)
        assert not recorder.calls and not recorder.inbox


@pytest.mark.parametrize('state', STATES, ids=lambda state: state.name)
@pytest.mark.parametrize('kind', Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize(('make', 'its_kinds'), [(pool_end, TO_POOL), (worker_end, TO_WORKER)], ids=['pool', 'worker'])
def test_only_messages_come_alone_and_plain(make: Any, its_kinds: Any, kind: Kind, state: State) -> None:
    end, recorder = make(state)

    if kind in its_kinds & {Kind.TASK, Kind.CALL, Kind.RELAY, Kind.RESULT, Kind.ITEM} and state in LEGAL[kind]:
        with pytest.raises(ProtocolError, match='not what it has to be'):
            end.receive_data(frame(kind | ALONE, ASKED | 9, b'no pickle'))
        end, recorder = make(state)
        end.receive_data(frame(kind | ALONE, ASKED | 9, pickle.dumps(7)))
        assert recorder.inbox == [(ASKED | 9, 7)] or recorder.calls == [('on_items', [7])]
    elif kind not in its_kinds & {Kind.VALUE} or state not in LEGAL[kind]:
        with pytest.raises(ProtocolError, match=f'kind {kind | ALONE:d} .*{state.name}'):
            end.receive_data(frame(kind | ALONE, ASKED | 9, pickle.dumps(7)))
        assert not recorder.calls and not recorder.inbox


UNKNOWN = set(range(256)) - set(Kind) - {kind | RUN for kind in Kind}


@pytest.mark.parametrize('kind', sorted(UNKNOWN)[::17])
@pytest.mark.parametrize('make', [pool_end, worker_end])
def test_an_unknown_kind_is_an_error(make: Any, kind: int) -> None:
    end, _ = make()

    with pytest.raises(ProtocolError, match=f'kind {kind} '):
        end.receive_data(frame(kind))


@pytest.mark.parametrize('make', [pool_end, worker_end])
def test_a_body_over_the_cap_is_an_error_after_what_came_before(make: Any) -> None:
    end, recorder = make()
    end.limit_bodies(100_000)
    kind = Kind.RESULT if make is pool_end else Kind.TASK

    with pytest.raises(ProtocolError, match='cap'):
        end.receive_data(frame(kind, 1, bytes(100_000)) + pack_header(100_001, kind, 2))

    assert recorder.inbox == [(1, bytes(100_000))]


# The pool's end


def test_ids_start_at_one_and_increase_by_one() -> None:
    end, _ = pool_end()

    assert [end.send_task(parcel(b'task')) for _ in range(3)] == [3, 4, 5]
    assert list(end.owed) == [1, 3, 4, 5]


@pytest.mark.parametrize(
    'bad',
    [
        frame(Kind.DONE, 0, ids(2)),
        frame(Kind.DONE, 2),
        frame(Kind.DONE, 1, b'x'),
        frame(Kind.DONE, 1) + frame(Kind.DONE, 1),
        frame(Kind.DONE, 1) + frame(Kind.DONE, 0, ids(1)),
        frame(Kind.DONE, 0, ids(3)),
        frame(Kind.VALUE, 1),
        frame(Kind.VALUE, 2) + frame(Kind.VALUE, 2),
        frame(Kind.VALUE, 2) + frame(Kind.FAILED, 2),
        frame(Kind.DONE, 0, ids(0)),
        frame(Kind.DONE, 0, ids(1, 1)),
        frame(Kind.DONE, 0, ids(1)) + frame(Kind.DONE, 0, ids(1)),
        frame(Kind.DONE, 0, ids(1)) + frame(Kind.FAILED, 1),
        frame(Kind.FAILED, 3),
        frame(Kind.FAILED, 1) + frame(Kind.FAILED, 1),
    ],
)
def test_an_answer_to_what_is_not_owed_is_an_error(bad: bytes) -> None:
    end, _ = pool_end()

    with pytest.raises(ProtocolError, match='not owed'):
        end.receive_data(bad)


@pytest.mark.parametrize('length', [1, 7, 9, 15])
def test_a_list_of_ids_that_is_cut_is_an_error(length: int) -> None:
    end, _ = pool_end()

    with pytest.raises(ProtocolError, match='multiple of 8'):
        end.receive_data(frame(Kind.DONE, 0, ids(1, 2)[:length]))


def test_done_tells_how_many_and_how_large() -> None:
    end, recorder = pool_end()
    end.send_task(parcel(b'four'))

    end.receive_data(frame(Kind.DONE, 0, ids(3, 1)))

    assert recorder.calls == [('on_done', len(b'task 1' + b'four'), 2)]
    assert not end.owed


def test_failed_tells_which_and_why() -> None:
    end, recorder = pool_end()

    end.receive_data(frame(Kind.FAILED, 1, b'why'))

    ((name, failed, error),) = recorder.calls
    assert (name, failed, error.args) == ('on_failed', parcel(b'task 1'), (b'why',))
    assert not end.owed


def test_a_failure_that_can_not_be_understood_leaves_its_task_owed() -> None:
    end, recorder = pool_end()

    with pytest.raises(ProtocolError, match='nonsense'):
        end.receive_data(frame(Kind.FAILED, 1, NONSENSE))

    assert list(end.owed) == [1] and not recorder.calls


def test_credits_leave_in_one_frame() -> None:
    end, _ = pool_end()

    end.give_credit(10, 1)
    end.give_credit(30, 2)

    assert frames_of(end) == [(Kind.CREDIT, 3, struct.pack('<Q', 40))]
    assert frames_of(end) == []


# The worker's end


@pytest.mark.parametrize(
    ('count', 'body'),
    [(2, ids(10)), (1, ids(11)), (2**64 - 1, ids(0)), (1, ids(2**64 - 1)), (1, b''), (1, b'1234567'), (1, ids(5, 5))],
)
def test_credit_that_nobody_owes_or_that_is_cut_is_an_error(count: int, body: bytes) -> None:
    end, recorder = worker_end()
    end.results.take(10)

    with pytest.raises(ProtocolError, match='bad credit'):
        end.receive_data(frame(Kind.CREDIT, count, body))

    assert (end.results.used, end.results.bytes, recorder.calls) == (1, 10, [])


def test_dones_leave_in_one_frame_behind_the_results_put_before() -> None:
    end, _ = worker_end()

    end.done(1)
    end.send_result(b'result', ())
    end.done(2)

    assert frames_of(end) == [(Kind.RESULT, 0, b'result'), (Kind.DONE, 0, ids(1, 2))]
    assert frames_of(end) == []


def test_bye_is_the_last_frame() -> None:
    end, _ = worker_end(State.STOPPING)

    end.done(1)
    end.bye()

    assert frames_of(end) == [(Kind.DONE, 1, b''), (Kind.BYE, 0, b'')]


@pytest.mark.parametrize('tasks', [1, 20, 10_000])
def test_what_the_link_itself_sends_keeps_to_the_smallest_cap(tasks: int) -> None:
    pool, recorder = pool_end()
    worker, _ = worker_end()
    pool.limit_bodies(1)
    worker.limit_bodies(1)
    for _ in range(tasks):
        pool.send_task(parcel(b''))
    worker.results.take(100)

    for ident in pool.owed:
        worker.done(ident)
    pool.receive_data(worker.data_to_send())
    pool.data_to_send()
    pool.give_credit(100, 1)
    worker.receive_data(pool.data_to_send())

    assert recorder.total('on_done', 2) == tasks + 1
    assert worker.results.used == 0


# Runs


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=20) | st.just(bytes(OWN_BODY // 3)) | st.just(bytes(OWN_BODY)), max_size=40),
    st.lists(st.integers(1, 1000), min_size=1),
)
def test_tasks_arrive_one_by_one_however_they_were_sent(messages: list[bytes], cuts: list[int]) -> None:
    pool, _ = pool_end()
    worker, recorder = worker_end()
    first = pool._last_id + 1

    for message in messages:
        pool.send_task(parcel(message))
    data = all_of(pool)
    sizes = [len(body) for _, _, body in Parser().feed(data)]
    while data:
        worker.receive_data(data[: cuts[0]])
        data = data[cuts[0] :]
        cuts = cuts[1:] or [len(data)]

    assert [bytes(message) for _, message in recorder.inbox] == messages
    assert {ident for ident, _ in recorder.inbox} <= set(range(first, first + len(messages)))
    alone = [len(message) for message in messages]
    assert all(size <= OWN_BODY for size in sizes if size not in alone)


def test_what_is_written_at_once_is_bounded_but_for_one_large_message() -> None:
    messages = [bytes(600_000), bytes(600_000), b'small', bytes(5_000_000), *(bytes(1000) for _ in range(3000))]
    pool, _ = pool_end()
    for message in messages:
        pool.send_task(parcel(message))

    writes = list(iter(pool.data_to_send, b''))

    assert [body for _, _, body in Parser().feed(writes[0])] == messages[:2]
    assert sum(len(write) > 2 << 20 for write in writes) == 1
    assert len(b''.join(writes)) > sum(map(len, messages))
    assert not pool.urgent


@pytest.mark.parametrize(
    'body',
    [b'', b'123', run(b'ab')[:-1], run(b'ab') + b'x', run(b'a', b'b')[:9], pickle.dumps(b'ab'), pickle.dumps([print])],
)
@pytest.mark.parametrize('make', [pool_end, worker_end])
def test_a_run_that_is_not_what_it_says_is_an_error(make: Any, body: bytes) -> None:
    end, recorder = make()

    with pytest.raises(ProtocolError, match='run of messages'):
        end.receive_data(frame(RUN | (Kind.RESULT if make is pool_end else Kind.TASK), 2, body))

    assert not recorder.inbox


def test_what_is_sent_between_tasks_stays_between_them() -> None:
    end, _ = pool_end()

    end.send_task(parcel(b'a'))
    end.send_task(parcel(b'b'))
    end.cancel()
    end.send_task(parcel(b'c'))

    assert frames_of(end) == [
        (Kind.TASK | RUN, 3, run(b'a', b'b')), (Kind.CANCEL, 0, b''), (Kind.TASK, 5, b'c')
    ]  # fmt: skip


# Definitions


@pytest.mark.parametrize('send', ['task', 'result', 'failure'])
def test_a_definition_travels_once_ahead_of_its_first_use(send: str) -> None:
    end, one = _sender(send)

    one((DEFINITION,))
    one((DEFINITION,))

    kinds = [kind for kind, _, _ in frames_of(end)]
    assert kinds[0] == Kind.DEFINE and Kind.DEFINE not in kinds[1:] != []


@pytest.mark.parametrize('send', ['task', 'result', 'failure'])
def test_a_definition_that_came_from_the_other_side_is_not_sent_back(send: str) -> None:
    end, one = _sender(send)
    end.receive_data(frame(Kind.DEFINE, 0, b'definition'))

    one((Definition(('sender', 1), b'definition', ()),))

    assert len(frames_of(end)) == 1


def _sender(what: str) -> tuple[Any, Any]:
    if what == 'task':
        pool, _ = pool_end()
        return pool, lambda needs: pool.send_task(parcel(b'task', needs=needs))
    worker, _ = worker_end()
    if what == 'result':
        return worker, lambda needs: worker.send_result(b'result', needs)
    return worker, lambda needs: worker.failed(1, b'why', needs)


# Hostile bytes

garbage = st.one_of(
    st.binary(max_size=60),
    st.builds(
        frame,
        st.sampled_from(sorted(Kind)) | st.integers(0, 255),
        st.integers(0, 4) | st.integers(0, 2**64 - 1),
        st.binary(max_size=20) | st.lists(st.integers(0, 4), max_size=4).map(lambda numbers: ids(*numbers)),
    ),
)


@pytest.mark.parametrize('make', [pool_end, worker_end])
@settings(deadline=None)
@given(state=st.sampled_from(STATES), pieces=st.lists(garbage, max_size=8))
def test_hostile_bytes_are_a_protocol_error_and_nothing_else(make: Any, state: State, pieces: list[bytes]) -> None:
    end, _ = make(state)
    end.limit_bodies(64)

    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            end.receive_data(piece)


one_answer = st.sampled_from([Kind.FAILED, Kind.DONE])
answers = st.builds(frame, one_answer, st.integers(0, 4), st.sampled_from([b'', NONSENSE])) | st.builds(
    lambda numbers: frame(Kind.DONE, 0, ids(*numbers)), st.lists(st.integers(0, 4), max_size=3)
)


@settings(deadline=None)
@given(pieces=st.lists(answers, max_size=5))
def test_wrong_answers_make_no_task_vanish(pieces: list[bytes]) -> None:
    end, recorder = pool_end()
    for _ in range(2):
        end.send_task(parcel(b'task'))

    with contextlib.suppress(ProtocolError):
        end.receive_data(b''.join(pieces))

    failed = sum(call[0] == 'on_failed' for call in recorder.calls)
    assert recorder.total('on_done', 2) + failed + len(end.owed) == 3


# The window


@settings(deadline=None)
@given(st.lists(st.integers(0, 150)))
def test_a_window_admits_up_to_its_limits_and_one_larger_message_alone(sizes: list[int]) -> None:
    window = Window(4, 100)

    for size in sizes:
        free = window.used < 4 and window.bytes + size <= 100
        alone = window.used == 0
        assert window.admits(size) == (free or alone)
        assert window.try_take(size) == (free or alone)

    assert window.used <= 4
    assert window.bytes <= 100 or window.used == 1


def test_a_window_takes_nothing_back_that_nobody_holds() -> None:
    window = Window(4, 100)
    window.take(10)

    with pytest.raises(ValueError, match='nobody holds'):
        window.give(10, 2)
    with pytest.raises(ValueError, match='nobody holds'):
        window.give(11, 1)

    window.give(10, 1)
    assert (window.used, window.bytes) == (0, 0)


# What a worker asks


def test_an_answer_comes_to_whoever_asked_once() -> None:
    end, _ = worker_end()
    caller = Recorder()
    ident = end.ask(caller, b'head', b'data', (DEFINITION,))
    pool, recorder = pool_end()

    pool.receive_data(end.data_to_send())
    assert [call[0] for call in recorder.calls] == ['on_define', 'on_ask']
    assert recorder.calls[1][1:] == (ident, b'head', b'data')

    pool.answer(ident, Kind.ANSWER, b'answer', ())
    answer = pool.data_to_send()
    end.receive_data(answer)
    assert caller.calls == [('on_value', b'answer')]
    with pytest.raises(ProtocolError, match='not asked'):
        end.receive_data(answer)


@pytest.mark.parametrize('bad', [frame(Kind.ASK, ASKED | 1, b'abc'), frame(Kind.ASK, 1, bytes(4))])
def test_an_ask_has_a_head_and_an_id_of_its_row(bad: bytes) -> None:
    end, recorder = pool_end()

    with pytest.raises(ProtocolError, match='no head'):
        end.receive_data(bad)

    assert not recorder.calls


@pytest.mark.parametrize('make', [pool_end, worker_end])
def test_items_of_what_has_just_been_answered_are_let_go(make: Any) -> None:
    end, recorder = make()

    end.receive_data(frame(Kind.ITEM, ASKED | 5) + frame(Kind.MORE, ASKED | 5) + frame(Kind.END, ASKED | 5))

    assert not recorder.calls


def test_a_relay_is_answered_like_a_call_and_takes_no_part_in_the_books() -> None:
    end, recorder = pool_end()
    callers = Recorder(), Recorder()
    idents = [end.relay(caller, b'data', ()) for caller in callers]

    end.receive_data(frame(Kind.VALUE, idents[0], b'value') + frame(Kind.FAILED, idents[1], b'why'))

    assert [caller.calls for caller in callers] == [[('on_value', b'value')], [('on_failure', b'why')]]
    assert not recorder.calls and set(end.owed) | set(end.calls) == {1, 2}
    with pytest.raises(ProtocolError, match='not owed'):
        end.receive_data(frame(Kind.VALUE, idents[0], b'value'))
