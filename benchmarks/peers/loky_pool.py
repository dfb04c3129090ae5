'''loky: the executor under joblib, here without its memory maps.'''

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from benchmarks.arrays import Exchange, large_arrays, small_arrays, through
from benchmarks.load import Load, Values

__all__ = ['large', 'small']

_loky: Any = import_module('loky')


def large(load: Load) -> Values:
    '''Measure the speed at which single arrays are submitted.'''
    with _executor(load) as exchange:
        return large_arrays(exchange, load)


def small(load: Load) -> Values:
    '''Measure the arrays submitted a second.'''
    with _executor(load) as exchange:
        return small_arrays(exchange, load)


@contextmanager
def _executor(load: Load) -> Iterator[Exchange]:
    executor = _loky.get_reusable_executor(max_workers=load.workers)
    yield through(executor.submit, Future.result)
    executor.shutdown()
