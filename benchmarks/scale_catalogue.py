'''Every row of ``python -m benchmarks scale``; the rules are those of `catalogue`.

Here no row is compared with a peer: each section is a curve, whose first row the others are set against.
'''

from benchmarks.catalogue import LOOPPOOL, Contender, Section, Sizes
from benchmarks.load import Load

__all__ = ['IN_FLIGHT_COUNTS', 'WORKER_COUNTS', 'scale_sections']

WORKER_COUNTS = [1, 2, 4, 8, 16, 32, 64]
'''On two cores.'''

IN_FLIGHT_COUNTS = [10**exponent for exponent in range(7)]

_TIMEOUT = 120.0
'''Seconds for a row; the one with a million coroutines that wait takes some forty.'''


def scale_sections(sizes: Sizes) -> list[Section]:
    '''Return all sections, in the order of the table; with a smaller scale, their largest rows are left out.'''
    return [
        _workers('workers', 'tasks that take no time', 'plain', 200_000, sizes),
        _workers('busy', 'tasks that take 1 ms of CPU', 'busy', 3_000, sizes),
        _in_flight('in-line', 'tasks in flight that wait in line, 1 worker', 'plain', sizes),
        _in_flight('begun', 'tasks in flight that have begun and wait, 1 worker', 'coroutine', sizes),
    ]


def _workers(key: str, title: str, handlers: str, full: int, sizes: Sizes) -> Section:
    contenders = [
        Contender(
            f'{LOOPPOOL}, {count} worker' + 's' * (count > 1), 'benchmarks.scale', 'workers',
            Load(messages=sizes.messages(full), workers=count, handlers=handlers), timeout=_TIMEOUT,
        )
        for count in _within(WORKER_COUNTS, sizes)
    ]
    return Section(key, f'{title}, by the number of workers', contenders, looppool=contenders[0].name)


def _in_flight(key: str, title: str, handlers: str, sizes: Sizes) -> Section:
    contenders = [
        Contender(
            f'{LOOPPOOL}, {count:,} in flight', 'benchmarks.scale', 'in_flight',
            Load(messages=sizes.messages(min(100_000, 10_000 * count)), handlers=handlers, in_flight=count),
            timeout=_TIMEOUT,
        )
        for count in _within(IN_FLIGHT_COUNTS, sizes)
    ]
    return Section(key, title, contenders, looppool=contenders[0].name)


def _within(counts: list[int], sizes: Sizes) -> list[int]:
    return counts if sizes.scale >= 1 else counts[:3]
