"""The table, and the list of targets below it.

Rules:

1. A row's value is the median over the rounds; beside it the lowest and the highest of them.
2. A ratio is the row's value divided by the reference's; for rates and speeds more is better, for all else less is.
3. A contender without values has a row too, which says why.
"""

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.catalogue import Contender, Section
from benchmarks.results import Results
from benchmarks.targets import Target

__all__ = ['UNITS', 'table', 'verdicts']

UNITS = {
    'rate': ('/s', 1.0, 0),
    'p50': ('µs', 1e6, 1),
    'p99': ('µs', 1e6, 1),
    'cold': ('ms', 1e3, 0),
    'warm': ('ms', 1e3, 0),
    'import': ('ms', 1e3, 1),
    'parent cpu': ('s/100k', 1e5, 3),
    'workers cpu': ('s/100k', 1e5, 3),
    'start': ('ms', 1e3, 0),
    'stop': ('ms', 1e3, 0),
    'uss': ('MiB', 1 / 2**20, 1),
    'parent uss': ('MiB', 1 / 2**20, 1),
    'pss': ('MiB', 1 / 2**20, 1),
    'cpu': ('%', 100.0, 2),
    'parent': ('%', 100.0, 1),
    'worker': ('%', 100.0, 1),
    'one way': ('GiB/s', 1 / 2**30, 2),
    'back': ('GiB/s', 1 / 2**30, 2),
    'single': ('/s', 1.0, 0),
    'many': ('/s', 1.0, 0),
    'send': ('ms', 1e3, 1),
    'to all': ('ms', 1e3, 1),
    'copies': ('×', 1.0, 2),
    'small': ('µs', 1e6, 1),
    'small array': ('µs', 1e6, 1),
    '1 MiB': ('µs', 1e6, 1),
    '64 MiB': ('µs', 1e6, 1),
}
'''Of each value's name: the unit printed, the factor from the unit measured (seconds, bytes, shares), decimals.

Rates and speeds are measured in messages or bytes a second, copies in copies.
'''

_WIDTHS = (46, 13, 16, 25, 11, 12)
_HEADINGS = ('', 'value', 'median', 'lowest … highest', '× ceiling', '× looppool')


def table(sections: Sequence[Section], results: Results) -> str:
    '''Return the table of all *results* as text.'''
    lines = [_line(_HEADINGS), '─' * sum(_WIDTHS)]
    for section in sections:
        lines.append(section.title)
        for contender in section.contenders:
            lines.extend(_rows(section, contender, results))
    return '\n'.join(lines)


def verdicts(targets: Iterable[Target], results: Results) -> str:
    '''Return a line for each target: what it asks for, what was measured, and whether that reaches it.'''
    return '\n'.join(_verdict(target, results) for target in targets)


def _rows(section: Section, contender: Contender, results: Results) -> Iterator[str]:
    key = section.key_of(contender)
    label = f'  {contender.name}'
    for name in results.names(key):
        yield _row(section, key, name, label, results)
        label = ''
    for reason, runs in _counted(results.failures(key)).items():
        yield _line((label, '', reason if runs == 1 else f'{reason} ({runs} runs)'))
        label = ''


def _row(section: Section, key: str, name: str, label: str, results: Results) -> str:
    samples = results.samples(key, name).values()
    spread = f'{_number(min(samples), name)} … {_number(max(samples), name)}'
    median = results.median(key, name)
    assert median is not None
    ratios = (
        _ratio(results.ratio(key, name, f'{section.key}/{reference}') if reference else None)
        for reference in (section.ceiling, section.looppool)
    )
    return _line((label, name, f'{_number(median, name)} {UNITS[name][0]}', spread, *ratios))


def _number(value: float, name: str) -> str:
    _, factor, decimals = UNITS[name]
    return f'{value * factor:,.{decimals}f}'


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return '–'
    return f'{ratio:.2f}' if ratio < 100 else f'{ratio:.0f}'


def _line(cells: Sequence[str]) -> str:
    first, second, *others = cells
    text = f'{first:<{_WIDTHS[0]}}{second:<{_WIDTHS[1]}}'
    if len(others) == 1:
        return text + others[0]
    return (text + ''.join(f'{cell:>{width}}' for cell, width in zip(others, _WIDTHS[2:], strict=True))).rstrip()


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def _verdict(target: Target, results: Results) -> str:
    measured = target.measure(results)
    if measured is None:
        verdict, value = 'not measured', '–'
    else:
        verdict = 'reached' if target.reached(measured) else 'MISSED'
        value = target.shown(measured)
    note = target.note(results)
    return f'{verdict:<13}{value:>14}  {target.asked()}' + (f'  ({note})' if note else '')
