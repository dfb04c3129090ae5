'''`concurrent.futures.ProcessPoolExecutor`.'''

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier

from benchmarks.arrays import large_arrays, small_arrays, through
from benchmarks.load import IN_FLIGHT, Load, Values, rate, sampled, windowed
from benchmarks.peers.tasks import echo

__all__ = ['calls', 'idle_memory', 'large', 'latency', 'mapped', 'small', 'start', 'throughput']

_barrier: Barrier | None = None


def throughput(load: Load) -> Values:
    '''Measure the results a second of one future per message.'''
    with _pool(load) as pool:
        return rate(lambda count: deque(pool.map(echo, range(count)), maxlen=0), load)


def calls(load: Load) -> Values:
    '''Measure the calls of ``submit`` answered a second, `IN_FLIGHT` of them at once.'''
    with _pool(load) as pool:

        def run(count: int) -> None:
            answers = windowed(lambda message: pool.submit(echo, message), Future.result, range(count), IN_FLIGHT)
            deque(answers, maxlen=0)

        return rate(run, load)


def mapped(load: Load) -> Values:
    '''Measure the items a second of ``map`` with ``load.chunk`` items a chunk.'''
    with _pool(load) as pool:
        return rate(lambda count: deque(pool.map(echo, range(count), chunksize=load.chunk), maxlen=0), load)


def latency(load: Load) -> Values:
    '''Measure one message at a time, in seconds.'''
    with _pool(load) as pool:
        return sampled(lambda message: pool.submit(echo, message).result(), load)


def large(load: Load) -> Values:
    '''Measure the speed at which single arrays are submitted.'''
    with _pool(load) as pool:
        return large_arrays(through(pool.submit, Future.result), load)


def small(load: Load) -> Values:
    '''Measure the arrays submitted a second.'''
    with _pool(load) as pool:
        return small_arrays(through(pool.submit, Future.result), load)


def start(load: Load) -> Values:
    '''Measure the seconds until each worker has run one task, in a fresh process and once more.'''
    return {'cold': _start(load), 'warm': _start(load)}


def idle_memory(load: Load) -> Values:
    '''Measure the memory of the largest idle worker, in bytes.'''
    from benchmarks.meters import memory  # not at the top: the workers would import it too

    with _started(load) as (_, pids):
        time.sleep(1.0)
        return memory(pids)


def _pool(load: Load) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(load.workers, multiprocessing.get_context(load.context))


@contextmanager
def _started(load: Load) -> Iterator[tuple[float, list[int]]]:
    """Start an executor; yield the seconds until each worker has run one task, and the workers' pids."""
    before = time.perf_counter()
    context = multiprocessing.get_context(load.context)
    barrier = context.Barrier(load.workers)
    with ProcessPoolExecutor(load.workers, context, _remember, (barrier,)) as pool:
        pids = [future.result() for future in [pool.submit(_meet) for _ in range(load.workers)]]
        yield time.perf_counter() - before, pids


def _start(load: Load) -> float:
    with _started(load) as (seconds, _):
        return seconds


def _remember(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _meet() -> int:
    '''Wait for the tasks of all other workers, so that no worker runs two of them; return the pid.'''
    assert _barrier is not None
    _barrier.wait(60)
    return os.getpid()
