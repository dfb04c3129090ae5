'''Two `multiprocessing.Queue` and one process that echoes: what many pools are made of.'''

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue

from benchmarks.load import WINDOW, Load, Values, rate, sampled
from benchmarks.peers.serving import beside

__all__ = ['latency', 'throughput']

Queues = tuple['Queue[int | None]', 'Queue[int | None]']


def throughput(load: Load) -> Values:
    '''Measure the messages echoed a second with `WINDOW` of them in flight.'''
    with _echoing(load) as (tasks, results):

        def run(count: int) -> None:
            window = min(count, WINDOW)
            for message in range(window):
                tasks.put(message)
            for message in range(window, count):
                results.get()
                tasks.put(message)
            for _ in range(window):
                results.get()

        return rate(run, load)


def latency(load: Load) -> Values:
    '''Measure one message at a time, in seconds.'''
    with _echoing(load) as (tasks, results):

        def once(message: int) -> None:
            tasks.put(message)
            results.get()

        return sampled(once, load)


@contextmanager
def _echoing(load: Load) -> Iterator[Queues]:
    context = multiprocessing.get_context(load.context)
    tasks: Queue[int | None] = context.Queue()
    results: Queue[int | None] = context.Queue()
    with beside(load, _echo, tasks, results):
        yield tasks, results
        tasks.put(None)


def _echo(tasks: 'Queue[int | None]', results: 'Queue[int | None]') -> None:
    while (message := tasks.get()) is not None:
        results.put(message)
