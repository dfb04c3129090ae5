'''What looppool has to reach, as questions to the results of one run.'''

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.catalogue import CEILING, HANDLERS, LOOPPOOL, PEERS
from benchmarks.results import Results

__all__ = ['Target', 'best_of', 'median_of', 'ratio_of', 'ratio_to_best', 'targets']

Measure = Callable[[Results], float | None]

_BARE = f'throughput/{CEILING}'
_OVERLAPPING = f'throughput/{CEILING}, 32 KiB reads'
_ORIGINALS = [f'throughput/Looppool 0.4.0, {kind}' for kind in ('plain, 1 worker', 'plain, 2 workers')]
_LATENCY_PEERS = [f'latency/{name}' for name in PEERS]
_FORKSERVER = 'forkserver, 8 workers'


def _no_note(_results: Results) -> str:
    return ''


@dataclass(frozen=True)
class Target:
    """One thing to reach.

    Args:
        text: what is measured.
        limit: the value to reach, in *unit*.
        measure: takes the value from the results; None when they don't hold it.
        at_least: whether more is better.
        unit: printed after values.
        decimals: printed of a value.
        note: takes what else a reader should know from the results.
    """

    text: str
    limit: float
    measure: Measure
    at_least: bool = False
    unit: str = ''
    decimals: int = 2
    note: Callable[[Results], str] = _no_note

    def reached(self, value: float) -> bool:
        '''Tell whether *value* is good enough.'''
        return value >= self.limit if self.at_least else value <= self.limit

    def as_json(self, results: Results) -> dict[str, object]:
        '''Return the question and its answer, for `json.dump`; ``reached`` is None when nothing was measured.'''
        value = self.measure(results)
        return {'target': self.asked(), 'measured': value, 'reached': None if value is None else self.reached(value)}

    def shown(self, value: float) -> str:
        '''Return *value* with its unit.'''
        return f'{value:,.{self.decimals}f}{self.unit}'

    def asked(self) -> str:
        '''Return what is to be reached, in words.'''
        bound = 'at least' if self.at_least else 'at most'
        return f'{self.text}: {bound} {self.limit:,g}{self.unit}'


def targets() -> list[Target]:
    '''Return all targets, in the order in which they are reported.'''
    return [*_throughput(), *_latency(), *_sleepers(), *_upkeep()]


def _own(handlers: str, workers: int) -> str:
    return f'throughput/{LOOPPOOL}, {HANDLERS[handlers]}, {workers} worker' + ('s' if workers > 1 else '')


def _throughput() -> Iterator[Target]:
    for workers in (1, 2, 4):
        key = _own('plain', workers)
        yield Target(
            f'plain, {workers} worker(s), × ceiling', 0.5, ratio_of(key, 'rate', _BARE),
            at_least=True, unit=' ×', note=_against_overlapping(key),
        )
    for handlers, limit in (('plain', 7), ('coroutine', 4), ('both', 4)):
        for workers in (1, 2, 4):
            key = _own(handlers, workers)
            yield Target(
                f'{HANDLERS[handlers]}, {workers} worker(s), × the best of Looppool 0.4.0', limit,
                ratio_to_best(key, 'rate', _ORIGINALS, largest=True), at_least=True, unit=' ×', decimals=1,
            )


def _latency() -> Iterator[Target]:
    key = f'latency/{LOOPPOOL}'
    yield Target('latency p50, × ceiling', 2, ratio_of(key, 'p50', f'latency/{CEILING}'), unit=' ×')
    yield Target(
        'latency p50, × the best peer', 1, ratio_to_best(key, 'p50', _LATENCY_PEERS, largest=False),
        unit=' ×', note=best_of(_LATENCY_PEERS, 'p50', 1e6, 'µs', largest=False),
    )


def _sleepers() -> Iterator[Target]:
    peers = [f'sleepers/{name}' for name in ('distex, 100 tasks', 'aiomultiprocess, childconcurrency 1000', 'xoscar')]
    yield Target(
        'sleeping tasks', 80_000, median_of(f'sleepers/{LOOPPOOL}', 'rate'), at_least=True, unit='/s', decimals=0,
        note=best_of(peers, 'rate', 1, '/s', largest=True),
    )


def _upkeep() -> Iterator[Target]:
    start, executor = f'start/{LOOPPOOL}, {_FORKSERVER}', f'start/ProcessPoolExecutor, {_FORKSERVER}'
    imports = ratio_of(f'imports/{LOOPPOOL}: import looppool', 'import', 'imports/import tornado.ioloop')
    yield Target('import looppool, × import tornado.ioloop', 1.5, imports, unit=' ×')
    for value, limit in (('cold', 2.5), ('warm', 1.2)):
        text = f'8 workers READY, forkserver, {value}, × ProcessPoolExecutor'
        yield Target(text, limit, ratio_of(start, value, executor), unit=' ×')
    yield Target('CPU of an idle pool of 8', 1, median_of(f'idle/{LOOPPOOL}', 'cpu', 100), unit=' %')
    uss = median_of(f'memory/{LOOPPOOL}, forkserver', 'uss', 1 / 2**20)
    yield Target('USS of an idle worker, forkserver', 12, uss, unit=' MiB', decimals=1)
    for value in ('parent', 'worker'):
        stray = median_of(f'flatness/{LOOPPOOL}', value, 100)
        yield Target(f'memory over the long run, {value}, ±', 10, stray, unit=' %', decimals=1)


def ratio_of(key: str, name: str, other: str, other_name: str | None = None) -> Measure:
    '''Ask for the value *name* of *key*, divided by that of *other*, or by its value *other_name*.'''
    return lambda results: results.ratio(key, name, other, other_name)


def ratio_to_best(key: str, name: str, others: list[str], *, largest: bool) -> Measure:
    '''Ask for the value *name* of *key*, divided by the largest or smallest among the *others* in the same round.'''
    return lambda results: results.ratio_to_best(key, name, others, largest=largest)


def median_of(key: str, name: str, factor: float = 1) -> Measure:
    '''Ask for the value *name* of *key*, times *factor*.'''

    def measure(results: Results) -> float | None:
        median = results.median(key, name)
        return None if median is None else median * factor

    return measure


def _against_overlapping(key: str) -> Callable[[Results], str]:
    def note(results: Results) -> str:
        ratio = results.ratio(key, 'rate', _OVERLAPPING)
        return '' if ratio is None else f'{ratio:.2f} × the echo with 32 KiB reads'

    return note


def best_of(
    keys: list[str], name: str, factor: float, unit: str, *, largest: bool, decimals: int = 0
) -> Callable[[Results], str]:
    '''Note which of the peers *keys* has the largest or smallest median of the value *name*, times *factor*.'''

    def note(results: Results) -> str:
        medians = {key: median for key in keys if (median := results.median(key, name)) is not None}
        if not medians:
            return ''
        key = (max if largest else min)(medians, key=lambda key: medians[key])
        return f'best peer: {key.partition("/")[2]} {medians[key] * factor:,.{decimals}f} {unit}'

    return note
