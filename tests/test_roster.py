'''The rules of the roster, one example each; tests/test_roster_machine.py puts them together in any order.'''

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parcels import Named, parcel

from looppool.roster import DISTRIBUTIONS, Roster, Slot, Waiter, WatchfulRoster
from looppool.window import Window

MAX_BYTES = 100


class Line:
    '''Waiters for a roster's permits, who tell who was granted and who refused, in order.'''

    def __init__(self, roster: Roster) -> None:
        self.roster = roster
        self.granted: list[str] = []
        self.refused: list[tuple[str, Exception]] = []

    def wait(self, name: str, number: int | None = None, size: int = 1, *, least: bool = False) -> Waiter:
        waiter = Waiter(
            number,
            size,
            lambda: self.granted.append(name),
            lambda error: self.refused.append((name, error)),
            least=least,
        )
        self.roster.wait(waiter)
        return waiter


def make(slots: int = 3, limit: int = 1, distribution: str = 'round_robin', open_: bool = True) -> Roster:
    roster = Roster([Slot(number, Window(limit, MAX_BYTES)) for number in range(slots)], distribution)
    for slot in roster.slots:
        if open_:
            roster.open(slot)
    return roster


def claims(roster: Roster, count: int, size: int = 1) -> list[int | None]:
    claimed = [roster.claim(size) for _ in range(count)]
    return [slot and slot.number for slot in claimed]


def least_claims(roster: Roster, count: int, size: int = 1) -> list[int | None]:
    claimed = [roster.claim_least(size) for _ in range(count)]
    return [slot and slot.number for slot in claimed]


def parcels(*names: str, **fields: Any) -> list[Named]:
    return [parcel(name.encode(), **fields) for name in names]


def owed_by(roster: Roster, number: int, owed: list[Named]) -> Slot:
    '''The slot, which was given these parcels and has sent them to its worker.'''
    for data, *_ in owed:
        assert roster.claim(len(data), number)
    return roster.slots[number]


# Distribution


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.sampled_from(DISTRIBUTIONS))
def test_n_messages_reach_n_slots(slots: int, rounds: int, distribution: str) -> None:
    roster = make(slots, limit=rounds, distribution=distribution)

    for _ in range(rounds):
        assert claims(roster, slots) == list(range(slots))
    assert claims(roster, 1) == [None]


def test_round_robin_waits_for_a_full_slot_although_another_has_room() -> None:
    roster = make(limit=2)
    claims(roster, 3)
    roster.claim(1, 0)

    assert claims(roster, 2) == [None, None]

    roster.release(roster.slots[0], 1)
    assert claims(roster, 3) == [0, 1, 2]


def test_round_robin_passes_over_slots_that_are_not_open() -> None:
    roster = make(limit=2)
    roster.bury(roster.slots[1], [])

    assert claims(roster, 4) == [0, 2, 0, 2]


def test_addressed_messages_leave_the_turn_alone() -> None:
    roster = make(limit=2)

    roster.claim(1, 2)

    assert claims(roster, 3) == [0, 1, 2]


@pytest.mark.parametrize('distribution', DISTRIBUTIONS)
def test_messages_to_slots_none_of_which_is_open_go_round_as_well(distribution: str) -> None:
    roster = make(limit=2, distribution=distribution)
    claims(roster, 1)
    for slot in roster.slots:
        roster.bury(slot, [])
    roster.release(roster.slots[0], 1)

    assert claims(roster, 3) == [1, 2, 0]


def test_least_loaded_takes_the_slot_with_the_fewest() -> None:
    roster = make(limit=4, distribution='least_loaded')
    roster.claim(1, 0)
    roster.claim(1, 0)
    roster.claim(1, 1)

    assert claims(roster, 3) == [2, 1, 2]


def test_another_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="distribution has to be one of round_robin, least_loaded, not 'random'"):
        Roster([], 'random')


# The least loaded


def test_the_least_loaded_slot_is_claimed_ties_in_a_turn_of_their_own() -> None:
    roster = make(limit=3)
    claims(roster, 1)

    assert least_claims(roster, 5) == [1, 2, 0, 1, 2]
    assert claims(roster, 1) == [1], 'the turn of messages is where it was'


def test_the_least_loaded_slot_is_an_open_one_with_room() -> None:
    roster = make(limit=2)
    roster.bury(roster.slots[0], [])
    roster.claim(1, 1)
    roster.claim(95, 2)
    roster.claim(1, 1)

    assert least_claims(roster, 2, size=10) == [None, None]
    assert least_claims(roster, 2, size=1) == [2, None]


def test_a_claim_of_the_least_loaded_slot_overtakes_nobody() -> None:
    roster = make(slots=3, limit=3)
    for slot in roster.slots:
        roster.claim(60, slot.number)
    line = Line(roster)
    line.wait('turn', size=60)
    line.wait('addressed', number=1, size=60)

    assert least_claims(roster, 3) == [2, 2, None]

    least = line.wait('least', least=True, size=60)
    roster.release(roster.slots[2], 2, 2)
    assert least_claims(roster, 1) == [None], 'somebody waits for the same'
    roster.leave(least)
    assert least_claims(roster, 1) == [2]


def test_who_waits_for_the_least_loaded_takes_any_that_has_room() -> None:
    roster = make(slots=2)
    claims(roster, 2)
    line = Line(roster)
    line.wait('turn')
    line.wait('least', least=True)

    roster.release(roster.slots[1], 1)
    assert line.granted == ['least']
    assert roster.waiting == 1

    roster.release(roster.slots[0], 1)
    assert line.granted == ['least', 'turn']


def test_nobody_overtakes_who_waits_for_the_least_loaded() -> None:
    roster = make(slots=2, limit=3)
    roster.claim(60, 0)
    roster.claim(60, 1)
    line = Line(roster)
    line.wait('large', least=True, size=60)

    assert [roster.claim(1), roster.claim(1, 0), roster.claim_least(1)] == [None] * 3
    line.wait('turn')
    line.wait('addressed', number=1)
    assert line.granted == []

    roster.release(roster.slots[1], 60)
    assert line.granted[0] == 'large'
    assert sorted(line.granted[1:]) == ['addressed', 'turn']
    assert claims(roster, 2) == [1, 0]


def test_who_waits_for_the_least_loaded_hinders_nobody_at_a_slot_that_is_not_open() -> None:
    roster = make(slots=2, open_=False)
    line = Line(roster)
    line.wait('least', least=True)
    line.wait('addressed', number=1)

    assert line.granted == ['addressed']
    assert claims(roster, 2) == [0, None]

    roster.release(roster.slots[1], 1)
    roster.open(roster.slots[1])
    assert line.granted == ['addressed', 'least']


# Waiting


def test_waiters_are_served_first_come_first_served() -> None:
    roster = make(slots=1)
    roster.claim(1)
    line = Line(roster)
    line.wait('first')
    line.wait('second', number=0)
    line.wait('third')

    for _ in range(3):
        roster.release(roster.slots[0], 1)

    assert line.granted == ['first', 'second', 'third']


def test_a_claim_does_not_overtake_who_waits() -> None:
    roster = make(slots=1, limit=3)
    roster.claim(60)
    line = Line(roster)
    line.wait('large', size=60)

    assert roster.claim(1) is None

    roster.release(roster.slots[0], 60)
    assert line.granted == ['large']


def test_nobody_overtakes_an_unaddressed_waiter_at_the_slot_whose_turn_it_is() -> None:
    roster = make(limit=3)
    roster.claim(60, 0)
    line = Line(roster)
    line.wait('large', size=60)

    assert roster.claim(1, 0) is None
    line.wait('small', number=0)
    assert line.granted == []

    roster.release(roster.slots[0], 60)
    assert line.granted == ['large', 'small']


def test_nobody_overtakes_an_addressed_waiter_at_the_slot_whose_turn_it_is() -> None:
    roster = make(limit=3)
    roster.claim(60, 0)
    line = Line(roster)
    line.wait('large', number=0, size=60)

    assert roster.claim(1) is None
    line.wait('small')
    roster.claim(1, 1)
    roster.release(roster.slots[1], 1)
    assert line.granted == []

    roster.release(roster.slots[0], 60)
    assert line.granted == ['large', 'small']


def test_nobody_overtakes_an_oversized_message() -> None:
    roster = make(limit=3)
    roster.claim(1, 0)
    line = Line(roster)
    line.wait('oversized', size=10 * MAX_BYTES)

    assert roster.claim(1, 0) is None

    roster.release(roster.slots[0], 1)
    assert line.granted == ['oversized']


def test_who_waits_for_one_slot_does_not_hinder_another() -> None:
    roster = make(slots=2)
    roster.claim(1, 0)
    line = Line(roster)

    line.wait('first', number=0)
    line.wait('second', number=1)

    assert line.granted == ['second']


def test_who_leaves_the_line_lets_the_next_one_have_it() -> None:
    roster = make(slots=1, limit=3)
    roster.claim(60)
    line = Line(roster)
    large = line.wait('large', size=60)
    line.wait('small', size=1)

    roster.leave(large)

    assert line.granted == ['small']
    assert roster.waiting == 0


def test_who_leaves_with_a_permit_gives_it_back() -> None:
    roster = make(slots=1)
    line = Line(roster)
    first = line.wait('first')
    line.wait('second')
    assert line.granted == ['first']

    roster.leave(first)

    assert line.granted == ['first', 'second']
    assert roster.slots[0].window.used == 1


def test_dismissed_waiters_are_told_why_and_wait_no_more() -> None:
    roster = make(slots=2)
    claims(roster, 2)
    line = Line(roster)
    waiters = [line.wait('any'), line.wait('addressed', number=1)]
    assert roster.waiting == 2
    error = RuntimeError('closed')

    roster.dismiss_waiters(error)

    assert sorted(line.refused) == [('addressed', error), ('any', error)]
    assert roster.waiting == 0
    for waiter in waiters:
        roster.leave(waiter)
    assert [slot.window.used for slot in roster.slots] == [1, 1]


# Death and replacement


def test_what_had_not_started_moves_in_order() -> None:
    roster = make(limit=4)
    owed = parcels('a', 'b', 'c')
    dead = owed_by(roster, 0, owed)

    failed, moved_to = roster.bury(dead, [(one, False) for one in owed])

    assert failed == []
    assert [slot.number for slot in moved_to] == [1, 2, 1]
    assert [list(slot.backlog) for slot in roster.slots] == [[], [owed[0], owed[2]], [owed[1]]]
    assert [slot.window.used for slot in roster.slots] == [0, 2, 1]


def test_what_may_have_run_fails() -> None:
    roster = make(limit=2)
    owed = parcels('a', 'b')
    dead = owed_by(roster, 0, owed)

    failed, _ = roster.bury(dead, [(owed[0], True), (owed[1], False)])

    assert failed == [owed[0]]
    assert dead.window.used == 0


def test_what_may_be_run_again_is_run_once_less() -> None:
    roster = make(limit=2)
    owed = parcels('a', 'b', retries=2)
    dead = owed_by(roster, 0, owed)

    failed, (heir, _) = roster.bury(dead, [(owed[0], True), (owed[1], False)])

    assert failed == []
    assert heir.backlog[0][1].retries == 1
    assert roster.slots[2].backlog[0][1].retries == 2


def test_what_is_addressed_or_finds_no_room_waits_for_the_replacement_in_order() -> None:
    roster = make(slots=2, limit=4)
    owed = parcels('a', number=0) + parcels('b', 'c') + parcels('d', number=0)
    dead = owed_by(roster, 0, owed)
    owed_by(roster, 1, parcels('x', 'y', 'z'))
    later = parcel(b'e')
    dead.backlog.append(later)

    _, moved_to = roster.bury(dead, [(one, False) for one in owed])

    assert list(dead.backlog) == [owed[0], owed[2], owed[3], later]
    assert moved_to == [roster.slots[1]] and list(moved_to[0].backlog) == [owed[1]]
    assert dead.window.used == 3


def test_what_moves_does_not_overtake_who_waits() -> None:
    roster = make(slots=2, limit=3)
    owed = parcels('a')
    dead = owed_by(roster, 0, owed)
    roster.claim(60, 1)
    Line(roster).wait('large', number=1, size=60)

    assert roster.bury(dead, [(owed[0], False)]) == ([], [])

    assert list(dead.backlog) == owed


def test_who_waits_for_any_slot_gets_another_when_it_dies() -> None:
    roster = make(slots=2)
    owed = parcels('a', number=0)
    dead = owed_by(roster, 0, owed)
    line = Line(roster)
    line.wait('any')
    assert line.granted == []

    roster.bury(dead, [(owed[0], False)])

    assert line.granted == ['any']


def test_retained_broadcasts_come_first_the_oldest_first_and_the_last_of_each_key() -> None:
    roster = make(slots=1, limit=2)
    old, new, other = parcels('old', 'new', retain='a') + parcels('other', retain='b')
    for broadcast in (old, other, new):
        roster.retain(broadcast)
    slot = owed_by(roster, 0, parcels('x', 'y'))
    roster.bury(slot, [(one, False) for one in parcels('x', 'y')])

    roster.open(slot)

    assert list(slot.backlog) == [other, new, *parcels('x', 'y')]
    assert slot.window.used == 4


def test_a_retained_broadcast_that_died_with_its_worker_is_not_sent_twice() -> None:
    roster = make(slots=2)
    retained = parcel(b'table', number=0, retain='table')
    roster.retain(retained)
    slot = owed_by(roster, 0, [retained])

    assert roster.bury(slot, [(retained, False)]) == ([], [])
    roster.open(slot)

    assert [data for data, *_ in slot.backlog] == [b'table']
    assert slot.window.used == 1


# Slots that come and go


def test_a_new_slot_takes_part_once_it_is_open() -> None:
    roster = make(slots=2, limit=4)
    added = Slot(2, Window(4, MAX_BYTES))

    roster.add(added)
    assert claims(roster, 3) == [0, 1, 0]

    roster.open(added)
    assert claims(roster, 3) == [1, 2, 0]


def test_a_removed_slot_refuses_who_waits_for_it_and_keeps_what_it_has() -> None:
    roster = make(slots=2, limit=2)
    line = Line(roster)
    removed = roster.slots[1]
    for _ in range(2):
        roster.claim(1, 1)
    line.wait('addressed', number=1)
    error = RuntimeError('gone')

    roster.remove(removed, error)

    assert line.refused == [('addressed', error)]
    assert 1 not in roster and 0 in roster
    assert claims(roster, 2) == [0, 0]
    assert removed.window.used == 2
    failed, moved_to = roster.bury(removed, [(parcel(b'x'), False)])
    assert (failed, moved_to, list(removed.backlog)) == ([], [], [parcel(b'x')])


def test_a_slot_with_a_name_gets_only_what_is_addressed_to_it() -> None:
    roster = make(slots=1, limit=2)
    kitty = Slot(-1, Window(2, MAX_BYTES), 'kitty')
    roster.add(kitty)
    roster.open(kitty)

    assert claims(roster, 3) == [0, 0, None]
    assert roster.claim_least(1) is None
    assert roster.claim(1, 'kitty') is kitty
    assert kitty in roster.everyone and kitty not in roster.slots


def test_who_wants_to_know_is_told_that_a_slot_is_empty() -> None:
    roster = make(slots=1, limit=2)
    told: list[int] = []
    roster.slots[0].on_empty = lambda: told.append(roster.slots[0].window.used)
    claims(roster, 2)

    roster.release(roster.slots[0], 1)
    assert told == []

    roster.release(roster.slots[0], 1)
    assert told == [0]


# Leases


def test_a_leased_slot_belongs_to_its_lease() -> None:
    roster = make(slots=2, limit=2)
    claims(roster, 1)
    line = Line(roster)

    leased = roster.lease(-1)

    assert leased is roster.slots[1]
    assert claims(roster, 2) == [0, None]
    assert roster.claim_least(1) is None
    assert roster.claim(1, 1) is None
    line.wait('stranger', number=1)
    assert [roster.claim(1, -1), roster.claim(1, -1), roster.claim(1, -1)] == [leased, leased, None]
    line.wait('holder', number=-1)
    roster.release(leased, 1)
    assert line.granted == ['holder']

    roster.end_lease(leased, RuntimeError('over'))
    roster.release(leased, 1)
    assert line.granted == ['holder', 'stranger']
    assert -1 not in roster


def test_who_waits_by_a_lease_is_refused_at_its_end() -> None:
    roster = make(slots=1)
    leased = roster.lease(-1)
    assert leased is not None
    roster.claim(1, -1)
    line = Line(roster)
    line.wait('holder', number=-1)
    over = RuntimeError('over')

    roster.end_lease(leased, over)

    assert line.refused == [('holder', over)]


def test_the_lease_is_of_the_open_slot_with_the_fewest_messages() -> None:
    roster = make(slots=3, limit=2)
    roster.bury(roster.slots[0], [])
    roster.claim(1, 1)

    assert [slot and slot.number for slot in map(roster.lease, (-1, -2, -3, -4))] == [2, 1, 0, None]
    assert claims(roster, 1) == [None]


def test_a_lease_at_once_is_of_a_slot_that_has_nothing() -> None:
    roster = make(slots=2, limit=2)
    roster.claim(1, 0)

    assert roster.lease(-1, free=True) is roster.slots[1]
    assert roster.lease(-2, free=True) is None


def test_the_turn_goes_on_around_a_leased_slot() -> None:
    roster = make(slots=3, limit=4)
    roster.claim(1, 0)
    roster.claim(1, 2)
    claims(roster, 1)
    leased = roster.lease(-1)
    assert leased is roster.slots[1]

    assert claims(roster, 2) == [2, 0]

    roster.end_lease(leased, RuntimeError())
    assert claims(roster, 3) == [2, 0, 1]


# Pressure


def test_a_watchful_roster_tells_when_every_slot_is_busy_or_a_claim_fails() -> None:
    told: list[int] = []
    slots = [Slot(number, Window(2, MAX_BYTES)) for number in range(2)]
    roster = WatchfulRoster(slots, 'round_robin', 1, lambda: told.append(roster.slots[0].window.used))
    for slot in slots:
        roster.open(slot)

    roster.claim(1)
    roster.claim(1, 0)
    assert told == []

    roster.claim_least(1)
    assert told == [2]

    assert (roster.claim(1), roster.lease(-1, free=True)) == (slots[1], None)
    assert roster.claim(1) is None
    assert told == [2] * 4
