'''What the contenders measured, round by round, and the medians and ratios over the rounds.

A ratio is taken within each round, between runs a few seconds apart, and the median of those is the result: the speed
of a shared machine changes more from minute to minute than most contenders differ.
'''

import statistics
from collections.abc import Iterable

from benchmarks.load import Values

__all__ = ['Outcome', 'Results']

Outcome = Values | str
'''The values of one run, or why there are none.'''


class Results:
    '''Outcomes by contender and round.'''

    def __init__(self) -> None:
        self._outcomes: dict[str, dict[int, Outcome]] = {}

    def add(self, key: str, number: int, outcome: Outcome) -> None:
        '''Keep the *outcome* of the contender *key* in round *number*.'''
        self._outcomes.setdefault(key, {})[number] = outcome

    def names(self, key: str) -> list[str]:
        '''Return the names of the values that *key* measured.'''
        return list(dict.fromkeys(name for values in self._measured(key).values() for name in values))

    def failures(self, key: str) -> list[str]:
        '''Return why runs of *key* gave no values.'''
        return [outcome for outcome in self._outcomes.get(key, {}).values() if isinstance(outcome, str)]

    def samples(self, key: str, name: str) -> dict[int, float]:
        '''Return the values *name* of *key* by round.'''
        return {number: values[name] for number, values in self._measured(key).items() if name in values}

    def median(self, key: str, name: str) -> float | None:
        '''Return the median of `samples`, or None where there are none.'''
        return _median(self.samples(key, name).values())

    def ratio(self, key: str, name: str, other: str, other_name: str | None = None) -> float | None:
        """Return the median over the rounds of *key*'s value divided by *other*'s, or None where no round has both."""
        samples, others = self.samples(key, name), self.samples(other, other_name or name)
        return _median(samples[number] / others[number] for number in samples if others.get(number))

    def ratio_to_best(self, key: str, name: str, others: Iterable[str], *, largest: bool) -> float | None:
        '''Like `ratio`, to the largest or smallest value that one of the *others* reached in the same round.'''
        samples = self.samples(key, name)
        rivals = [self.samples(other, name) for other in others]
        best = {
            number: (max if largest else min)(rival[number] for rival in rivals if number in rival)
            for number in samples
            if any(number in rival for rival in rivals)
        }
        return _median(samples[number] / best[number] for number in best)

    def as_json(self) -> dict[str, dict[str, Outcome]]:
        '''Return everything that was added, for `json.dump`.'''
        return {
            key: {str(number): _plain(outcome) for number, outcome in outcomes.items()}
            for key, outcomes in self._outcomes.items()
        }

    def _measured(self, key: str) -> dict[int, Values]:
        outcomes = self._outcomes.get(key, {})
        return {number: outcome for number, outcome in outcomes.items() if not isinstance(outcome, str)}


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None


def _plain(outcome: Outcome) -> Outcome:
    return outcome if isinstance(outcome, str) else dict(outcome)
