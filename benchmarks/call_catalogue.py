'''Every contender of ``python -m benchmarks calls``; the rules are those of `catalogue`.'''

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.catalogue import HANDLERS, LOOPPOOL, WORKERS, Contender, Section, Sizes, peer
from benchmarks.load import IN_FLIGHT, Load

__all__ = ['CHUNK', 'ORDERS', 'call_sections']

CHUNK = 100
'''Items of a ``map`` that travel together where that is not left to the contender.'''

ORDERS = {True: 'ordered', False: 'unordered'}
'''How the table calls the order of a ``map``.'''


def call_sections(sizes: Sizes) -> list[Section]:
    '''Return all sections, in the order of the table.'''
    return [_calls(sizes), _latency(sizes), _map(sizes), _stream(sizes)]


def _own(name: str, job: str, load: Load) -> Contender:
    return Contender(f'{LOOPPOOL}, {name}', 'benchmarks.calls', job, load)


def _calls(sizes: Sizes) -> Section:
    own = [
        _own(HANDLERS[handlers], 'calls', Load(messages=sizes.messages(100_000), workers=WORKERS, handlers=handlers))
        for handlers in ('plain', 'coroutine')
    ]
    title = f'call, {IN_FLIGHT:,} in flight, 2 workers, calls a second'
    return Section('calls', title, [*own, *_peer_calls(sizes)], looppool=own[0].name)


def _peer_calls(sizes: Sizes) -> Iterator[Contender]:
    jobs = {
        'ProcessPoolExecutor': ('submit', 'calls', 10_000),
        'distex': ('run_async', 'calls', 80_000),
        'xoscar': ('actors', 'throughput', 15_000),
        'ray': ('actors', 'calls', 3_000),
        'dask': ('actors', 'calls', 3_000),
        'tractor': ('actors', 'calls', 5_000),
    }
    for name, (verb, job, full) in jobs.items():
        yield peer(name, job, Load(messages=sizes.messages(full), workers=WORKERS), f', {verb}')


def _latency(sizes: Sizes) -> Section:
    load = Load(messages=sizes.messages(3_000), seconds=3.0)
    own = [
        _own('call', 'latency', load),
        Contender(f'{LOOPPOOL}, message', 'benchmarks.engine', 'latency', load),
        _own('item on an open stream', 'ping_pong', load),
    ]
    names = ('ProcessPoolExecutor', 'multiprocessing.Pool', 'distex', 'xoscar', 'ray', 'dask', 'tractor')
    peers = [peer(name, 'latency', load) for name in names]
    return Section('call-latency', 'one call at a time, 1 worker', [*own, *peers], looppool=own[0].name)


def _map(sizes: Sizes) -> Section:
    load = Load(messages=sizes.messages(1_000_000), workers=WORKERS)
    contenders = [*_own_maps(load), *_peer_maps(load)]
    title = f'map, 2 workers, chunks of {CHUNK} or found by the contender, items a second'
    return Section('map', title, contenders, looppool=contenders[0].name)


def _own_maps(load: Load) -> Iterator[Contender]:
    for chunk in (CHUNK, 0):
        for ordered in (False, True):
            name = f'map, {ORDERS[ordered]}, {f"chunks of {chunk}" if chunk else "automatic chunks"}'
            yield _own(name, 'mapped', _mapping(load, chunk, ordered))


def _peer_maps(load: Load) -> Iterator[Contender]:
    yield peer('multiprocessing.Pool', 'mapped', _mapping(load, CHUNK, False), ', imap_unordered')
    yield peer('multiprocessing.Pool', 'mapped', _mapping(load, CHUNK, True), ', imap')
    yield peer('ProcessPoolExecutor', 'mapped', _mapping(load, CHUNK, True), ', map')
    yield peer('distex', 'mapped', _mapping(load, CHUNK, False), ', map_async, unordered')


def _mapping(load: Load, chunk: int, ordered: bool) -> Load:
    return replace(load, chunk=chunk, ordered=ordered)


def _stream(sizes: Sizes) -> Section:
    contenders = [
        _own(f'stream of a{kind} generator', 'streamed', Load(messages=sizes.messages(500_000), handlers=handlers))
        for kind, handlers in ((' plain', 'plain'), ('n async', 'coroutine'))
    ]
    title = 'stream, 1 worker, default credit, items a second'
    return Section('stream', title, contenders, looppool=contenders[0].name)
