'''What the calls of looppool have to reach, as questions to the results of one run.'''

from collections.abc import Iterator

from benchmarks.call_catalogue import CHUNK, ORDERS
from benchmarks.catalogue import HANDLERS, LOOPPOOL
from benchmarks.targets import Target, median_of, ratio_of

__all__ = ['call_targets']

_PLAIN = f'calls/{LOOPPOOL}, {HANDLERS["plain"]}'
_CALL = f'call-latency/{LOOPPOOL}, call'
_IMAP_UNORDERED = 'map/multiprocessing.Pool, imap_unordered'


def call_targets() -> list[Target]:
    '''Return all targets, in the order in which they are reported.'''
    return [*_calls(), *_latency(), *_map(), *_stream()]


def _calls() -> Iterator[Target]:
    for name, limit in (('ProcessPoolExecutor, submit', 10), ('distex, run_async', 1.5)):
        ratio = ratio_of(_PLAIN, 'rate', f'calls/{name}')
        yield Target(f'call, plain, × {name}', limit, ratio, at_least=True, unit=' ×')
    coroutine = ratio_of(f'calls/{LOOPPOOL}, {HANDLERS["coroutine"]}', 'rate', _PLAIN)
    yield Target('call, coroutine, × plain', 0.6, coroutine, at_least=True, unit=' ×')


def _latency() -> Iterator[Target]:
    message = ratio_of(_CALL, 'p50', f'call-latency/{LOOPPOOL}, message')
    yield Target('one call at a time, p50, × one message', 1.3, message, unit=' ×')
    stream = ratio_of(f'call-latency/{LOOPPOOL}, item on an open stream', 'p50', _CALL)
    yield Target('one item at a time on an open stream, p50, × call', 1.5, stream, unit=' ×')


def _map() -> Iterator[Target]:
    for chunks, limit in ((f'chunks of {CHUNK}', 1.0), ('automatic chunks', 0.8)):
        for order in (ORDERS[False], ORDERS[True]):
            ratio = ratio_of(f'map/{LOOPPOOL}, map, {order}, {chunks}', 'rate', _IMAP_UNORDERED)
            yield Target(f'map, {order}, {chunks}, × imap_unordered', limit, ratio, at_least=True, unit=' ×')


def _stream() -> Iterator[Target]:
    rate = median_of(f'stream/{LOOPPOOL}, stream of a plain generator', 'rate')
    yield Target('stream', 300_000, rate, at_least=True, unit='/s', decimals=0)
