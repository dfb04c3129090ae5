'''Both ends of a link, joined in memory, in any order of what pool, worker and transport may do.'''

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from parcels import Named, parcel

from looppool.codec import Definition, Key
from looppool.frames import ALONE, RUN, Frame, Parser, cut_run, load_alone
from looppool.kinds import Kind, State
from looppool.plain import size_of
from looppool.protocol import PoolEnd, WorkerEnd
from looppool.window import Window

LIMIT, MAX_BYTES = 3, 80  # of tasks and of results
DEFINITIONS = tuple(Definition(('script', number), b'definition %d' % number, ()) for number in range(3))

Needs = tuple[Definition, ...]

LONG = settings(
    deadline=None, max_examples=200, stateful_step_count=60, suppress_health_check=list(HealthCheck)
)

sizes = st.integers(8, 30) | st.just(100)
pieces = st.sampled_from([1, 13, 50, 1000])
some_definitions = st.lists(st.sampled_from(DEFINITIONS), unique=True, max_size=2).map(tuple)


class Wire:
    '''What one side has written and the other has not read yet; it sees the frames that were delivered.'''

    def __init__(self, source: 'Side', target: 'Side') -> None:
        self.source = source
        self.target = target
        self.bytes = b''
        self.delivered: list[Frame] = []
        self._parser = Parser()

    def carry(self, count: int) -> None:
        if self.source.woken:
            self.source.woken = False
            self.bytes += self.source.end.data_to_send()
        data, self.bytes = self.bytes[:count], self.bytes[count:]
        self.delivered += self._parser.feed(data)
        self.target.end.receive_data(data)

    def of_kind(self, kind: int) -> list[Frame]:
        return [frame for frame in self.delivered if frame[0] == kind]

    def messages(self, kind: Kind) -> list[tuple[int, Any]]:
        '''Those of this kind, alone and in runs, with their ids.'''
        found = []
        for each, ident, body in self.delivered:
            ways = {kind: lambda body: [body], kind | RUN: cut_run, kind | ALONE: load_alone}
            if each in ways:
                found += list(enumerate(ways[each](body), ident))
        return found


def failure_of(task: Any) -> bytes:
    return b'failed %a' % task


class Side:
    '''What both sides do: they keep what is handed on, and know the definitions that they have sent or received.'''

    end: PoolEnd | WorkerEnd

    def __init__(self) -> None:
        self.woken = False
        self.inbox: list[tuple[int, Any]] = []
        self.known: set[Key] = set()
        self.received: list[Key] = []
        self.expected: list[Needs] = []
        '''What the messages need that are on their way here.'''

    def wake(self) -> None:
        self.woken = True

    def deliver(self, kind: int, first: int, messages: list[bytes]) -> None:
        for ident, message in enumerate(messages, first):
            assert {definition.key for definition in self.expected.pop(0)} <= self.known
            self.inbox.append((ident, message))

    def on_define(self, body: bytes) -> Key:
        (key,) = [definition.key for definition in DEFINITIONS if definition.body == body]
        assert key not in self.received, 'a definition travelled twice'
        self.received.append(key)
        self.known.add(key)
        return key

    def sends(self, needs: Needs, to: 'Side') -> None:
        self.known.update(definition.key for definition in needs)
        to.expected.append(needs)


class PoolSide(Side):
    '''What a member does with its end: it holds the window of tasks, and takes up results when it likes.'''

    def __init__(self) -> None:
        super().__init__()
        self.results = Window(LIMIT, MAX_BYTES)
        self.end = PoolEnd(self, self.deliver, self.wake, self.results)
        self.tasks = Window(LIMIT, MAX_BYTES)
        self.put: list[Named] = []
        self.done = 0
        self.failed: list[bytes] = []
        self.taken: list[int] = []
        '''Sizes of the results that are taken up and not done.'''
        self.given = 0

    def on_ready(self) -> None:
        assert self.end.state == State.READY

    def on_done(self, size: int, count: int) -> None:
        self.done += count
        self.tasks.give(size, count)

    def understand(self, body: bytes) -> BaseException:
        return RuntimeError(body)

    def on_failed(self, parcel: Named, error: BaseException) -> None:
        assert error.args == (failure_of(parcel.data),)
        self.failed.append(parcel.data)
        self.tasks.give(parcel.size, 1)

    def on_bye(self) -> None:
        assert not self.end.owed

    def on_start_failed(self, body: bytes) -> None:
        raise AssertionError('it did start')

    def take_up(self) -> None:
        _, body = self.inbox.pop(0)
        self.results.take(size_of(body))
        self.taken.append(size_of(body))

    def result_done(self, which: int) -> None:
        size = self.taken.pop(which % len(self.taken))
        self.results.give(size, 1)
        self.end.give_credit(size, 1)
        self.given += 1


class WorkerSide(Side):
    '''What a worker does with its end: it takes tasks up in order, and ends them in any.'''

    def __init__(self) -> None:
        super().__init__()
        self.end = WorkerEnd(self, self.deliver, self.wake)
        self.started = False
        self.open: list[tuple[int, Any]] = []
        self.put = 0
        self.put_bytes = 0
        self.pilled = False

    def on_configure(self, body: bytes) -> None:
        assert body == b'configuration'
        self.end.results = Window(LIMIT, MAX_BYTES)

    def on_start(self, body: bytes) -> None:
        assert body == b'worker' and self.received == [DEFINITIONS[0].key]
        self.started = True

    def on_credit(self) -> None:
        assert self.end.results.used < LIMIT

    def on_pill(self) -> None:
        self.pilled = True

    def on_cancel(self) -> None:
        while self.inbox:
            self.take_up()
        while self.open:
            self.fail(0, ())

    def take_up(self) -> None:
        ident, data = self.inbox.pop(0)
        self.open.append((ident, data))

    def done(self, which: int) -> None:
        ident, _ = self.open.pop(which % len(self.open))
        self.end.done(ident)

    def fail(self, which: int, needs: Needs) -> None:
        ident, data = self.open.pop(which % len(self.open))
        self.known.update(definition.key for definition in needs)
        self.end.failed(ident, failure_of(data), needs)

    def bye(self) -> None:
        self.pilled = False
        self.end.bye()


class Joined(RuleBasedStateMachine):
    '''Two sides, and the wires between them.'''

    def __init__(self, pool: Any, worker: Any) -> None:
        super().__init__()
        self.pool, self.worker = pool, worker
        self.down = Wire(pool, worker)
        self.up = Wire(worker, pool)

    @property
    def at_its_end(self) -> bool:
        '''Whether it is all right that there is nothing to do.'''
        raise NotImplementedError

    def steps(self, which: int, count: int) -> dict[str, Callable[[], None]]:
        '''What can be done now without anything being asked for.'''
        raise NotImplementedError

    @precondition(lambda self: self.steps(0, 1) or self.at_its_end)
    @rule(step=st.integers(0, 30), which=st.integers(0, LIMIT), count=pieces)
    def go_on(self, step: int, which: int, count: int) -> None:
        '''Carry some bytes, take something up, or end it. One rule for all: without any of these, all stands still.'''
        steps = self.steps(which, count)
        if steps:
            name = sorted(steps)[step % len(steps)]
            note(name)
            steps[name]()


class Link(Joined):
    def __init__(self) -> None:
        super().__init__(PoolSide(), WorkerSide())

    @initialize(results_at_the_start=st.integers(0, 2))
    def start(self, results_at_the_start: int) -> None:
        self.pool.known.add(DEFINITIONS[0].key)
        self.pool.end.start(b'configuration', b'worker', DEFINITIONS[:1])
        self.down.carry(1000)
        for _ in range(results_at_the_start):
            self.put_a_result(8, (), False)
        self.worker.end.ready()
        self.up.carry(1000)

    # What may happen

    @precondition(lambda self: self.pool.end.state == State.READY and self.pool.tasks.admits(30))
    @rule(size=sizes, needs=some_definitions, plain=st.booleans())
    def put(self, size: int, needs: Needs, plain: bool) -> None:
        number = len(self.pool.put)
        task = parcel(number if plain else b'%08d' % number + bytes(size - 8), needs=needs)
        if self.pool.tasks.try_take(task.size):
            self.pool.sends(needs, self.worker)
            self.pool.put.append(task)
            assert self.pool.end.send_task(task) == len(self.pool.put)

    @precondition(lambda self: self.worker.end.state != State.ENDED and self.worker.end.results.admits(30))
    @rule(size=sizes, needs=some_definitions, plain=st.booleans())
    def put_a_result(self, size: int, needs: Needs, plain: bool) -> None:
        result = 'a' * size if plain else bytes(size)
        if self.worker.end.results.try_take(size_of(result)):
            self.worker.sends(needs, self.pool)
            self.worker.end.send_result(result, needs)
            self.worker.put += 1
            self.worker.put_bytes += size_of(result)

    @property
    def at_its_end(self) -> bool:
        return self.worker.end.state == State.ENDED

    @precondition(lambda self: self.pool.end.state == State.READY and len(self.pool.put) > 5)
    @rule(last=st.booleans())
    def stop(self, last: bool) -> None:
        self.pool.end.cancel()
        if last:
            self.pool.end.pill()
            self.pool.end.cancel()

    def steps(self, which: int, count: int) -> dict[str, Callable[[], None]]:
        '''What can be done now without anything being put.'''
        pool, worker = self.pool, self.worker
        able: dict[str, tuple[object, Callable[[], None]]] = {
            'carry to the worker': (pool.woken or self.down.bytes, lambda: self.down.carry(count)),
            'carry to the pool': (worker.woken or self.up.bytes, lambda: self.up.carry(count)),
            'take up a task': (worker.inbox, worker.take_up),
            'task done': (worker.open, lambda: worker.done(which)),
            'task failed': (worker.open, lambda: worker.fail(which, DEFINITIONS[:which])),
            'bye': (worker.pilled and not worker.inbox and not worker.open, worker.bye),
            'take up a result': (pool.inbox, pool.take_up),
            'result done': (pool.taken, lambda: pool.result_done(which)),
        }
        return {name: step for name, (possible, step) in able.items() if possible}

    # What holds at any time

    @invariant()
    def promises_hold(self) -> None:
        self.every_task_is_owed_until_its_one_answer()
        self.the_window_of_tasks_holds_what_is_owed()
        self.credits_held_in_flight_and_owed_make_the_limit()
        self.tasks_arrive_in_the_order_put()
        self.who_has_something_to_send_has_said_so()

    def every_task_is_owed_until_its_one_answer(self) -> None:
        answered = [ident for _, ident, _ in self.up.of_kind(Kind.FAILED)]
        for _, ident, body in self.up.of_kind(Kind.DONE):
            answered += [ident] if ident else memoryview(body).cast('Q').tolist()

        assert len(answered) == len(set(answered)) == self.pool.done + len(self.pool.failed)
        assert set(self.pool.end.owed) == set(range(1, len(self.pool.put) + 1)) - set(answered)

    def the_window_of_tasks_holds_what_is_owed(self) -> None:
        owed = self.pool.end.owed.values()

        assert self.pool.tasks.used == len(owed) <= LIMIT
        assert self.pool.tasks.bytes == sum(parcel.size for parcel in owed)

    def credits_held_in_flight_and_owed_make_the_limit(self) -> None:
        '''A permit is free at the worker, on its way with a result, at the pool, or on its way back with a credit.'''
        arrived = self.up.messages(Kind.RESULT)
        back = self.down.of_kind(Kind.CREDIT)
        free = LIMIT - self.worker.end.results.used
        way_up = self.worker.put - len(arrived)
        at_the_pool = len(self.pool.inbox) + self.pool.results.used
        way_down = self.pool.given - sum(count for _, count, _ in back)
        assert free >= 0
        assert free + way_up + at_the_pool + way_down == LIMIT

        bytes_out = self.worker.put_bytes - sum(int.from_bytes(body, 'little') for _, _, body in back)
        assert self.worker.end.results.bytes == bytes_out

    def tasks_arrive_in_the_order_put(self) -> None:
        delivered = self.down.messages(Kind.TASK)

        sent = enumerate(self.pool.put[: len(delivered)], 1)
        assert delivered == [(ident, task.data) for ident, task in sent]

    def who_has_something_to_send_has_said_so(self) -> None:
        assert self.pool.woken or not self.pool.end.data_to_send()
        assert self.worker.woken or not self.worker.end.data_to_send()

    # What comes in the end

    def teardown(self) -> None:
        '''Stop, and let everybody do what is left to do: then nothing is left, and both know that.'''
        if self.pool.end.state == State.READY:
            self.pool.end.pill()
        while steps := self.steps(0, 7):
            steps.popitem()[1]()
            self.promises_hold()
        assert not self.pool.end.owed and self.pool.done + len(self.pool.failed) == len(self.pool.put)
        for window in (self.pool.tasks, self.pool.results, self.worker.end.results):
            assert (window.used, window.bytes) == (0, 0)
        assert self.pool.end.state == self.worker.end.state == State.ENDED


@pytest.mark.long
@pytest.mark.timeout(360)  # a failure takes Hypothesis up to five minutes to make small
def test_any_order_of_events_keeps_the_promises_of_a_link() -> None:
    run_state_machine_as_test(Link, settings=LONG)
