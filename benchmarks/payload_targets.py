"""What looppool's large arrays have to reach, as questions to the results of one run.

The fastest of some peers is, in each round, the one with the most arrays a second in just the load of looppool's row:
one at a time, or as many in flight. Who is so many times as fast in both, is so in comparison with the best figure of
each.
"""

from collections.abc import Iterator

from benchmarks.catalogue import LOOPPOOL
from benchmarks.load import ARRAYS_IN_FLIGHT
from benchmarks.payload_catalogue import BROADCAST_WORKERS, COPY, PIPES, TRANSPORTS
from benchmarks.targets import Target, best_of, median_of, ratio_of, ratio_to_best

__all__ = ['payload_targets']

_LARGE = f'large/{LOOPPOOL}'
_SMALL = f'small/{LOOPPOOL}'
_BROADCAST = f'broadcast/{LOOPPOOL}'
_SHARE = f'share/{LOOPPOOL}, shared.share'


def payload_targets() -> list[Target]:
    '''Return all targets, in the order in which they are reported.'''
    return [*_large(), *_small(), *_broadcast(), *_share()]


def _large() -> Iterator[Target]:
    peers = [f'large/{name}' for name in (*PIPES, *TRANSPORTS)]
    for value, text, limit in (('one way', 'one way', 0.8), ('back', 'there and back', 0.4)):
        ratio = ratio_of(_LARGE, value, f'large/{COPY}', 'one way')
        note = best_of(peers, value, 1 / 2**30, 'GiB/s', largest=True, decimals=2)
        yield Target(f'64 MiB, {text}, × one {COPY}', limit, ratio, at_least=True, unit=' ×', note=note)


def _small() -> Iterator[Target]:
    pipes = [f'small/{name}' for name in PIPES]
    others = [f'small/{name}' for name in TRANSPORTS]
    for value, text in (('single', 'one at a time'), ('many', f'{ARRAYS_IN_FLIGHT} in flight')):
        ratio = ratio_to_best(_SMALL, value, pipes, largest=True)
        note = best_of([*pipes, *others], value, 1, '/s', largest=True)
        yield Target(f'1 MiB, {text}, × the fastest pipe', 3, ratio, at_least=True, unit=' ×', note=note)


def _broadcast() -> Iterator[Target]:
    time = ratio_of(_BROADCAST, 'to all', _BROADCAST, 'send')
    yield Target(f'256 MiB broadcast to {BROADCAST_WORKERS} workers, × put to one', 2, time, unit=' ×')
    copies = median_of(_BROADCAST, 'copies')
    yield Target(f'PSS growth by {BROADCAST_WORKERS} workers that hold it, × one copy', 1.1, copies, unit=' ×')


def _share() -> Iterator[Target]:
    for size in ('1 MiB', '64 MiB'):
        for small, text in (('small array', 'call with 64 bytes of array'), ('small', 'call with a number')):
            ratio = ratio_of(_SHARE, size, _SHARE, small)
            yield Target(f'call with a shared array of {size}, p50, × {text}', 1.5, ratio, unit=' ×')
