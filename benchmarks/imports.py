'''Import times, in fresh interpreters.'''

import statistics
import subprocess
import sys

from benchmarks.load import Load, Values

__all__ = ['looppool', 'tornado']

_REPEATS = 5
_PROGRAM = 'import time; before = time.perf_counter(); import {}; print(time.perf_counter() - before)'


def looppool(load: Load) -> Values:
    '''Measure ``import looppool``, in seconds.'''
    return {'import': _median('looppool', load)}


def tornado(load: Load) -> Values:
    '''Measure ``import tornado.ioloop``, in seconds.'''
    return {'import': _median('tornado.ioloop', load)}


def _median(module: str, load: Load) -> float:
    _once(module, load)  # writes the bytecode, and brings it into memory
    return statistics.median(_once(module, load) for _ in range(_REPEATS))


def _once(module: str, load: Load) -> float:
    command = [sys.executable, '-P', '-c', _PROGRAM.format(module)]
    return float(subprocess.run(command, capture_output=True, check=True, timeout=10 * load.seconds).stdout)
