'''The roster's decisions in any order of what an application and its workers may do.'''

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from parcels import Named
from parcels import parcel as make_parcel

from looppool.roster import Roster, Slot, Waiter
from looppool.window import Window

SLOTS, MOST_SLOTS, LIMIT, MAX_BYTES = 3, 4, 3, 100

LONG = settings(
    deadline=None, max_examples=200, stateful_step_count=50, report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

sizes = st.sampled_from([10, 40, 90, 150])
some = st.integers(0, 9)


class Put:
    '''Somebody in `put`, who stands in line until there is a permit.'''

    def __init__(self, machine: 'RoundRobin', parcel: Named, least: bool = False) -> None:
        self.parcel = parcel
        self.least = least
        self.refused: list[Exception] = []
        self.waiter = Waiter(
            parcel.number, len(parcel.data), lambda: machine.on_grant(self), self.refused.append, least=least
        )


class RoundRobin(RuleBasedStateMachine):
    '''A parcel is in line, granted, in a backlog, or under way (sent to a worker and not ended), or it has ended.'''

    distribution: ClassVar[str] = 'round_robin'

    def __init__(self) -> None:
        super().__init__()
        self.slots = [Slot(number, Window(LIMIT, MAX_BYTES)) for number in range(SLOTS)]
        self.kitty = Slot(-1, Window(LIMIT, MAX_BYTES), 'kitty')
        self.removed: list[Slot] = []
        self.leases: dict[int, Slot] = {}
        self.leases_made = 0
        self.roster = Roster(list(self.slots), self.distribution)
        self.roster.add(self.kitty)
        self.under_way: dict[Slot, list[Named]] = {slot: [] for slot in self.all_slots}
        self.in_line: list[Put] = []
        self.granted: list[Put] = []
        self.accepted: list[bytes] = []
        self.ended: list[bytes] = []
        self.retained: dict[object, Named] = {}
        self.made = 0
        self.turn: int | None = 0
        '''Whose turn it is; None if that can't be told from outside.'''
        self.burying = False

    @initialize(closed=some)
    def start(self, closed: int) -> None:
        for slot in self.all_slots:
            if slot.number != closed:
                self.open(slot)

    @property
    def all_slots(self) -> list[Slot]:
        return [*self.slots, self.kitty, *self.removed]

    @property
    def ring(self) -> list[Slot]:
        '''The slots that messages go round.'''
        return [slot for slot in self.slots if slot not in self.leases.values()]

    def addressed(self, which: int) -> int | str:
        addresses = [*range(len(self.slots)), 'kitty', *self.leases]
        return addresses[which % len(addresses)]

    def slot_at(self, address: int | str) -> Slot | None:
        '''The slot with that address; None while it is another's.'''
        if address in self.leases:
            return self.leases[address]  # type: ignore[index]
        slot = self.kitty if address == 'kitty' else self.slots[address]  # type: ignore[index]
        return None if slot in self.leases.values() else slot

    # What the application does

    @rule(size=sizes, which=st.none() | some, retries=st.integers(0, 1), waits=st.booleans())
    def put(self, size: int, which: int | None, retries: int, waits: bool) -> None:
        parcel = self.parcel(size, None if which is None else self.addressed(which), retries)
        slot = self.claim(parcel)
        if slot is not None:
            self.deliver(parcel, slot)
        elif waits:
            put = Put(self, parcel)
            self.in_line.append(put)
            self.roster.wait(put.waiter)

    @rule(size=sizes, waits=st.booleans())
    def call(self, size: int, waits: bool) -> None:
        parcel = self.parcel(size)
        slot = self.claim_least(parcel)
        if slot is not None:
            self.deliver(parcel, slot)
        elif waits:
            put = Put(self, parcel, least=True)
            self.in_line.append(put)
            self.roster.wait(put.waiter)

    @precondition(lambda self: self.granted)
    @rule(which=some)
    def go_on_with_a_permit(self, which: int) -> None:
        put = self.granted.pop(which % len(self.granted))
        assert put.waiter.slot is not None
        self.deliver(put.parcel, put.waiter.slot)

    @precondition(lambda self: self.in_line or self.granted)
    @rule(which=some)
    def give_up(self, which: int) -> None:
        everybody = self.in_line + self.granted
        put = everybody[which % len(everybody)]
        (self.in_line if put in self.in_line else self.granted).remove(put)
        self.roster.leave(put.waiter)

    @rule(size=sizes, key=st.sampled_from([None, 'a', 'b']))
    def broadcast(self, size: int, key: str | None) -> None:
        '''As a pool does it, but this one gives up where it would have to wait.'''
        parcel = self.parcel(size).having(retain=key)
        targets = [*self.slots, self.kitty]
        taken = [slot for slot in targets if self.claim(parcel.having(number=slot.address))]
        complete = len(taken) == len(targets)
        if complete and key:
            self.roster.retain(parcel)
            self.retained.pop(key, None)
            self.retained[key] = parcel
        for slot in taken:
            if complete and (slot.open or not key):
                self.deliver(parcel.having(number=slot.address), slot)
            else:
                self.roster.release(slot, size)

    @rule(free=st.booleans())
    def lease(self, free: bool) -> None:
        ring = self.ring
        if free:
            if self.turn is None:
                return
            ring = [slot for slot in ring if slot.open and not slot.window.used and not self.in_line_for(slot)]
        expected = min(ring, key=lambda slot: (not slot.open, slot.window.used), default=None)
        self.leases_made += 1
        address = -1 - self.leases_made
        if expected is not None:
            self.leases[address] = expected
            self.ring_changed()
        assert self.roster.lease(address, free=free) is expected

    @precondition(lambda self: self.leases)
    @rule(which=some)
    def end_lease(self, which: int) -> None:
        address = list(self.leases)[which % len(self.leases)]
        slot = self.leases.pop(address)
        self.ring_changed()
        with self.refusing(address) as error:
            self.roster.end_lease(slot, error)

    @precondition(lambda self: len(self.slots) < MOST_SLOTS)
    @rule()
    def grow(self) -> None:
        slot = Slot(len(self.slots), Window(LIMIT, MAX_BYTES))
        self.under_way[slot] = []
        self.slots.append(slot)
        self.ring_changed()
        self.roster.add(slot)

    @precondition(lambda self: len(self.slots) > 1)
    @rule()
    def shrink(self) -> None:
        slot = self.slots.pop()
        self.removed.append(slot)
        self.ring_changed()
        with self.refusing(slot.number) as error:
            self.roster.remove(slot, error)

    @contextlib.contextmanager
    def refusing(self, address: int) -> Iterator[Exception]:
        error = RuntimeError('gone')
        refused = [put for put in self.in_line if put.parcel.number == address]
        self.in_line = [put for put in self.in_line if put not in refused]
        yield error
        for put in refused:
            assert put.refused == [error]
            self.roster.leave(put.waiter)

    # What the workers do

    @rule(who=some, which=some, count=st.integers(1, LIMIT))
    def tasks_end(self, who: int, which: int, count: int) -> None:
        slot = self.all_slots[who % len(self.all_slots)]
        tasks = self.under_way[slot]
        ending = [tasks.pop(which % len(tasks))[0] for _ in range(min(count, len(tasks)))]
        self.ended += ending
        self.roster.release(slot, sum(map(len, ending)), len(ending))

    @rule(who=some, started=st.integers(0, LIMIT))
    def die(self, who: int, started: int) -> None:
        slot = self.all_slots[who % len(self.all_slots)]
        owed = [(Named(*parcel), index < started) for index, parcel in enumerate(self.under_way[slot])]
        self.under_way[slot].clear()
        slot.open = False
        slot.deliver = slot.backlog.append
        waited = list(slot.backlog)
        self.burying = True
        failed, moved_to = self.roster.bury(slot, owed)
        self.burying = False

        self.judge(slot, owed, failed, waited, moved_to)
        for heir in moved_to:
            self.send_backlog(heir)

    @precondition(lambda self: not all(slot.open for slot in self.all_slots))
    @rule(which=some)
    def replace(self, which: int) -> None:
        closed = [slot for slot in self.all_slots if not slot.open]
        self.open(closed[which % len(closed)])

    def open(self, slot: Slot) -> None:
        waited = list(slot.backlog)
        self.roster.open(slot)

        replayed = list(self.retained.values())
        assert list(slot.backlog) == replayed + waited, 'what is retained comes first, the oldest first'
        self.accepted += [parcel.data for parcel in replayed]
        slot.deliver = self.under_way[slot].append
        self.send_backlog(slot)

    # What the roster may decide

    def claim(self, parcel: Named) -> Slot | None:
        expected = self.slot_for(parcel)
        competitors = self.in_line_for(expected) if expected else []
        slot = self.roster.claim(len(parcel.data), parcel.number)
        if slot is not None:
            assert self.turn is None or not competitors, 'somebody was overtaken'
            assert expected is slot or (self.turn is None and parcel.number is None)
            self.pass_turn(parcel, slot)
        elif expected:
            assert competitors or not expected.window.admits(len(parcel.data)), 'refused without need'
        elif parcel.number is None and self.turn is not None:
            assert not self.ring
        return slot

    def claim_least(self, parcel: Named) -> Slot | None:
        size = len(parcel.data)
        free = [slot for slot in self.ring if slot.open and slot.window.admits(size) and not self.in_line_for(slot)]
        fewest = min((slot.window.used for slot in free), default=None)
        slot = self.roster.claim_least(size)
        if slot is None:
            assert not free, 'refused without need'
        elif self.turn is not None:
            assert slot in free and slot.window.used - 1 == fewest
        return slot

    def in_line_for(self, slot: Slot) -> list[Put]:
        '''Who may wait for this slot, be it among others.'''
        return [put for put in self.in_line if self.may_wait_for(put, slot)]

    def may_wait_for(self, put: Put, slot: Slot) -> bool:
        if put.parcel.number is not None:
            return self.slot_at(put.parcel.number) is slot
        if slot not in self.ring:
            return False
        return slot.open if put.least else self.turn is None or self.slot_for(put.parcel) is slot

    def on_grant(self, put: Put) -> None:
        slot = put.waiter.slot
        assert slot is not None
        ahead = self.in_line[: self.in_line.index(put)]
        if put.least:
            assert slot.open and slot in self.ring
        elif put.parcel.number is not None or not (self.burying or self.turn is None):
            assert self.slot_for(put.parcel, granted=slot) is slot
        kind = (put.least, put.parcel.number)
        assert kind not in [(other.least, other.parcel.number) for other in ahead], 'somebody was overtaken'
        if slot.open and slot in self.ring:
            assert not any(other.least for other in ahead), 'somebody was overtaken'
        if not put.least:
            self.pass_turn(put.parcel, slot)
        self.in_line.remove(put)
        self.granted.append(put)

    def slot_for(self, parcel: Named, granted: Slot | None = None) -> Slot | None:
        '''The slot that a parcel has to go to, or to wait for; None if there is none or that is not known.'''
        if parcel.number is not None:
            return self.slot_at(parcel.number)
        if self.turn is None or not self.ring:
            return None
        turn = self.turn
        in_turn = sorted(self.ring, key=lambda slot: (slot.number < turn, slot.number))
        return self.choose([slot for slot in in_turn if slot.open] or in_turn, granted)

    def choose(self, candidates: list[Slot], granted: Slot | None) -> Slot:
        return candidates[0]

    def pass_turn(self, parcel: Named, slot: Slot) -> None:
        if parcel.number is None:
            self.turn = None if self.burying else self.turn_from(slot.number + 1)

    def ring_changed(self) -> None:
        if self.turn is not None:
            self.turn = self.turn_from(self.turn)

    def turn_from(self, number: int) -> int:
        ring = [slot.number for slot in self.ring] or [0]
        return min((due for due in ring if due >= number), default=ring[0])

    def judge(
        self,
        slot: Slot,
        owed: list[tuple[Named, bool]],
        failed: list[Named],
        waited: list[Named],
        moved_to: list[Slot],
    ) -> None:
        '''Check what became of that which a dead worker owed.'''
        again = [parcel.having(retries=parcel.retries - ran) for parcel, ran in owed if parcel.retries or not ran]
        again = [parcel for parcel in again if parcel.retain is None]
        stayed = [parcel for parcel in again if parcel in slot.backlog]
        moved = [parcel for parcel in again if parcel not in stayed]

        assert failed == [parcel for parcel, ran in owed if ran and not parcel.retries and parcel.retain is None]
        assert list(slot.backlog) == stayed + waited, 'what stays is ahead of what waited'
        assert all(parcel in heir.backlog for parcel, heir in zip(moved, moved_to, strict=True))
        assert all(heir.open for heir in moved_to)
        assert set(moved_to) <= set(self.ring)
        assert not self.waited_for().intersection(moved_to), 'somebody was overtaken'
        assert not [parcel for parcel in moved if parcel.number is not None], 'what is addressed stays'
        assert not [parcel for parcel in stayed if parcel.number is None and self.has_room_elsewhere(parcel)]
        self.ended += [parcel.data for parcel, _ in owed if parcel in failed or parcel.retain is not None]
        if moved_to and self.turn is not None:
            self.turn = self.turn_from(moved_to[-1].number + 1)

    def waited_for(self) -> set[Slot | None]:
        return {self.slot_at(put.parcel.number) for put in self.in_line if put.parcel.number is not None}

    def has_room_elsewhere(self, parcel: Named) -> bool:
        free = [slot for slot in self.ring if slot.open and slot not in self.waited_for()]
        return any(slot.window.admits(len(parcel.data)) for slot in free)

    # What holds at any time

    @invariant()
    def promises_hold(self) -> None:
        self.every_parcel_is_in_one_place_or_has_ended()
        for slot in self.all_slots:
            self.windows_hold_what_was_accepted(slot)
        self.nobody_waits_in_vain()
        assert self.roster.waiting == len(self.in_line)

    def every_parcel_is_in_one_place_or_has_ended(self) -> None:
        places = [*self.under_way.values(), *(slot.backlog for slot in self.all_slots)]
        here = [data for place in places for data, *_ in place]

        assert Counter(self.accepted) == Counter(here + self.ended)

    def windows_hold_what_was_accepted(self, slot: Slot) -> None:
        held = [Named(*parcel) for parcel in [*slot.backlog, *self.under_way[slot]]]
        held += [put.parcel for put in self.granted if put.waiter.slot is slot]
        assert slot.window.used == len(held)
        assert slot.window.bytes == sum(len(parcel.data) for parcel in held)

        replayed = [parcel for parcel in held if parcel.retain is not None and parcel.number is None]
        bounded = [len(parcel.data) for parcel in held if parcel not in replayed]
        assert len(bounded) <= LIMIT
        assert sum(bounded) <= MAX_BYTES or len(bounded) == 1

    def nobody_waits_in_vain(self) -> None:
        '''Whoever is first of those who wait for a slot doesn't wait while it has room.'''
        for slot in [*self.slots, self.kitty, *self.leases.values()]:
            for put in self.in_line_for(slot)[:1]:
                known = put.least or self.slot_for(put.parcel) is slot
                assert not known or not slot.window.admits(len(put.parcel.data)), 'somebody waits in vain'

    # What comes in the end

    def teardown(self) -> None:
        '''Refuse who is in line, end the rest: then nothing is left.'''
        error = RuntimeError('closed')
        self.roster.dismiss_waiters(error)
        for put in self.in_line:
            assert put.refused == [error]
            self.roster.leave(put.waiter)
        self.in_line.clear()
        while self.granted:
            self.go_on_with_a_permit(0)
        for slot in self.all_slots:
            if not slot.open:
                self.open(slot)
        while busy := [index for index, slot in enumerate(self.all_slots) if self.under_way[slot]]:
            self.tasks_end(busy[0], 0, LIMIT)
        assert Counter(self.accepted) == Counter(self.ended)
        assert not any(slot.window.used or slot.window.bytes for slot in self.all_slots)

    # The bookkeeping

    def parcel(self, size: int, number: int | str | None = None, retries: int = 0) -> Named:
        self.made += 1
        return make_parcel((b'%d' % self.made).zfill(size), number=number, retries=retries)

    def deliver(self, parcel: Named, slot: Slot) -> None:
        self.accepted.append(parcel.data)
        slot.deliver(parcel)

    def send_backlog(self, slot: Slot) -> None:
        while slot.backlog:
            slot.deliver(slot.backlog.popleft())


class LeastLoaded(RoundRobin):
    distribution = 'least_loaded'

    def choose(self, candidates: list[Slot], granted: Slot | None) -> Slot:
        '''The first with the fewest; the permit that was just granted did not count yet.'''
        return min(candidates, key=lambda slot: slot.window.used - (slot is granted))


@pytest.mark.long
@pytest.mark.timeout(360)  # a failure takes Hypothesis up to five minutes to make small
@pytest.mark.parametrize('machine', [RoundRobin, LeastLoaded])
def test_any_order_of_events_keeps_the_promises_of_a_roster(machine: type[RoundRobin]) -> None:
    run_state_machine_as_test(machine, settings=LONG)
