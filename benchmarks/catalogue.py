"""Every contender of ``python -m benchmarks messages``: what runs, and how much of it.

Rules:

1. A section's contenders are compared with each other, so they run next to each other in every round.
2. Counts differ between contenders of one section only so that each runs for about a second: a rate or a percentile
   doesn't depend on them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from benchmarks.load import Load

__all__ = ['CEILING', 'HANDLERS', 'LOOPPOOL', 'PEERS', 'WORKERS', 'Contender', 'Section', 'Sizes', 'peer', 'sections']

CEILING = 'bare echo'
'''The ceiling of throughput and latency.'''

LOOPPOOL = 'looppool'
'''What the name of each of looppool's own rows starts with, and of no other row.'''

HANDLERS = {'plain': 'plain', 'coroutine': 'coroutine', 'both': 'coroutines both sides'}
'''How the table calls the kinds of handlers of a `Load`.'''

PEERS = {
    'Looppool 0.4.0': 'original',
    'ProcessPoolExecutor': 'executor',
    'multiprocessing.Pool': 'process_pool',
    'multiprocessing.Queue echo': 'queues',
    'distex': 'distex_pool',
    'aiomultiprocess': 'aiomultiprocess_pool',
    'xoscar': 'xoscar_pool',
}
'''Modules in `benchmarks.peers` by the peer's name.'''

_CALL_PEERS = {'ray': 'ray_actors', 'dask': 'dask_actors', 'tractor': 'tractor_actors'}
'''Modules of those that have calls, but no messages.'''

_PAYLOAD_PEERS = {
    'multiprocessing.Pipe': 'pipes',
    'multiprocessing.shared_memory': 'shared_blocks',
    'loky': 'loky_pool',
    'joblib': 'joblib_maps',
    'pyzmq': 'zeromq',
}
'''Modules of those that are measured with arrays only.'''

WORKERS = 2
'''Workers of a peer, of looppool where it is compared with them: what two cores suggest.'''


@dataclass(frozen=True)
class Contender:
    '''One row of the table, or several where its job measures several values.

    Args:
        name: as it is printed, unique in its section.
        module: where its job is.
        job: name of a function there.
        load: what it is asked to do.
        once: run in the first round only.
        timeout: seconds until it is killed.
    '''

    name: str
    module: str
    job: str
    load: Load
    once: bool = False
    timeout: float = 60.0


@dataclass(frozen=True)
class Section:
    """Contenders that are compared with each other.

    Args:
        key: what ``--only`` matches, together with the contender's name.
        title: what is measured.
        contenders: in the order of the first round.
        ceiling: name of the contender that the first ratio refers to.
        looppool: name of the contender that the second ratio refers to.
    """

    key: str
    title: str
    contenders: list[Contender] = field(default_factory=list)
    ceiling: str | None = None
    looppool: str | None = None

    def key_of(self, contender: Contender) -> str:
        '''Return the name under which the results of *contender* are kept.'''
        return f'{self.key}/{contender.name}'


@dataclass(frozen=True)
class Sizes:
    '''How much is measured.

    Args:
        scale: share of the messages that a full run puts; 1 for a run that is to be judged by.
        idle: seconds for which an idle pool is watched.
        flat: tasks of the run that shows whether memory stays flat.
    '''

    scale: float = 1.0
    idle: float = 10.0
    flat: int = 1_000_000

    def messages(self, full: int) -> int:
        '''Return how many of *full* messages to put, at least a hundred.'''
        return max(100, int(full * self.scale))


def sections(sizes: Sizes) -> list[Section]:
    '''Return all sections, in the order of the table.'''
    return [
        _throughput(sizes),
        _latency(sizes),
        _sleepers(sizes),
        _start(),
        _imports(),
        _memory(),
        _idle(sizes),
        _flatness(sizes),
    ]


def peer(name: str, job: str, load: Load, suffix: str = '') -> Contender:
    '''Return a row of the peer *name*, which *suffix* tells from others of it.'''
    return Contender(name + suffix, f'benchmarks.peers.{(PEERS | _CALL_PEERS | _PAYLOAD_PEERS)[name]}', job, load)


def _workers(count: int) -> str:
    return f'{count} worker' if count == 1 else f'{count} workers'


def _throughput(sizes: Sizes) -> Section:
    bare = Load(messages=sizes.messages(400_000))
    contenders = [
        Contender(CEILING, 'benchmarks.ceiling', 'throughput', bare),
        *chain.from_iterable(_own_throughput(workers, sizes) for workers in (1, 2, 4)),
        Contender(f'{CEILING}, 32 KiB reads', 'benchmarks.ceiling', 'throughput_overlapping', bare),
        *_original_throughput(sizes),
        *_peer_throughput(sizes),
    ]
    return Section(
        'throughput', 'put → result, messages a second', contenders,
        ceiling=CEILING, looppool=f'{LOOPPOOL}, plain, {_workers(WORKERS)}',
    )


def _own_throughput(workers: int, sizes: Sizes) -> Iterator[Contender]:
    for handlers, full in (('plain', 300_000), ('coroutine', 200_000), ('both', 200_000)):
        load = Load(messages=sizes.messages(full), workers=workers, handlers=handlers)
        name = f'{LOOPPOOL}, {HANDLERS[handlers]}, {_workers(workers)}'
        yield Contender(name, 'benchmarks.engine', 'throughput', load)


def _original_throughput(sizes: Sizes) -> Iterator[Contender]:
    for handlers, workers in (('plain', 1), ('plain', 2), ('coroutine', 2)):
        load = Load(messages=sizes.messages(40_000), workers=workers, handlers=handlers)
        yield peer('Looppool 0.4.0', 'throughput', load, f', {HANDLERS[handlers]}, {_workers(workers)}')


def _peer_throughput(sizes: Sizes) -> Iterator[Contender]:
    counts = {
        'ProcessPoolExecutor': 10_000,
        'multiprocessing.Pool': 40_000,
        'multiprocessing.Queue echo': 60_000,
        'distex': 60_000,
        'aiomultiprocess': 40_000,
        'xoscar': 15_000,
    }
    for name, full in counts.items():
        workers = 1 if name == 'multiprocessing.Queue echo' else WORKERS
        load = Load(messages=sizes.messages(full), workers=workers)
        yield peer(name, 'throughput', load, f', {_workers(workers)}')


def _latency(sizes: Sizes) -> Section:
    load = Load(messages=sizes.messages(3_000), seconds=3.0)
    contenders = [
        Contender(CEILING, 'benchmarks.ceiling', 'latency', load),
        Contender(LOOPPOOL, 'benchmarks.engine', 'latency', load),
        *(peer(name, 'latency', load) for name in PEERS),
    ]
    return Section('latency', 'one message at a time, 1 worker', contenders, CEILING, LOOPPOOL)


def _sleepers(sizes: Sizes) -> Section:
    load = Load(messages=sizes.messages(20_000), workers=WORKERS)
    few = Load(messages=100, workers=WORKERS)
    contenders = [
        Contender(LOOPPOOL, 'benchmarks.engine', 'sleepers', load),
        peer('Looppool 0.4.0', 'sleepers', load),
        peer('distex', 'sleepers', few, ', 100 tasks'),
        peer('aiomultiprocess', 'sleepers', load, ', childconcurrency 1000'),
        peer('xoscar', 'sleepers', load),
    ]
    title = f'{load.messages:,} tasks that each sleep 50 ms, 2 workers, tasks a second'
    return Section('sleepers', title, contenders, looppool=LOOPPOOL)


def _start() -> Section:
    contenders = [
        Contender(f'{LOOPPOOL}, {context}, {workers} workers', 'benchmarks.upkeep', 'start', load)
        for workers in (2, 8)
        for context in ('fork', 'forkserver', 'spawn')
        for load in [Load(workers=workers, context=context)]
    ]
    executor = peer('ProcessPoolExecutor', 'start', Load(workers=8), ', forkserver, 8 workers')
    # Next to the row that it is compared with.
    contenders.insert(-1, executor)
    title = 'start until READY, of an executor until each worker has run a task'
    return Section('start', title, contenders, looppool=f'{LOOPPOOL}, forkserver, 8 workers')


def _imports() -> Section:
    contenders = [
        Contender('import tornado.ioloop', 'benchmarks.imports', 'tornado', Load()),
        Contender(f'{LOOPPOOL}: import looppool', 'benchmarks.imports', 'looppool', Load()),
    ]
    return Section('imports', 'import, in fresh interpreters', contenders, looppool=contenders[1].name)


def _memory() -> Section:
    contenders = [
        Contender(f'{LOOPPOOL}, {context}', 'benchmarks.upkeep', 'idle_memory', Load(workers=2, context=context))
        for context in ('fork', 'forkserver', 'spawn')
    ]
    contenders.append(peer('ProcessPoolExecutor', 'idle_memory', Load(workers=2), ', forkserver'))
    title = 'memory of an idle worker, the largest of 2'
    return Section('memory', title, contenders, looppool=f'{LOOPPOOL}, forkserver')


def _idle(sizes: Sizes) -> Section:
    load = Load(workers=8, seconds=sizes.idle)
    contender = Contender(LOOPPOOL, 'benchmarks.upkeep', 'idle_cpu', load, timeout=60.0 + sizes.idle)
    title = f'CPU of parent, workers and helpers, 8 idle workers, {sizes.idle:g} s, share of one core'
    return Section('idle', title, [contender], looppool=LOOPPOOL)


def _flatness(sizes: Sizes) -> Section:
    load = Load(messages=sizes.flat, workers=WORKERS)
    contender = Contender(LOOPPOOL, 'benchmarks.upkeep', 'flatness', load, once=True, timeout=600.0)
    title = f'RSS over {sizes.flat:,} tasks with a slow consumer, furthest from its median (one run)'
    return Section('flatness', title, [contender], looppool=LOOPPOOL)
