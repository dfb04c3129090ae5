'''The pool's decisions: who gets what, and who owes what. No socket, clock or asyncio.

1. A `Slot` is one place for a worker. Its window bounds what was accepted for it: the permit is taken when a message is
   accepted, kept while the message waits in the slot's backlog or is under way, and given back when it ends.
2. An open slot has a worker that takes tasks. Messages to a slot that is not open wait in its backlog, in order.
3. Round robin is strict: n messages reach n slots. The slot whose turn it is may be full; then the message waits for
   it, or `Full` is raised, and the turn stays. Only slots that are not open are passed over, if any is open.
4. Waiters for a permit are served first come, first served. Nobody overtakes a waiter for the same slot. Who takes the
   least loaded slot waits for all that are open, and holds up nobody at those that are not.
5. When a worker dies, what had not started moves to another open slot with room; what was addressed, or finds no room,
   waits for the replacement. What may have run fails, unless it may be run again.
6. A slot that is leased belongs to its lease alone: messages go past it, and those addressed to it wait for the end of
   the lease. A slot with a name gets only what is addressed to it.
7. A slot that was removed gets no more permits. Those that were given may still be used there.
8. A retained broadcast is kept, the last one for each key. A replacement gets them all, the oldest first, ahead of
   everything else; so a copy that died with its worker is not sent again.
'''

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from .protocol import Parcel
from .window import Window

__all__ = ['DISTRIBUTIONS', 'Address', 'Roster', 'Slot', 'Waiter', 'WatchfulRoster']

DISTRIBUTIONS: Final = ('round_robin', 'least_loaded')

Address = int | str
'''Of one slot: its number or its name, or while it is leased the number of the lease.'''


class Waiter:
    '''Somebody who waits for a permit.

    :param number: the address of the slot it has to be, or None.
    :param size: bytes of the message.
    :param grant: called once `slot` is set and the permit taken.
    :param refuse: called with an error when there will be no permit any more.
    :param least: whether any open slot with room will do, and not only the one whose turn it is.
    '''

    __slots__ = ('cancelled', 'grant', 'least', 'number', 'queue', 'refuse', 'size', 'slot', 'ticket')

    def __init__(
        self,
        number: Address | None,
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
        self.queue: deque[Waiter] = deque()


class Slot:
    '''One place for a worker.

    :ivar number: from 0; below 0 where it has a name.
    :ivar name: None for those that take part in distribution.
    :ivar lease: the address that it has for who leased it; None while it is not leased.
    :ivar open: whether its worker takes tasks now.
    :ivar window: what was accepted for it and has not ended.
    :ivar backlog: accepted, but not sent.
    :ivar deliver: where to put a parcel whose permit is taken: the worker's link, or the backlog.
    :ivar on_empty: called when the last permit was given back; None: nobody wants to know.
    '''

    def __init__(self, number: int, window: Window, name: str | None = None) -> None:
        self.number = number
        self.name = name
        self.lease: int | None = None
        self.window = window
        self.open = False
        self.backlog: deque[Parcel] = deque()
        self.deliver: Callable[[Parcel], object] = self.backlog.append
        self.on_empty: Callable[[], None] | None = None
        self.waiters: deque[Waiter] = deque()
        self.parked: deque[Waiter] = deque()
        '''Those who wait for the end of a lease.'''

    @property
    def address(self) -> Address:
        return self.number if self.name is None else self.name


class Roster:
    '''The slots of a pool, and the messages that wait for them.

    :param slots: the slots that take part in distribution, by number.
    :param distribution: one of `DISTRIBUTIONS`.
    :ivar everyone: all slots, those with names too.
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
        self._addresses: dict[Address, Slot] = {slot.address: slot for slot in slots}
        self._nobody = Slot(0, Window(0, 0))
        '''Has the turn while every slot is leased: it never has room.'''
        self._ring = [self._nobody]
        '''The slots that messages go round.'''
        self._turn = 0
        self._least_turn = 0
        self._form_ring()
        self._in_turn = distribution == 'round_robin'
        self._by_the_way = not self._in_turn
        '''Whether a claim has to look further than to the slot whose turn it is.'''

    # Who there is

    def __contains__(self, address: object) -> bool:
        return address in self._addresses and not isinstance(address, bool)

    def add(self, slot: Slot) -> None:
        '''A new slot: the next number, or one with a name.'''
        self._addresses[slot.address] = slot
        if slot.name is None:
            self.slots.append(slot)
        self._form_ring()
        self._serve_all()

    def remove(self, slot: Slot, error: Exception) -> None:
        '''Give no more permits of a slot: that with the highest number, or one with a name.

        Those who wait for it are refused with `error`. A lease goes on until it ends.
        '''
        del self._addresses[slot.address]
        if slot.name is None:
            self.slots.remove(slot)
        self._form_ring()
        _refuse(slot.waiters if slot.lease is None else slot.parked, error)
        self._serve_all()

    def lease(self, address: int, *, free: bool = False) -> Slot | None:
        '''Give a slot the lease `address`; it may still have to end what it has.

        It is the open one with the fewest messages, or one that is not open; with `free`, only one that has none, and
        that nobody waits for. None if there is none.
        '''
        candidates = [slot for slot in self._ring if slot is not self._nobody]
        if free:
            candidates = [s for s in candidates if s.open and not s.window.used and not self._first_in_line(s)]
        if not candidates:
            return None
        slot = min(candidates, key=lambda slot: (not slot.open, slot.window.used))
        slot.lease = address
        self._addresses[address] = slot
        slot.waiters, slot.parked = slot.parked, slot.waiters
        self._form_ring()
        self._serve_all()
        return slot

    def end_lease(self, slot: Slot, error: Exception) -> None:
        '''The slot serves everybody again. Who waits for it by its lease is refused with `error`.'''
        assert slot.lease is not None
        del self._addresses[slot.lease]
        slot.lease = None
        _refuse(slot.waiters, error)
        slot.waiters, slot.parked = slot.parked, slot.waiters
        self._form_ring()
        self._serve_all()

    def _form_ring(self) -> None:
        due, least_due = self._ring[self._turn].number, self._ring[self._least_turn].number
        self.everyone = list(dict.fromkeys(self._addresses.values()))
        self._ring = [slot for slot in self.slots if slot.lease is None] or [self._nobody]
        self._turn_after = {slot.number: (index + 1) % len(self._ring) for index, slot in enumerate(self._ring)}
        self._from_least_turn = [self._ring[turn:] + self._ring[:turn] for turn in range(len(self._ring))]
        self._turn, self._least_turn = self._index_from(due), self._index_from(least_due)

    def _index_from(self, number: int) -> int:
        return next((index for index, slot in enumerate(self._ring) if slot.number >= number), 0)

    def _is_shared(self, slot: Slot) -> bool:
        '''Whether messages that are not addressed may go there.'''
        return slot in self._ring

    # Choosing

    def claim(self, size: int, number: Address | None = None) -> Slot | None:
        '''Take a permit for a message of `size` bytes, to the slot `number` if given; None if there is none now.'''
        if number is not None:
            return self._claim_addressed(size, number)
        slot = self._ring[self._turn]
        if self._by_the_way or not slot.open:
            slot = self._candidate()
            if self._least_waits_for(slot):
                return None
        if self._waiters or slot.waiters or not slot.window.try_take(size):
            return None
        self._turn = self._turn_after[slot.number]
        return slot

    def _claim_addressed(self, size: int, number: Address) -> Slot | None:
        slot = self._addresses[number]
        if slot.waiters or (slot.lease is not None and slot.lease != number):
            return None
        if (self._waiters and self._candidate() is slot) or (self._least_waiters and self._least_waits_for(slot)):
            return None
        return slot if slot.window.try_take(size) else None

    def claim_least(self, size: int) -> Slot | None:
        '''Take a permit of the open slot with the fewest messages, ties in a round robin of its own.

        None if none has room, or others who wait would be overtaken.
        '''
        if self._least_waiters and _head(self._least_waiters):
            return None
        taken = self._candidate() if self._waiters else None
        best, least = None, sys.maxsize
        for slot in self._from_least_turn[self._least_turn]:
            used = slot.window.used
            if used < least and slot.open and slot is not taken and not slot.waiters and slot.window.admits(size):
                best, least = slot, used
                if not used:
                    break
        if best is not None:
            best.window.take(size)
            self._least_turn = self._turn_after[best.number]
        return best

    def _least_waits_for(self, slot: Slot) -> bool:
        first = _head(self._least_waiters)
        self._by_the_way = first is not None or not self._in_turn
        return first is not None and slot.open and self._is_shared(slot)

    def _candidate(self) -> Slot:
        '''The slot that the next message goes to, unless it is addressed.'''
        candidates = [slot for slot in self._from(self._turn) if slot.open] or list(self._from(self._turn))
        return candidates[0] if self._in_turn else min(candidates, key=lambda slot: slot.window.used)

    def _from(self, turn: int) -> Iterator[Slot]:
        yield from self._ring[turn:]
        yield from self._ring[:turn]

    # Waiting

    @property
    def waiting(self) -> int:
        '''How many wait for a permit.'''
        return sum(not waiter.cancelled for queue in self._queues() for waiter in queue)

    def _queues(self) -> list[deque[Waiter]]:
        addressed = [queue for slot in self.everyone for queue in (slot.waiters, slot.parked)]
        return [self._waiters, self._least_waiters, *addressed]

    def _queue_for(self, waiter: Waiter) -> deque[Waiter]:
        if waiter.number is None:
            return self._least_waiters if waiter.least else self._waiters
        slot = self._addresses[waiter.number]
        return slot.waiters if slot.lease in (None, waiter.number) else slot.parked

    def wait(self, waiter: Waiter) -> None:
        '''Put a waiter in line; it is granted at once if there is a permit.'''
        self._tickets += 1
        waiter.ticket = self._tickets
        waiter.queue = self._queue_for(waiter)
        waiter.queue.append(waiter)
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
        if slot.on_empty is not None and not slot.window.used:
            slot.on_empty()
        if self._waiters or self._least_waiters:
            # Who waits for more than one slot may now look to another one, and so make way at the one it looked to.
            self._serve_all()
        elif slot.waiters:
            self._serve(slot)

    def _serve_all(self) -> None:
        # Whoever is granted a permit may have stood in the way of others elsewhere.
        while any(self._serve(slot) for slot in self.everyone):
            pass

    def _serve(self, slot: Slot) -> bool:
        '''Grant the permits of `slot` to those who wait for it; whether there was one to grant.'''
        granted = False
        while (waiter := self._first_in_line(slot)) is not None and slot.window.try_take(waiter.size):
            waiter.queue.popleft()
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
            _head(self._least_waiters) if slot.open and self._is_shared(slot) else None,
        ]
        return min((waiter for waiter in heads if waiter), key=lambda waiter: waiter.ticket, default=None)

    def dismiss_waiters(self, error: Exception) -> None:
        '''Refuse everybody who stands in line.'''
        for queue in self._queues():
            _refuse(queue, error)

    # Death and replacement

    def bury(self, slot: Slot, owed: Iterable[tuple[Parcel, bool]]) -> tuple[list[Parcel], list[Slot]]:
        '''The worker of `slot` died, owing `owed`; see `take_back`.'''
        slot.open = False
        return self.take_back(slot, owed)

    def take_back(self, slot: Slot, owed: Iterable[tuple[Parcel, bool]]) -> tuple[list[Parcel], list[Slot]]:
        '''A process of `slot` is gone and owes `owed`: parcels in the order sent, and whether each may have run.

        :returns: the parcels that have failed, and the slots whose backlogs have got something.
        '''
        failed, stays, moved_to = [], [], []
        for parcel, started in owed:
            data, terms, size, call = parcel
            if terms.retain is not None:
                self.release(slot, size)
            elif started and not terms.retries:
                failed.append(parcel)
                self.release(slot, size)
            else:
                if started:
                    parcel = data, terms._replace(retries=terms.retries - 1), size, call
                heir = self._heir(parcel)
                if heir is None:
                    stays.append(parcel)
                else:
                    self.release(slot, size)
                    heir.backlog.append(parcel)
                    moved_to.append(heir)
        slot.backlog.extendleft(reversed(stays))
        # The turn may have passed to a slot that has room.
        self._serve_all()
        return failed, moved_to

    def _heir(self, parcel: Parcel) -> Slot | None:
        '''An open slot with room for a parcel of a dead worker; its permit is taken.'''
        _, terms, size, _ = parcel
        if terms.number is not None:
            return None
        candidates = (slot for slot in self._from(self._turn) if slot.open and not slot.waiters)
        heir = next((slot for slot in candidates if slot.window.try_take(size)), None)
        if heir is not None:
            self._turn = self._turn_after[heir.number]
        return heir

    def open(self, slot: Slot) -> None:
        '''The worker of `slot` is ready: what was retained comes first, then what waited for it.'''
        slot.open = True
        for _, _, size, _ in self.retained.values():
            # They come on top of the window: it may be full of what waited for this worker.
            slot.window.take(size)
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


def _refuse(queue: deque[Waiter], error: Exception) -> None:
    for waiter in queue:
        waiter.refuse(error)
    queue.clear()


class WatchfulRoster(Roster):
    '''A roster that tells when there is more to do than its slots can take.

    :param busy: with so many messages a slot is busy.
    :param on_busy: called after a claim that left every slot busy, or that failed.
    '''

    def __init__(self, slots: list[Slot], distribution: str, busy: int, on_busy: Callable[[], None]) -> None:
        super().__init__(slots, distribution)
        self._busy = busy
        self._on_busy = on_busy

    def claim(self, size: int, number: Address | None = None) -> Slot | None:
        slot = super().claim(size, number)
        if number is None:
            self._watch(slot)
        return slot

    def claim_least(self, size: int) -> Slot | None:
        slot = super().claim_least(size)
        self._watch(slot)
        return slot

    def lease(self, address: int, *, free: bool = False) -> Slot | None:
        slot = super().lease(address, free=free)
        self._watch(slot)
        return slot

    def _watch(self, slot: Slot | None) -> None:
        if slot is None or (slot.window.used >= self._busy and self.all_busy):
            self._on_busy()

    @property
    def all_busy(self) -> bool:
        '''Whether every slot has at least `busy` messages, or is leased.'''
        return all(slot.window.used >= self._busy for slot in self._ring if slot is not self._nobody)
