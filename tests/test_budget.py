'''The restart budget: how often, how soon, and what is forgotten.'''

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looppool.budget import RestartBudget


def test_restarts_come_at_once_then_ever_later() -> None:
    budget = RestartBudget(12, 100.0)

    delays = [budget.spend(0.0) for _ in range(12)]

    assert delays[:4] == [0.0, 0.05, 0.1, 0.2]
    assert delays == sorted(delays)
    assert delays[-1] == budget.longest_delay


@pytest.mark.parametrize('limit', [0, 1, 3])
def test_more_than_the_limit_are_too_many(limit: int) -> None:
    budget = RestartBudget(limit, 5.0)

    assert None not in [budget.spend(1.0) for _ in range(limit)]
    assert budget.spend(6.0) is None


def test_what_was_longer_ago_than_the_window_counts_no_more() -> None:
    budget = RestartBudget(2, 5.0)
    budget.spend(0.0)
    budget.spend(4.0)

    assert budget.spend(5.1) == 0.05
    assert budget.spend(5.2) is None
    assert budget.spend(20.0) == 0.0


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 3.0), max_size=30), st.integers(0, 4))
def test_no_window_ever_holds_more_restarts_than_the_limit(gaps: list[float], limit: int) -> None:
    budget, now, granted = RestartBudget(limit, 5.0), 0.0, []

    for gap in gaps:
        now += gap
        if budget.spend(now) is not None:
            granted.append(now)
            assert sum(now - time <= 5.0 for time in granted) <= limit
        else:
            assert sum(now - time <= 5.0 for time in granted) == limit
