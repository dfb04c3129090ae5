'''`multiprocessing.Pool`.'''

import multiprocessing
from collections import deque
from multiprocessing.pool import AsyncResult, Pool

from benchmarks.arrays import Exchange, large_arrays, small_arrays, through
from benchmarks.load import Load, Values, rate, sampled
from benchmarks.peers.tasks import echo

__all__ = ['large', 'latency', 'mapped', 'small', 'throughput']


def throughput(load: Load) -> Values:
    '''Measure the results a second of ``imap_unordered`` with one message a chunk.'''
    with multiprocessing.get_context(load.context).Pool(load.workers) as pool:
        return rate(lambda count: deque(pool.imap_unordered(echo, range(count)), maxlen=0), load)


def mapped(load: Load) -> Values:
    '''Measure the items a second of ``imap`` or ``imap_unordered`` with ``load.chunk`` items a chunk.'''
    with multiprocessing.get_context(load.context).Pool(load.workers) as pool:
        imap = pool.imap if load.ordered else pool.imap_unordered
        return rate(lambda count: deque(imap(echo, range(count), load.chunk), maxlen=0), load)


def latency(load: Load) -> Values:
    '''Measure one message at a time, in seconds.'''
    with multiprocessing.get_context(load.context).Pool(load.workers) as pool:
        return sampled(lambda message: pool.apply(echo, (message,)), load)


def large(load: Load) -> Values:
    '''Measure the speed at which single arrays are applied to.'''
    with multiprocessing.get_context(load.context).Pool(load.workers) as pool:
        return large_arrays(_exchange(pool), load)


def small(load: Load) -> Values:
    '''Measure the arrays applied to a second.'''
    with multiprocessing.get_context(load.context).Pool(load.workers) as pool:
        return small_arrays(_exchange(pool), load)


def _exchange(pool: Pool) -> Exchange:
    return through(lambda function, array: pool.apply_async(function, (array,)), AsyncResult.get)
