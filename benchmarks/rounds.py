"""Running every contender once in each round.

Rules:

1. Sections run one after the other, so that what is compared runs within seconds of each other.
2. The contenders of a section start one place further in every round, so that none always runs first, or always after
   the same one's heat.
3. A contender that fails costs its own row and nothing else; one that isn't installed is not tried again.
"""

import time
from collections.abc import Callable, Sequence

from benchmarks.catalogue import Contender, Section
from benchmarks.processes import Failed, NotInstalled, run
from benchmarks.results import Outcome, Results

__all__ = ['run_rounds']

Report = Callable[[str], None]


def run_rounds(sections: Sequence[Section], rounds: int, results: Results, report: Report) -> None:
    '''Run *rounds* rounds and add what they measured to *results*.

    Args:
        sections: what to run.
        rounds: how many times.
        results: filled as runs end, so it holds what was measured when an interrupt ends this function early.
        report: takes one line for each run.
    '''
    missing: set[str] = set()
    for number in range(rounds):
        for section in sections:
            for contender in _rotated(section.contenders, number):
                if contender.module in missing or (contender.once and number):
                    continue
                before = time.monotonic()
                outcome = _run(contender, missing)
                key = section.key_of(contender)
                results.add(key, number, outcome)
                report(f'{number + 1}/{rounds} {time.monotonic() - before:5.1f} s  {key}: {_brief(outcome)}')


def _rotated(contenders: Sequence[Contender], places: int) -> list[Contender]:
    first = places % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def _run(contender: Contender, missing: set[str]) -> Outcome:
    try:
        return run(contender.module, contender.job, contender.load, contender.timeout)
    except NotInstalled as error:
        missing.add(contender.module)
        return str(error)
    except Failed as error:
        return str(error)


def _brief(outcome: Outcome) -> str:
    if isinstance(outcome, str):
        return outcome
    return ', '.join(f'{name} {value:.6g}' for name, value in outcome.items())
