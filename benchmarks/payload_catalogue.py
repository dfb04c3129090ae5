'''Every contender of ``python -m benchmarks payloads``; the rules are those of `catalogue`.'''

from collections.abc import Iterator

from benchmarks.catalogue import LOOPPOOL, Contender, Section, Sizes, peer
from benchmarks.load import ARRAYS_IN_FLIGHT, Load

__all__ = ['BROADCAST_WORKERS', 'COPY', 'PIPES', 'TRANSPORTS', 'payload_sections']

COPY = 'numpy.copyto'
'''The ceiling of arrays.'''

PIPES = ('multiprocessing.Pipe', 'multiprocessing.Pool', 'ProcessPoolExecutor', 'loky')
'''The peers whose arrays go through a pipe as part of a pickle.'''

TRANSPORTS = ('pyzmq', 'joblib', 'multiprocessing.shared_memory', 'ray')
'''The peers that keep arrays out of the pickle, or out of the pipe.'''

BROADCAST_WORKERS = 8
'''Workers that keep the same array.'''

_MIB = 1 << 20


def payload_sections(sizes: Sizes) -> list[Section]:
    '''Return all sections, in the order of the table.'''
    return [_large(sizes), _small(sizes), _broadcast(sizes), _share(sizes)]


def _seconds(sizes: Sizes) -> float:
    return max(0.2, sizes.scale)


def _payload(sizes: Sizes, full: int) -> int:
    '''Return as many bytes as *full* MiB are, or a share of them where nothing is to be judged.'''
    return max(1, round(full * sizes.scale)) * _MIB


def _large(sizes: Sizes) -> Section:
    load = Load(messages=100, payload=_payload(sizes, 64), seconds=_seconds(sizes))
    contenders = [
        Contender(COPY, 'benchmarks.copies', 'large', load),
        Contender(LOOPPOOL, 'benchmarks.payloads', 'large', load),
        *(peer(name, 'large', load) for name in (*PIPES, *TRANSPORTS)),
    ]
    title = f'array of {load.payload // _MIB} MiB, one at a time, 1 worker: looked at there, and there and back'
    return Section('large', title, contenders, COPY, LOOPPOOL)


def _small(sizes: Sizes) -> Section:
    contenders = [
        Contender(COPY, 'benchmarks.copies', 'small', _small_load(sizes, 5_000)),
        Contender(LOOPPOOL, 'benchmarks.payloads', 'small', _small_load(sizes, 1_000)),
        *_peer_small(sizes),
    ]
    title = f'array of 1 MiB, looked at there, 1 worker, arrays a second: one at a time, {ARRAYS_IN_FLIGHT} in flight'
    return Section('small', title, contenders, COPY, LOOPPOOL)


def _small_load(sizes: Sizes, full: int) -> Load:
    return Load(messages=sizes.messages(full), payload=_MIB)


def _peer_small(sizes: Sizes) -> Iterator[Contender]:
    counts = {
        'multiprocessing.Pipe': 600,
        'multiprocessing.Pool': 300,
        'ProcessPoolExecutor': 300,
        'loky': 300,
        'pyzmq': 2_000,
        'joblib': 200,
        'multiprocessing.shared_memory': 4_000,
        'ray': 1_000,
    }
    for name, full in counts.items():
        yield peer(name, 'small', _small_load(sizes, full))


def _broadcast(sizes: Sizes) -> Section:
    load = Load(messages=max(1, int(3 * sizes.scale)), workers=BROADCAST_WORKERS, payload=_payload(sizes, 256))
    contender = Contender(LOOPPOOL, 'benchmarks.payloads', 'broadcast', load, timeout=180.0)
    size = f'{load.payload // _MIB} MiB'
    title = f'array of {size} that workers keep: put to one, broadcast to {load.workers}, and memory for all of those'
    return Section('broadcast', title, [contender], looppool=LOOPPOOL)


def _share(sizes: Sizes) -> Section:
    load = Load(messages=sizes.messages(3_000), seconds=_seconds(sizes))
    contender = Contender(f'{LOOPPOOL}, shared.share', 'benchmarks.shares', 'share', load)
    title = 'one call at a time, 1 worker: p50 with a number, and with shared arrays'
    return Section('share', title, [contender], looppool=contender.name)
