'''One link's state, without any I/O: bytes in → handler calls, calls → bytes out.

1. A link has two ends, `PoolEnd` and `WorkerEnd`. Both have the same verbs: `receive_data` takes bytes from the
   transport, `data_to_send` gives the bytes to write, and `wake` is called when there is something to write again;
   the pool's end calls `wake_later` for credit, which is in no hurry.
2. A frame that its sender may not send in the present state is a `ProtocolError`; `_LEGAL` is the whole table.
3. Task ids start at 1 and increase by one. Each task ends once: DONE (ids in batches) or FAILED. An id answered twice
   or never given is a `ProtocolError`.
4. A `Window` bounds what is under way in each direction, in messages and in bytes. The pool's end of the result window
   only counts; the worker's end holds the permits and gets them back by CREDIT, in batches.
5. A definition travels once per link, ahead of the first message that needs it.
6. Credit, pill and cancel are handled when they are received; tasks and results are handed on through `deliver`, in
   order, to be taken up when their receiver has time. Nobody ever stops reading.
7. Tasks, or results, that are sent one after another leave as a *run* in one frame: a header for each would cost more
   than all else that the link does for it.
'''

import struct
from collections.abc import Callable
from enum import IntEnum
from itertools import accumulate, pairwise
from typing import Final, NamedTuple, Protocol

from .codec import Definition, Key
from .errors import ProtocolError
from .frames import MAX_BODY, Parser, pack_header

__all__ = ['MAX_MESSAGE', 'Kind', 'Parcel', 'PoolEnd', 'PoolHandler', 'Terms', 'Window', 'WorkerEnd', 'WorkerHandler']


class Kind(IntEnum):
    '''What a frame is. The pool sends the first group, the worker the last, both the middle one.'''

    CONFIGURE = 1
    '''How to set up the process, before anything of the user is imported.'''
    START = 2
    '''The worker's class and options.'''
    TASK = 3
    '''id: that of the first task; body: a run of tasks, whose ids follow on each other.'''
    CREDIT = 4
    '''id: how many results are done; body: how many bytes they took.'''
    PILL = 5
    CANCEL = 6
    DEFINE = 16
    READY = 32
    START_FAILED = 33
    RESULT = 34
    '''body: a run of results.'''
    DONE = 35
    '''body: the ids of the tasks that are done.'''
    FAILED = 36
    BYE = 37
    '''The worker has finalised and sends nothing more.'''


class State(IntEnum):
    '''How far a link has come; `_LEGAL` says what may be received in which state.'''

    NEW = 0
    STARTING = 1
    READY = 2
    STOPPING = 3
    ENDED = 4


_LEGAL: Final[dict[Kind, tuple[State, ...]]] = {
    Kind.CONFIGURE: (State.NEW,),
    Kind.START: (State.STARTING,),
    Kind.TASK: (State.READY,),
    # These two may cross the worker's BYE.
    Kind.CREDIT: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.CANCEL: (State.READY, State.STOPPING, State.ENDED),
    Kind.PILL: (State.READY,),
    Kind.DEFINE: (State.STARTING, State.READY, State.STOPPING),
    Kind.READY: (State.STARTING,),
    Kind.START_FAILED: (State.STARTING,),
    Kind.RESULT: (State.STARTING, State.READY, State.STOPPING),
    Kind.DONE: (State.READY, State.STOPPING),
    Kind.FAILED: (State.READY, State.STOPPING),
    Kind.BYE: (State.STOPPING,),
}

# Plain ints pack faster than members of an IntEnum.
_RESULT: Final = int(Kind.RESULT)
_TASK: Final = int(Kind.TASK)
OWN_BODY: Final = 64 * 1024
'''What the link's own frames may take in any case, in bytes: lists of ids, errors.'''
_MOST_IDS: Final = OWN_BODY // 8
_BYTES: Final = struct.Struct('<Q')
_COUNT: Final = struct.Struct('<I')
_RUN_HEAD: Final = 2 * _COUNT.size
'''What a run of one message takes on top of it, in bytes.'''
_MOST_OF_RUN: Final = OWN_BODY - _RUN_HEAD
'''What a run of several messages may take, in bytes: with more, its receiver would wait too long for the first.'''
MAX_MESSAGE: Final = MAX_BODY - _RUN_HEAD
'''The largest message, in bytes.'''


class Window:
    '''A bounded semaphore that counts messages and bytes. One message larger than the window passes alone.'''

    __slots__ = ('bytes', 'limit', 'max_bytes', 'used')

    def __init__(self, limit: int, max_bytes: int) -> None:
        self.limit = limit
        self.max_bytes = max_bytes
        self.used = 0
        self.bytes = 0

    def admits(self, size: int) -> bool:
        return self.used < self.limit and (self.bytes + size <= self.max_bytes or not self.used)

    def try_take(self, size: int) -> bool:
        '''Take a permit if there is one for a message of `size` bytes.'''
        if self.used >= self.limit or (self.bytes + size > self.max_bytes and self.used):
            return False
        self.used += 1
        self.bytes += size
        return True

    def take(self, size: int) -> None:
        '''Take a permit, whether there is one or not.'''
        self.used += 1
        self.bytes += size

    def give(self, size: int, count: int) -> None:
        '''Give back the permits of `count` messages of `size` bytes in all.'''
        if count > self.used or size > self.bytes:
            raise ValueError('a permit was given back that nobody holds')
        self.used -= count
        self.bytes -= size


class Terms(NamedTuple):
    '''What has to be known of a task to send it, and to send it again.'''

    needs: tuple[Definition, ...] = ()
    number: int | None = None
    '''The worker that it is addressed to.'''
    retain: object = None
    '''The key of a retained broadcast.'''
    retries: int = 0
    '''How often it may still be run again after it may have run.'''


Parcel = tuple[bytes, Terms]
'''A pickled task on its way. A plain tuple, as one is made for every message; most share their terms.'''


def _pack_run(kind: int, ident: int, run: list[bytes]) -> list[bytes]:
    sizes = list(map(len, run))
    head = struct.pack(f'<I{len(run)}I', len(run), *sizes)
    return [pack_header(len(head) + sum(sizes), kind, ident), head, *run]


def _cut_run(body: bytes) -> list[bytes]:
    '''The messages of a run.'''
    try:
        (count,) = _COUNT.unpack_from(body)
        if count == 1 and len(body) > OWN_BODY:
            # Whoever unpickles it can do so from where it is.
            return [memoryview(body)[_RUN_HEAD:]]  # type: ignore[list-item]
        sizes = struct.unpack_from(f'<{count}I', body, _COUNT.size)
    except struct.error as error:
        raise ProtocolError(f'a run of messages is cut: {error}') from None
    bounds = list(accumulate(sizes, initial=(count + 1) * _COUNT.size))
    if bounds[-1] != len(body):
        raise ProtocolError(f'a run of messages takes {len(body)} bytes, but says {bounds[-1]}')
    return [body[start:end] for start, end in pairwise(bounds)]


class PoolHandler(Protocol):
    '''What a `PoolEnd` calls.'''

    def on_ready(self) -> None: ...
    def on_start_failed(self, body: bytes) -> None: ...
    def on_define(self, body: bytes) -> Key: ...
    def on_done(self, size: int, count: int) -> None: ...
    def understand(self, body: bytes) -> BaseException: ...
    def on_failed(self, parcel: Parcel, error: BaseException) -> None: ...
    def on_bye(self) -> None: ...


class WorkerHandler(Protocol):
    '''What a `WorkerEnd` calls.'''

    def on_configure(self, body: bytes) -> None: ...
    def on_define(self, body: bytes) -> Key: ...
    def on_start(self, body: bytes) -> None: ...
    def on_credit(self) -> None: ...
    def on_pill(self) -> None: ...
    def on_cancel(self) -> None: ...


class _End:
    '''What both ends have in common.'''

    _hot: Kind
    '''The kind that is handed on through `deliver`.'''

    def __init__(self, deliver: Callable[[int, list[bytes]], None], wake: Callable[[], None]) -> None:
        self.max_body = self.max_own_body = MAX_MESSAGE
        self._deliver = deliver
        self._wake = wake
        self._parser = Parser()
        self._out: list[bytes] = []
        self._run: list[bytes] = []
        '''Messages that leave in one frame, behind what is in `_out`.'''
        self._run_kind = self._run_ident = 0
        self._known: set[Key] = set()
        self._table: dict[int, Callable[[int, bytes], None]] = {}
        self._enter(State.NEW)

    def _enter(self, state: State) -> None:
        self.state = state
        # No frame has a negative kind: nothing is handed on where the table does not allow it.
        self._handed_on = int(self._hot) if state in _LEGAL[self._hot] else -1

    def limit_bodies(self, max_body: int) -> None:
        '''Set the cap on a message, for both directions, in bytes.'''
        self.max_body = max_body
        self.max_own_body = max(max_body, OWN_BODY)
        self._parser.max_body = self.max_own_body + _RUN_HEAD

    def receive_data(self, data: bytes) -> None:
        '''Take bytes from the transport; raise `ProtocolError` if they are not what they have to be.'''
        for kind, ident, body in self._parser.feed(data):
            if kind == self._handed_on:
                self._deliver(ident, _cut_run(body))
            else:
                self._control(kind, ident, body)
        if self._parser.error:
            raise self._parser.error

    def _control(self, kind: int, ident: int, body: bytes) -> None:
        handle = self._table.get(kind)
        if handle is None or self.state not in _LEGAL[Kind(kind)]:
            raise ProtocolError(f'a frame of kind {kind} came in state {self.state.name}')
        handle(ident, body)

    def data_to_send(self) -> bytes:
        '''The bytes to write now; they count as sent.'''
        self._end_run()
        self._send_owing()
        data = b''.join(self._out)
        self._out.clear()
        return data

    @property
    def urgent(self) -> bool:
        '''Whether there is something to send that somebody may be waiting for.'''
        return bool(self._out or self._run)

    def _send_owing(self) -> None:
        '''Send what was held back to leave in one frame.'''
        raise NotImplementedError

    def _send(self, kind: int, ident: int = 0, body: bytes = b'') -> None:
        self._end_run()
        if not self._out:
            self._wake()
        self._append(kind, ident, body)

    def _begin_run(self, kind: int, ident: int) -> None:
        self._end_run()
        if not self._out:
            self._wake()
        self._run_kind, self._run_ident = kind, ident

    def _end_run(self) -> None:
        '''Pack what is in the run: into one frame, or into as many as it takes to keep them small.'''
        run, ident, total, start = self._run, self._run_ident, 0, 0
        if not run:
            return
        if sum(map(len, run)) + _COUNT.size * len(run) > _MOST_OF_RUN:
            for index, message in enumerate(run):
                size = _COUNT.size + len(message)
                if total and total + size > _MOST_OF_RUN:
                    self._out += _pack_run(self._run_kind, ident + start, run[start:index])
                    start, total = index, 0
                total += size
        self._out += _pack_run(self._run_kind, ident + start, run[start:])
        run.clear()
        self._run_kind = 0

    def _append(self, kind: int, ident: int, body: bytes) -> None:
        self._out += (pack_header(len(body), kind, ident), body)

    def _send_definitions(self, needs: tuple[Definition, ...]) -> None:
        for definition in needs:
            if definition.key not in self._known:
                self._known.add(definition.key)
                self._send(Kind.DEFINE, 0, definition.body)


class PoolEnd(_End):
    '''The pool's end of a link.

    :ivar owed: the tasks that were sent and have not ended, by id, in the order sent.
    :ivar results: the results that were taken up and are not done.
    '''

    _hot = Kind.RESULT

    def __init__(
        self,
        handler: PoolHandler,
        deliver: Callable[[int, list[bytes]], None],
        wake: Callable[[], None],
        results: Window,
        wake_later: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(deliver, wake)
        self._wake_later = wake_later or wake
        self.owed: dict[int, Parcel] = {}
        self.results = results
        self._handler = handler
        self._last_id = 0
        self._credits = 0
        self._credit_bytes = 0
        self._table = {
            Kind.DEFINE: lambda _, body: self._known.add(handler.on_define(body)),
            Kind.READY: self._on_ready,
            Kind.START_FAILED: lambda _, body: handler.on_start_failed(body),
            Kind.DONE: self._on_done,
            Kind.FAILED: self._on_failed,
            Kind.BYE: self._on_bye,
        }

    def start(self, configuration: bytes, worker: bytes, needs: tuple[Definition, ...]) -> None:
        '''Send all that the worker needs to become ready.'''
        self._enter(State.STARTING)
        self._send(Kind.CONFIGURE, 0, configuration)
        self._send_definitions(needs)
        self._send(Kind.START, 0, worker)

    def send_task(self, parcel: Parcel) -> int:
        '''Send a task; return its id. The caller holds its permit.'''
        data, terms = parcel
        if terms.needs:
            self._send_definitions(terms.needs)
        self._last_id = ident = self._last_id + 1
        self.owed[ident] = parcel
        if self._run_kind != _TASK:
            self._begin_run(_TASK, ident)
        self._run.append(data)
        return ident

    def pill(self) -> None:
        '''Send the last message: finish what was accepted, then exit.'''
        self._send(Kind.PILL)
        self._enter(State.STOPPING)

    def cancel(self) -> None:
        '''Cancel every task of the worker.'''
        self._send(Kind.CANCEL)

    def give_credit(self, size: int, count: int) -> None:
        '''`count` results of `size` bytes in all are done: let the worker put as many again.'''
        if not self._credits:
            # A receiver of results often puts a task next: the credit travels with it.
            self._wake_later()
        self._credits += count
        self._credit_bytes += size

    def _send_owing(self) -> None:
        if self._credits:
            self._append(Kind.CREDIT, self._credits, _BYTES.pack(self._credit_bytes))
            self._credits = self._credit_bytes = 0

    def _on_ready(self, _ident: int, _body: bytes) -> None:
        self._enter(State.READY)
        self._handler.on_ready()

    def _on_done(self, _ident: int, body: bytes) -> None:
        count, rest = divmod(len(body), 8)
        if rest:
            raise ProtocolError(f'a list of ids takes {len(body)} bytes, no multiple of 8')
        owed, before, size = self.owed, len(self.owed), 0
        try:
            for ident in struct.unpack(f'<{count}Q', body):
                size += len(owed.pop(ident)[0])
        except KeyError as error:
            raise ProtocolError(f'task {error} was answered, but it is not owed') from None
        finally:
            self._handler.on_done(size, before - len(owed))

    def _on_failed(self, ident: int, body: bytes) -> None:
        parcel = self.owed.get(ident)
        if parcel is None:
            raise ProtocolError(f'task {ident} was answered, but it is not owed')
        # Still owed until the error is understood.
        error = self._handler.understand(body)
        del self.owed[ident]
        self._handler.on_failed(parcel, error)

    def _on_bye(self, _ident: int, _body: bytes) -> None:
        self._enter(State.ENDED)
        self._handler.on_bye()


class WorkerEnd(_End):
    '''The worker's end of a link.

    :ivar results: the window of results; its permits are held from `send_result` to the pool's credit.
    '''

    _hot = Kind.TASK

    def __init__(
        self, handler: WorkerHandler, deliver: Callable[[int, list[bytes]], None], wake: Callable[[], None]
    ) -> None:
        super().__init__(deliver, wake)
        self.results = Window(1, 1)
        self._handler = handler
        self._done: list[int] = []
        self._table = {
            Kind.CONFIGURE: self._on_configure,
            Kind.DEFINE: lambda _, body: self._known.add(handler.on_define(body)),
            Kind.START: lambda _, body: handler.on_start(body),
            Kind.CREDIT: self._on_credit,
            Kind.PILL: self._on_pill,
            Kind.CANCEL: lambda _, body: handler.on_cancel(),
        }

    def ready(self) -> None:
        self._send(Kind.READY)
        self._enter(State.READY)

    def start_failed(self, body: bytes, needs: tuple[Definition, ...]) -> None:
        self._send_definitions(needs)
        self._send(Kind.START_FAILED, 0, body)

    def send_result(self, body: bytes, needs: tuple[Definition, ...]) -> None:
        '''Send a result. The caller has taken its permit and checked its size.'''
        if needs:
            self._send_definitions(needs)
        if self._run_kind != _RESULT:
            self._begin_run(_RESULT, 0)
        self._run.append(body)

    def done(self, ident: int) -> None:
        '''The task is done; its id leaves with the next write, behind the results that were put before.'''
        if not self._done:
            self._wake()
        self._done.append(ident)

    def failed(self, ident: int, body: bytes, needs: tuple[Definition, ...]) -> None:
        self._send_definitions(needs)
        self._send(Kind.FAILED, ident, body)

    def bye(self) -> None:
        self._end_run()
        self._send_owing()
        self._send(Kind.BYE)
        self._enter(State.ENDED)

    @property
    def urgent(self) -> bool:
        return bool(self._out or self._run or self._done)

    def _send_owing(self) -> None:
        for start in range(0, len(self._done), _MOST_IDS):
            ids = self._done[start : start + _MOST_IDS]
            self._append(Kind.DONE, 0, struct.pack(f'<{len(ids)}Q', *ids))
        self._done.clear()

    def _on_configure(self, _ident: int, body: bytes) -> None:
        self._enter(State.STARTING)
        self._handler.on_configure(body)

    def _on_credit(self, count: int, body: bytes) -> None:
        try:
            (size,) = _BYTES.unpack(body)
            self.results.give(size, count)
        except (ValueError, struct.error) as error:
            raise ProtocolError(f'bad credit: {error}') from None
        self._handler.on_credit()

    def _on_pill(self, _ident: int, _body: bytes) -> None:
        self._enter(State.STOPPING)
        self._handler.on_pill()
