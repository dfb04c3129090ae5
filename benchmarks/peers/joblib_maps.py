'''joblib: `Parallel` on loky, which writes an array to a file in shared memory and has its worker map it.

It keeps two workers where others have one: with one it runs all in the calling process. It takes an array that it has
seen for the one that it has written, so that each is sent as a view of its own. What comes back goes through a pipe.
'''

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from benchmarks.arrays import Exchange, Function, large_arrays, small_arrays
from benchmarks.load import ARRAYS_IN_FLIGHT, Load, Values

__all__ = ['large', 'small']

_joblib: Any = import_module('joblib')

_LARGE = '64K'
'''Size from which on an array is mapped; the default is not below a MiB.'''


def large(load: Load) -> Values:
    '''Measure the speed at which single arrays are mapped, or mapped there and pickled back.'''
    with _parallel() as exchange:
        return large_arrays(exchange, load)


def small(load: Load) -> Values:
    '''Measure the arrays mapped a second.'''
    with _parallel() as exchange:
        return small_arrays(exchange, load)


@contextmanager
def _parallel() -> Iterator[Exchange]:
    with ExitStack() as stack:
        parallels = {
            in_flight: stack.enter_context(_joblib.Parallel(
                n_jobs=2, batch_size=1, pre_dispatch=in_flight, max_nbytes=_LARGE, return_as='generator'
            ))
            for in_flight in (1, ARRAYS_IN_FLIGHT)
        }

        def exchange(function: Function, arrays: Iterable[Any], in_flight: int) -> Iterator[Any]:
            run = _joblib.delayed(function)
            return parallels[in_flight](run(array.view()) for array in arrays)  # type: ignore[no-any-return]

        yield exchange
