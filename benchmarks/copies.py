'''`numpy.copyto` in one process, into memory that was touched before: the ceiling of payloads.'''

from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import cycle
from typing import Any

from benchmarks.arrays import Exchange, Function, blank, large_arrays, small_arrays
from benchmarks.load import ARRAYS_IN_FLIGHT, Load, Values

__all__ = ['large', 'small']

_numpy: Any = import_module('numpy')


def large(load: Load) -> Values:
    '''Measure the speed of one copy, and of a copy there and another back, in bytes of an array a second.'''
    return large_arrays(_exchange(load, 1), load)


def small(load: Load) -> Values:
    '''Measure the copies a second of one array to one place, and of many to as many.'''
    return small_arrays(_exchange(load, ARRAYS_IN_FLIGHT), load)


def _exchange(load: Load, most: int) -> Exchange:
    targets = [blank(load.payload) for _ in range(most)]
    home = blank(load.payload)

    def exchange(function: Function, arrays: Iterable[Any], in_flight: int) -> Iterator[Any]:
        for array, target in zip(arrays, cycle(targets[:in_flight]), strict=False):
            _numpy.copyto(target, array)
            answer = function(target)
            if answer is target:
                _numpy.copyto(home, target)
                answer = home
            yield answer

    return exchange
