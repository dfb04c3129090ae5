'''One link's state, without any I/O: bytes in → handler calls, calls → bytes out.

1. A link has two ends, `PoolEnd` and `WorkerEnd`. Both have the same verbs: `receive_data` takes bytes from the
   transport, `data_to_send` gives the bytes to write, and `wake` is called when there is something to write again;
   the pool's end calls `wake_later` for credit, which is in no hurry.
2. A frame that its sender may not send in the present state is a `ProtocolError`; `kinds.LEGAL` is the whole table.
3. Task ids start at 1 and increase by one. Each task ends once: DONE (ids in batches) or FAILED. An id answered twice
   or never given is a `ProtocolError`.
4. A `Window` bounds what is under way in each direction, in messages and in bytes. The pool's end of the result window
   only counts; the worker's end holds the permits and gets them back by CREDIT, in batches.
5. A definition travels once per link, ahead of the first message that needs it.
6. Credit, pill and cancel are handled when they are received; tasks and results are handed on through `deliver`, in
   order, to be taken up when their receiver has time. Nobody ever stops reading.
7. Tasks, results or items that are sent one after another leave as a *run* in one frame: a header for each would cost
   more than all else that the link does for it.
8. A call is a task that is answered: VALUE or FAILED. While it is open, items may go both ways as it likes, against
   credit (MORE) of their receiver, up to an END.
9. What is large lies in shared memory; see `lending`.
10. A worker may ask as well (ASK): for what the pool knows, or to hand a call on to another worker (RELAY), which takes
   no permit there, so that two who wait for each other's answers get them.
'''

import struct
from collections.abc import Callable
from itertools import accumulate
from typing import Any, Final, NamedTuple, Protocol

from .codec import Definition, Key
from .errors import ProtocolError
from .frames import (
    ALONE,
    LARGE,
    MAX_BODY,
    MOST_IN_RUN,
    WRITE_SIZE,
    Frame,
    Parser,
    cut_run,
    load_alone,
    pack_header,
    pack_runs,
)
from .kinds import ASKED, LEGAL, RELAYED, Kind, State
from .lending import MOST_IDS, OWN_BODY, Lending, Shortage, unpacked_ids
from .payload import Body, Payload, cut, pickled, prefixed
from .plain import PLAIN
from .window import Window

__all__ = [
    'HEAD_SIZE', 'Caller', 'Exchange', 'Parcel', 'PoolEnd', 'PoolHandler', 'Terms', 'WorkerEnd',
    'WorkerHandler',
]  # fmt: skip


# Plain ints pack faster than members of an IntEnum.
_RESULT: Final = int(Kind.RESULT)
_TASK: Final = int(Kind.TASK)
_CALL: Final = int(Kind.CALL)
_RELAY: Final = int(Kind.RELAY)
_ITEM: Final = int(Kind.ITEM)
_VALUE: Final = int(Kind.VALUE)
_DONE: Final = int(Kind.DONE)
_CREDIT: Final = int(Kind.CREDIT)
_MAY_BE_LARGE: Final = frozenset({_ITEM, _VALUE, *map(int, (Kind.ASK, Kind.ANSWER, Kind.START, Kind.DEFINE))})
'''Of what is not handed on through `deliver`.'''
_BYTES: Final = struct.Struct('<Q')
_MORE: Final = struct.Struct('<IQ')
_HEAD: Final = struct.Struct('<I')
HEAD_SIZE: Final = _HEAD.size
'''What comes on top of the head of what is asked, in bytes.'''


class Terms(NamedTuple):
    '''What has to be known of a task to send it, and to send it again.'''

    needs: tuple[Definition, ...] = ()
    number: int | str | None = None
    '''The worker that it is addressed to.'''
    retain: object = None
    '''The key of a retained broadcast.'''
    retries: int = 0
    '''How often it may still be run again after it may have run.'''


class Exchange(Protocol):
    '''One side of a call's items, as the end of a link knows it.'''

    def on_items(self, items: list[Body]) -> None: ...
    def on_more(self, count: int, size: int) -> None: ...
    def on_end(self) -> None: ...


class Caller(Exchange, Protocol):
    '''Who has made a call. It gets one answer: by one of the last three.'''

    abandoned: bool
    '''Whether the answer is of no use any more.'''

    def on_sent(self, link: Any, ident: int) -> None: ...
    def on_value(self, body: Body) -> None: ...
    def on_failure(self, body: bytes) -> None: ...
    def on_error(self, error: BaseException) -> None: ...


Parcel = tuple[Body, Terms, int, Caller | None]
'''A task on its way, the bytes that it counts, and who waits for the answer, if it is a call.

A tuple without names, as one is made for every message; most share their terms.
'''


class PoolHandler(Protocol):
    '''What a `PoolEnd` calls.'''

    def on_ready(self) -> None: ...
    def on_start_failed(self, body: bytes) -> None: ...
    def on_define(self, body: bytes | Payload) -> Key: ...
    def on_done(self, size: int, count: int) -> None: ...
    def understand(self, body: bytes) -> BaseException: ...
    def on_failed(self, parcel: Parcel, error: BaseException) -> None: ...
    def on_call_failed(self, parcel: Parcel) -> None: ...
    def on_abandoned(self, parcel: Parcel) -> None: ...
    def on_ask(self, ident: int, head: bytes, data: Body) -> None: ...
    def on_abort(self, ident: int) -> None: ...
    def on_bye(self) -> None: ...


class WorkerHandler(Protocol):
    '''What a `WorkerEnd` calls.'''

    def on_configure(self, body: bytes) -> None: ...
    def on_define(self, body: bytes | Payload) -> Key: ...
    def on_start(self, body: Body) -> None: ...
    def on_credit(self) -> None: ...
    def on_pill(self) -> None: ...
    def on_cancel(self) -> None: ...
    def on_abort(self, ident: int) -> None: ...
    def on_early(self, ident: int) -> Exchange | None: ...
    def on_told(self) -> None: ...


Deliver = Callable[[int, int, list[Any]], None]
'''``deliver(kind, ident, messages)`` takes what came in a frame.'''


class _End(Lending):
    '''What both ends have in common.'''

    _hot: frozenset[int]
    '''The kinds that are handed on through `deliver`.'''

    def __init__(self, deliver: Deliver, wake: Callable[[], None]) -> None:
        super().__init__()
        self.max_body = self.max_own_body = MAX_BODY
        self._deliver = deliver
        self._wake = wake
        self._parser = Parser()
        self._held: list[Frame] = []
        '''Those that have come and wait for a descriptor.'''
        self._out: list[bytes] = []
        self._run: list[Any] = []
        '''Messages that leave in one frame, behind what is in `_out`.'''
        self._run_kind = self._run_ident = 0
        self.known: set[Key] = set()
        '''The definitions that both sides have.'''
        self._table: dict[int, Callable[[int, Any], None]] = {}
        '''What takes a frame, by its kind.'''
        self._legal: dict[int, Callable[[int, Any], None]]
        '''Those that may come in the present state.'''
        self._of_runs: dict[int, Callable[[int, list[Any]], None]] = {_ITEM: self._on_items}
        '''What takes the messages of a run that are not handed on.'''

    def _enter(self, state: State) -> None:
        self.state = state
        legal = [int(kind) for kind, states in LEGAL.items() if state in states]
        self._handed_on = self._hot.intersection(legal)
        table = {
            Kind.ITEM: lambda ident, body: self._on_items(ident, [body]),
            Kind.MORE: self._on_more,
            Kind.END: self._on_end,
        } | self._table | self._of_memory
        self._legal = {kind: table[kind] for kind in legal if kind in table}

    def limit_bodies(self, max_body: int) -> None:
        '''Set the cap on a message, for both directions, in bytes.'''
        self.max_body = max_body
        self.max_own_body = max(max_body, OWN_BODY)
        self._parser.max_body = self.max_own_body

    def receive_data(self, data: bytes) -> None:
        '''Take bytes from the transport.

        :raises ProtocolError: they are not what they have to be.
        :raises Shortage: go on later, first with no bytes.
        '''
        found = self._parser.feed(data)
        if self._held:
            found, self._held = self._held + found, []
        frames = iter(found)
        try:
            for kind, ident, body in frames:
                if kind in self._handed_on:
                    self._deliver(kind, ident, [body])
                elif kind in self._legal:
                    self._legal[kind](ident, body)
                elif kind & ALONE == LARGE:
                    self._receive_large(kind ^ LARGE, ident, body)
                else:
                    self._receive_run(kind, ident, body)
        except Shortage:
            self._held = [(kind, ident, body), *frames]
            raise
        if self._parser.error:
            raise self._parser.error

    def _receive_run(self, marked: int, ident: int, body: bytes) -> None:
        mark = marked & ALONE
        messages_of, kind = load_alone if mark == ALONE else cut_run, marked ^ mark
        if mark and kind in self._handed_on:
            self._deliver(kind, ident, messages_of(body))
        elif mark and kind in self._legal and kind in self._of_runs:
            self._of_runs[kind](ident, messages_of(body))
        else:
            raise ProtocolError(f'a frame of kind {marked} came in state {self.state.name}')

    def _receive_large(self, kind: int, ident: int, body: bytes) -> None:
        if kind not in self._handed_on and not (kind in self._legal and kind in _MAY_BE_LARGE):
            raise ProtocolError(f'a frame of kind {kind | LARGE} came in state {self.state.name}')
        payload = self._receive_payload(body)
        if len(payload) > self.max_own_body:
            raise ProtocolError(f'a message in shared memory has {len(payload):,} bytes, over the cap')
        if kind in self._handed_on:
            self._deliver(kind, ident, [payload])
        else:
            self._legal[kind](ident, payload)

    def data_to_send(self) -> bytes:
        '''The bytes to write next, which count as sent; fewer than `WRITE_SIZE`: that was all.'''
        self._end_run()
        self._send_owing()
        if self.returned:
            self._give_back()
        out = self._out
        if sum(map(len, out)) < WRITE_SIZE:
            data = b''.join(out)
            out.clear()
        else:
            count = 1 + sum(total < WRITE_SIZE for total in accumulate(map(len, out)))
            data = b''.join(out[:count])
            del out[:count]
        return data

    @property
    def urgent(self) -> bool:
        '''Whether there is something to send that somebody may be waiting for.'''
        return bool(self._out or self._run or self.returned)

    def _send_owing(self) -> None:
        '''Send what was held back to leave in one frame.'''
        raise NotImplementedError

    def _send(self, kind: int, ident: int = 0, body: bytes = b'') -> None:
        self._end_run()
        if not self._out:
            self._wake()
        self._append(kind, ident, body)

    def _append(self, kind: int, ident: int, body: bytes) -> None:
        self._out += (pack_header(len(body), kind, ident), body)

    def _begin_run(self, kind: int, ident: int) -> None:
        self._end_run()
        if not self._out:
            self._wake()
        self._run_kind, self._run_ident = kind, ident

    def _end_run(self) -> None:
        run, kind = self._run, self._run_kind
        if not run:
            return
        if kind == _VALUE and len(run) == 1:
            ident, body = run[0]
            self._append(kind, ident, pickled(body))
        else:
            self._out += pack_runs(kind, self._run_ident, run, OWN_BODY, row=kind != _ITEM)
        run.clear()
        self._run_kind = 0

    def _send_alone(self, kind: int, ident: int, body: Body, *, again: bool = False) -> bool:
        '''Send a message that is too large to leave with others; return whether it is.'''
        if type(body) is Payload:
            self._send_large(kind, ident, body, again=again)
        elif type(body) is bytes and len(body) > MOST_IN_RUN:
            self._send(kind, ident, body)
        else:
            return False
        return True

    def _send_body(self, kind: int, ident: int, body: Body) -> None:
        if type(body) is Payload:
            self._send_large(kind, ident, body)
        else:
            self._send(kind, ident, pickled(body))

    # The items of a call

    def send_item(self, ident: int, item: Body, needs: tuple[Definition, ...]) -> None:
        '''Send an item. The caller holds its permit.'''
        if needs:
            self._send_definitions(needs)
        if type(item) not in PLAIN and self._send_alone(_ITEM, ident, item):
            return
        if self._run_kind != _ITEM or self._run_ident != ident:
            self._begin_run(_ITEM, ident)
        self._run.append(item)

    def send_more(self, ident: int, count: int, size: int) -> None:
        '''`count` items of `size` bytes in all were taken: let the other side send as many again.'''
        self._send(Kind.MORE, ident, _MORE.pack(count, size))

    def send_end(self, ident: int) -> None:
        '''No more items will be sent.'''
        self._send(Kind.END, ident)

    def abort(self, ident: int) -> None:
        '''The answer to a call, or to what was asked, is of no use any more.'''
        self._send(Kind.ABORT, ident)

    def _exchange(self, ident: int) -> Exchange | None:
        '''Whose items those with this id are; None if it has just ended.'''
        raise NotImplementedError

    def _on_items(self, ident: int, items: list[Any]) -> None:
        exchange = self._exchange(ident)
        if exchange is not None:
            exchange.on_items(items)

    def _on_more(self, ident: int, body: bytes) -> None:
        exchange = self._exchange(ident)
        if exchange is not None:
            try:
                exchange.on_more(*_MORE.unpack(body))
            except (ValueError, struct.error) as error:
                raise ProtocolError(f'bad credit for items: {error}') from None

    def _on_end(self, ident: int, _body: bytes) -> None:
        exchange = self._exchange(ident)
        if exchange is not None:
            exchange.on_end()

    def _send_definitions(self, needs: tuple[Definition, ...]) -> None:
        for definition in needs:
            if definition.key not in self.known:
                self.known.add(definition.key)
                self._send_body(Kind.DEFINE, 0, definition.body)


class PoolEnd(_End):
    '''The pool's end of a link.

    :ivar owed: the tasks that were sent and have not ended, by id, in the order sent.
    :ivar calls: the calls likewise.
    :ivar relays: who waits for the answers to calls that were handed on.
    :ivar asks: the calls that the worker has made and that have items.
    :ivar results: the results that were taken up and are not done.
    '''

    _hot = frozenset({_RESULT})

    def __init__(
        self,
        handler: PoolHandler,
        deliver: Deliver,
        wake: Callable[[], None],
        results: Window,
        wake_later: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(deliver, wake)
        self._wake_later = wake_later or wake
        self.owed: dict[int, Parcel] = {}
        self.calls: dict[int, Parcel] = {}
        self.relays: dict[int, Caller] = {}
        self.asks: dict[int, Exchange] = {}
        self._last_relay = 0
        self.results = results
        self._handler = handler
        self._last_id = 0
        self._credits = 0
        self._credit_bytes = 0
        self._answered = self._answered_bytes = 0
        self._table = {
            Kind.DEFINE: lambda _, body: self.known.add(handler.on_define(body)),
            Kind.READY: self._on_ready,
            Kind.START_FAILED: lambda _, body: handler.on_start_failed(body),
            Kind.DONE: self._on_done,
            Kind.FAILED: self._on_failed,
            Kind.VALUE: lambda ident, body: self._on_values(0, [(ident, body)]),
            Kind.ASK: self._on_ask,
            Kind.ABORT: lambda ident, _: handler.on_abort(ident),
            Kind.BYE: self._on_bye,
        }
        self._of_runs[_VALUE] = self._on_values
        self._enter(State.NEW)

    def start(self, configuration: bytes, worker: Body, needs: tuple[Definition, ...]) -> None:
        '''Send all that the worker needs to become ready.'''
        self._enter(State.STARTING)
        self._send(Kind.CONFIGURE, 0, configuration)
        self._send_definitions(needs)
        self._send_body(Kind.START, 0, worker)

    def send_task(self, parcel: Parcel) -> int:
        '''Send a task or a call; return its id, or 0 if it was abandoned. Who sends it holds its permit.'''
        data, terms, _, call = parcel
        if terms.needs:
            self._send_definitions(terms.needs)
        if call is None:
            kind, book = _TASK, self.owed
        elif call.abandoned:
            self._handler.on_abandoned(parcel)
            return 0
        else:
            kind, book = _CALL, self.calls
        self._last_id = ident = self._last_id + 1
        book[ident] = parcel
        if type(data) in PLAIN or not self._send_alone(kind, ident, data, again=terms.retries > 0):
            if self._run_kind != kind:
                self._begin_run(kind, ident)
            self._run.append(data)
        if call is not None:
            call.on_sent(self._handler, ident)
        return ident

    def relay(self, caller: Caller, data: Body, needs: tuple[Definition, ...]) -> int:
        '''Hand on a call of another worker; return its id.'''
        self._send_definitions(needs)
        self._last_relay += 1
        ident = RELAYED | self._last_relay
        self.relays[ident] = caller
        self._send_body(_RELAY, ident, data)
        return ident

    def answer(self, ident: int, kind: Kind, body: Body, needs: tuple[Definition, ...]) -> None:
        '''Tell the worker what came of what it asked: ANSWER or REFUSAL.'''
        self.asks.pop(ident, None)
        self._send_definitions(needs)
        self._send_body(kind, ident, body)

    def awaits(self, ident: int) -> bool:
        '''Whether a call has not been answered.'''
        return ident in self.calls or ident in self.relays

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
            self._append(_CREDIT, self._credits, _BYTES.pack(self._credit_bytes))
            self._credits = self._credit_bytes = 0

    def _on_ready(self, _ident: int, _body: bytes) -> None:
        self._enter(State.READY)
        self._handler.on_ready()

    def _on_done(self, ident: int, body: bytes) -> None:
        if ident and ident in self.owed and not body:
            self._handler.on_done(self.owed.pop(ident)[2], 1)
            return
        if ident:
            raise ProtocolError(f'task {ident} was answered, but it is not owed')
        owed, before, size = self.owed, len(self.owed), 0
        try:
            for ident in unpacked_ids(body):
                size += owed.pop(ident)[2]
        except KeyError as error:
            raise ProtocolError(f'task {error} was answered, but it is not owed') from None
        finally:
            self._handler.on_done(size, before - len(owed))

    def _exchange(self, ident: int) -> Exchange | None:
        if ident & ASKED:
            return self.asks.get(ident)
        found = self.relays.get(ident) or (self.calls[ident][3] if ident in self.calls else None)
        if found is None:
            raise ProtocolError(f'call {ident} was said to go on, but it is not open')
        return found

    def _on_ask(self, ident: int, body: Body) -> None:
        length, rest = cut(body, HEAD_SIZE)
        if len(length) < HEAD_SIZE or not ident & ASKED:
            raise ProtocolError(f'what was asked ({ident}) has no head')
        self._handler.on_ask(ident, *cut(rest, *_HEAD.unpack(length)))

    def receive_data(self, data: bytes) -> None:
        try:
            super().receive_data(data)
        finally:
            if self._answered:
                # All that one read has brought: told one by one, they would take longer than all else about them.
                count, size = self._answered, self._answered_bytes
                self._answered = self._answered_bytes = 0
                self._handler.on_done(size, count)

    def _on_values(self, _ident: int, values: list[Any]) -> None:
        calls = self.calls
        for value in values:
            try:
                ident, body = value
                parcel = calls.pop(ident, None)
            except (TypeError, ValueError) as error:
                raise ProtocolError(f'a run of values is not what it has to be: {error}') from None
            if parcel is None:
                self._on_relayed_value(ident, body)
                continue
            self._answered += 1
            self._answered_bytes += parcel[2]
            parcel[3].on_value(body)  # type: ignore[union-attr]

    def _on_relayed_value(self, ident: int, body: Body) -> None:
        relay = self.relays.pop(ident, None)
        if relay is None:
            raise ProtocolError(f'task {ident} was answered, but it is not owed')
        relay.on_value(body)

    def _on_failed(self, ident: int, body: bytes) -> None:
        if ident in self.relays:
            self.relays.pop(ident).on_failure(body)
            return
        if ident in self.calls:
            # Still open until the error is understood.
            self.calls[ident][3].on_failure(body)  # type: ignore[union-attr]
            self._handler.on_call_failed(self.calls.pop(ident))
            return
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
    :ivar exchanges: the open calls that have items.
    :ivar asks: who waits for the answers to what was asked of the pool.
    '''

    _hot = frozenset({_TASK, _CALL, _RELAY})

    def __init__(self, handler: WorkerHandler, deliver: Deliver, wake: Callable[[], None]) -> None:
        super().__init__(deliver, wake)
        self.exchanges: dict[int, Exchange] = {}
        self.asks: dict[int, Caller] = {}
        self._last_ask = 0
        self.results = Window(1, 1)
        self._handler = handler
        self._done: list[int] = []
        self._table = {
            Kind.CONFIGURE: self._on_configure,
            Kind.DEFINE: lambda _, body: self.known.add(handler.on_define(body)),
            Kind.START: lambda _, body: handler.on_start(body),
            Kind.CREDIT: self._on_credit,
            Kind.PILL: self._on_pill,
            Kind.CANCEL: lambda _, body: handler.on_cancel(),
            Kind.ABORT: lambda ident, body: handler.on_abort(ident),
            Kind.ANSWER: lambda ident, body: self._told(ident).on_value(body),
            Kind.REFUSAL: lambda ident, body: self._told(ident).on_failure(body),
        }
        self._enter(State.NEW)

    def ready(self) -> None:
        self._send(Kind.READY)
        self._enter(State.READY)

    def start_failed(self, body: bytes, needs: tuple[Definition, ...]) -> None:
        self._send_definitions(needs)
        self._send(Kind.START_FAILED, 0, body)

    def send_result(self, body: Body, needs: tuple[Definition, ...]) -> None:
        '''Send a result. The caller has taken its permit and checked its size.'''
        if needs:
            self._send_definitions(needs)
        if type(body) not in PLAIN and self._send_alone(_RESULT, 0, body):
            return
        if self._run_kind != _RESULT:
            self._begin_run(_RESULT, 0)
        self._run.append(body)

    def done(self, ident: int) -> None:
        '''The task is done; its id leaves with the next write, behind the results that were put before.'''
        if not self._done:
            self._wake()
        self._done.append(ident)

    def failed(self, ident: int, body: bytes, needs: tuple[Definition, ...]) -> None:
        '''A task or a call has failed.'''
        self._send_definitions(needs)
        self._send(Kind.FAILED, ident, body)

    def value(self, ident: int, body: Body, needs: tuple[Definition, ...]) -> None:
        '''A call has returned.'''
        if needs:
            self._send_definitions(needs)
        if type(body) not in PLAIN and self._send_alone(_VALUE, ident, body):
            return
        if self._run_kind != _VALUE:
            self._begin_run(_VALUE, 0)
        self._run.append((ident, body))

    def ask(self, caller: Caller, head: bytes, data: Body, needs: tuple[Definition, ...]) -> int:
        '''Ask the pool for what `head` says, with `data`; return the id of the answer.'''
        self._send_definitions(needs)
        self._last_ask += 1
        ident = ASKED | self._last_ask
        self.asks[ident] = caller
        self._send_body(Kind.ASK, ident, prefixed(_HEAD.pack(len(head)) + head, data))
        return ident

    def _told(self, ident: int) -> Caller:
        caller = self.asks.pop(ident, None)
        if caller is None:
            raise ProtocolError(f'{ident} was answered, but it was not asked')
        self._handler.on_told()
        return caller

    def _exchange(self, ident: int) -> Exchange | None:
        if ident & ASKED:
            return self.asks.get(ident)
        return self.exchanges.get(ident) or self._handler.on_early(ident)

    def bye(self) -> None:
        self._end_run()
        self._send_owing()
        self._send(Kind.BYE)
        self._enter(State.ENDED)

    @property
    def urgent(self) -> bool:
        return bool(self._out or self._run or self._done or self.returned)

    def _send_owing(self) -> None:
        for start in range(0, len(self._done), MOST_IDS):
            ids = self._done[start : start + MOST_IDS]
            if len(ids) == 1:
                self._append(_DONE, ids[0], b'')
            else:
                self._append(_DONE, 0, struct.pack(f'<{len(ids)}Q', *ids))
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
