'''The pool's decisions: who gets what, who owes what, and when to give up. No socket, clock or asyncio.

1. A `Slot` is one place for a worker. Its window bounds what was accepted for it: the permit is taken when a message is
   accepted, kept while the message waits in the slot's backlog or is under way, and given back when it ends.
2. An open slot has a worker that takes tasks. Messages to a slot that is not open wait in its backlog, in order.
3. Round robin is strict: n messages reach n slots. The slot whose turn it is may be full; then the message waits for
   it, or `Full` is raised, and the turn stays. Only slots that are not open are passed over, if any is open.
4. Waiters for a permit are served first come, first served. Nobody overtakes a waiter for the same slot. Who takes the
   least loaded slot waits for all that are open, and holds up nobody at those that are not.
5. When a worker dies, what had not started moves to another open slot with room; what was addressed, or finds no room,
   waits for the replacement. What may have run fails, unless it may be run again.
6. A retained broadcast is kept, the last one for each key. A replacement gets them all, the oldest first, ahead of
   everything else; so a copy that died with its worker is not sent again.
'''

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from .protocol import Parcel
from .window import Window

__all__ = ['DISTRIBUTIONS', 'RestartBudget', 'Roster', 'Slot', 'Waiter']

DISTRIBUTIONS: Final = ('round_robin', 'least_loaded')


class Waiter:
    '''Somebody who waits for a permit.

    :param number: the slot it has to be, or None.
    :param size: bytes of the message.
    :param grant: called once `slot` is set and the permit taken.
    :param refuse: called with an error when there will be no permit any more.
    :param least: whether any open slot with room will do, and not only the one whose turn it is.
    '''

    __slots__ = ('cancelled', 'grant', 'least', 'number', 'refuse', 'size', 'slot', 'ticket')

    def __init__(
        self,
        number: int | None,
        size: int,
        grant: Callable[[], None],
        refuse: Callable[[Exception], None],
        *,
        least: bool = False,
    ) -> None:
        self.number = number
        self.size = size
        self.grant = grant
        self.refuse = refuse
        self.least = least
        self.slot: Slot | None = None
        self.cancelled = False
        self.ticket = 0


class Slot:
    '''One place for a worker.

    :ivar number: from 0.
    :ivar open: whether its worker takes tasks now.
    :ivar window: what was accepted for it and has not ended.
    :ivar backlog: accepted, but not sent.
    :ivar deliver: where to put a parcel whose permit is taken: the worker's link, or the backlog.
    '''

    def __init__(self, number: int, window: Window) -> None:
        self.number = number
        self.window = window
        self.open = False
        self.backlog: deque[Parcel] = deque()
        self.deliver: Callable[[Parcel], object] = self.backlog.append
        self.waiters: deque[Waiter] = deque()


class RestartBudget:
    '''More than `limit` restarts within `window` seconds are too many.'''

    FIRST_DELAY: Final = 0.05
    '''Seconds before the second restart in a window; it doubles with each further one. The first is at once.'''
    LONGEST_DELAY: Final = 5.0

    def __init__(self, limit: int, window: float) -> None:
        self.limit = limit
        self.window = window
        self._times: deque[float] = deque()

    def spend(self, now: float) -> float | None:
        '''Ask for a restart at the time `now`: how long to wait first, in seconds, or None if there is none left.'''
        times = self._times
        while times and now - times[0] > self.window:
            times.popleft()
        if len(times) >= self.limit:
            return None
        times.append(now)
        recent = len(times) - 1
        return min(self.FIRST_DELAY * 2 ** (recent - 1), self.LONGEST_DELAY) if recent else 0.0


class Roster:
    '''The slots of a pool, and the messages that wait for them.

    :param slots: the slots.
    :param distribution: one of `DISTRIBUTIONS`.
    '''

    def __init__(self, slots: list[Slot], distribution: str) -> None:
        if distribution not in DISTRIBUTIONS:
            raise ValueError(f'distribution has to be one of {", ".join(DISTRIBUTIONS)}, not {distribution!r}')
        self.slots = slots
        self.retained: dict[object, Parcel] = {}
        self._waiters: deque[Waiter] = deque()
        '''Those who take the slot whose turn it is.'''
        self._least_waiters: deque[Waiter] = deque()
        self._tickets = 0
        self._turn = 0
        self._least_turn = 0
        self._turn_after = [*range(1, len(slots)), 0]
        self._in_turn = distribution == 'round_robin'
        self._by_the_way = not self._in_turn
        '''Whether a claim has to look further than to the slot whose turn it is.'''

    # Choosing

    def claim(self, size: int, number: int | None = None) -> Slot | None:
        '''Take a permit for a message of `size` bytes, to the slot `number` if given; None if there is none now.'''
        if number is not None:
            slot = self.slots[number]
            taken = slot.waiters or (self._waiters and self._candidate() is slot) or self._least_waits_for(slot)
            return None if taken or not slot.window.try_take(size) else slot
        slot = self.slots[self._turn]
        if self._by_the_way or not slot.open:
            slot = self._candidate()
            if self._least_waits_for(slot):
                return None
        if self._waiters or slot.waiters or not slot.window.try_take(size):
            return None
        self._turn = self._turn_after[slot.number]
        return slot

    def claim_least(self, size: int) -> Slot | None:
        '''Take a permit of the open slot with the fewest messages, ties in a round robin of its own.

        None if none has room, or others who wait would be overtaken.
        '''
        if self._least_waiters and _head(self._least_waiters):
            return None
        taken = self._candidate() if self._waiters else None
        turn = self._least_turn
        best = None
        for slot in self.slots[turn:] + self.slots[:turn]:
            window = slot.window
            if best is not None and window.used >= best.window.used:
                continue
            if slot.open and slot is not taken and not slot.waiters and window.admits(size):
                best = slot
        if best is not None:
            best.window.take(size)
            self._least_turn = self._turn_after[best.number]
        return best

    def _least_waits_for(self, slot: Slot) -> bool:
        first = _head(self._least_waiters)
        self._by_the_way = first is not None or not self._in_turn
        return first is not None and slot.open

    def _candidate(self) -> Slot:
        '''The slot that the next message goes to, unless it is addressed.'''
        candidates = [slot for slot in self._from(self._turn) if slot.open] or list(self._from(self._turn))
        return candidates[0] if self._in_turn else min(candidates, key=lambda slot: slot.window.used)

    def _from(self, turn: int) -> Iterator[Slot]:
        yield from self.slots[turn:]
        yield from self.slots[:turn]

    # Waiting

    @property
    def waiting(self) -> int:
        '''How many wait for a permit.'''
        return sum(not waiter.cancelled for queue in self._queues() for waiter in queue)

    def _queues(self) -> list[deque[Waiter]]:
        return [self._waiters, self._least_waiters, *(slot.waiters for slot in self.slots)]

    def _queue_of(self, waiter: Waiter) -> deque[Waiter]:
        if waiter.number is not None:
            return self.slots[waiter.number].waiters
        return self._least_waiters if waiter.least else self._waiters

    def wait(self, waiter: Waiter) -> None:
        '''Put a waiter in line; it is granted at once if there is a permit.'''
        self._tickets += 1
        waiter.ticket = self._tickets
        self._queue_of(waiter).append(waiter)
        if waiter.least:
            self._by_the_way = True
        self._serve_all()

    def leave(self, waiter: Waiter) -> None:
        '''A waiter gives up: it leaves the line, or gives back the permit that it got.'''
        waiter.cancelled = True
        if waiter.slot is not None:
            self.release(waiter.slot, waiter.size)
        else:
            # It may have been at the head and so have kept others waiting.
            self._serve_all()

    def release(self, slot: Slot, size: int, count: int = 1) -> None:
        '''Give back the permits of `count` messages of `size` bytes in all.'''
        slot.window.give(size, count)
        if self._waiters or self._least_waiters:
            # Who waits for more than one slot may now look to another one, and so make way at the one it looked to.
            self._serve_all()
        elif slot.waiters:
            self._serve(slot)

    def _serve_all(self) -> None:
        # Whoever is granted a permit may have stood in the way of others elsewhere.
        while any(self._serve(slot) for slot in self.slots):
            pass

    def _serve(self, slot: Slot) -> bool:
        '''Grant the permits of `slot` to those who wait for it; whether there was one to grant.'''
        granted = False
        while (waiter := self._first_in_line(slot)) is not None and slot.window.try_take(waiter.size):
            self._queue_of(waiter).popleft()
            if waiter.number is None:
                self._pass_turn(waiter, slot)
            waiter.slot = slot
            waiter.grant()
            granted = True
        return granted

    def _pass_turn(self, waiter: Waiter, slot: Slot) -> None:
        if waiter.least:
            self._least_turn = self._turn_after[slot.number]
        else:
            self._turn = self._turn_after[slot.number]

    def _first_in_line(self, slot: Slot) -> Waiter | None:
        '''Who came first of those who wait for `slot`, be it among others.'''
        heads = [
            _head(slot.waiters),
            # Whoever waits for a turn competes for this slot only when it is this one's turn.
            _head(self._waiters) if self._waiters and self._candidate() is slot else None,
            _head(self._least_waiters) if slot.open else None,
        ]
        return min((waiter for waiter in heads if waiter), key=lambda waiter: waiter.ticket, default=None)

    def dismiss_waiters(self, error: Exception) -> None:
        '''Refuse everybody who stands in line.'''
        for queue in self._queues():
            for waiter in queue:
                waiter.refuse(error)
            queue.clear()

    # Death and replacement

    def bury(self, slot: Slot, owed: Iterable[tuple[Parcel, bool]]) -> tuple[list[Parcel], list[Slot]]:
        '''The worker of `slot` died, owing `owed`: parcels in the order sent, and whether each may have run.

        :returns: the parcels that have failed, and the slots whose backlogs have got something.
        '''
        slot.open = False
        failed, stays, moved_to = [], [], []
        for parcel, started in owed:
            data, terms = parcel
            if terms.retain is not None:
                self.release(slot, len(data))
            elif started and not terms.retries:
                failed.append(parcel)
                self.release(slot, len(data))
            else:
                if started:
                    parcel = data, terms._replace(retries=terms.retries - 1)
                heir = self._heir(parcel)
                if heir is None:
                    stays.append(parcel)
                else:
                    self.release(slot, len(data))
                    heir.backlog.append(parcel)
                    moved_to.append(heir)
        slot.backlog.extendleft(reversed(stays))
        # The turn may have passed to a slot that has room.
        self._serve_all()
        return failed, moved_to

    def _heir(self, parcel: Parcel) -> Slot | None:
        '''An open slot with room for a parcel of a dead worker; its permit is taken.'''
        data, terms = parcel
        if terms.number is not None:
            return None
        size = len(data)
        candidates = (slot for slot in self._from(self._turn) if slot.open and not slot.waiters)
        heir = next((slot for slot in candidates if slot.window.try_take(size)), None)
        if heir is not None:
            self._turn = self._turn_after[heir.number]
        return heir

    def open(self, slot: Slot) -> None:
        '''The worker of `slot` is ready: what was retained comes first, then what waited for it.'''
        slot.open = True
        for data, _ in self.retained.values():
            # They come on top of the window: it may be full of what waited for this worker.
            slot.window.take(len(data))
        slot.backlog.extendleft(reversed(self.retained.values()))
        self._serve_all()

    def retain(self, parcel: Parcel) -> None:
        '''Keep a broadcast for those who start later, as the newest.'''
        key = parcel[1].retain
        self.retained.pop(key, None)
        self.retained[key] = parcel


def _head(queue: deque[Waiter]) -> Waiter | None:
    while queue and queue[0].cancelled:
        queue.popleft()
    return queue[0] if queue else None
