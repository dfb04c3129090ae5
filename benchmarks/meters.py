'''Memory and CPU time of processes, for a look from outside.'''

import sys
import time
from collections.abc import Collection, Iterable

import psutil

from benchmarks.load import Values

__all__ = ['cpu_of', 'cpu_of_tree', 'mean_uss', 'memory', 'pss_of_tree']


def memory(pids: Iterable[int]) -> Values:
    '''Return USS and PSS, in bytes, of the process among *pids* whose USS is largest.'''
    largest = max((psutil.Process(pid).memory_full_info() for pid in pids), key=lambda info: int(info.uss))
    return {'uss': largest.uss, 'pss': largest.pss}


def mean_uss(pids: Collection[int]) -> float:
    '''Return the USS, in bytes, that the processes *pids* have on average.'''
    return sum(psutil.Process(pid).memory_full_info().uss for pid in pids) / len(pids)


def cpu_of(pids: Iterable[int]) -> float:
    '''Return the CPU seconds used so far by the processes *pids*.'''
    return sum(_cpu(psutil.Process(pid)) for pid in pids)


def cpu_of_tree() -> float:
    '''Return the CPU seconds used so far by this process and all its descendants.'''
    return sum(_cpu(process) for process in _tree())


def pss_of_tree() -> int:
    '''Return the PSS, in bytes, of this process and all its descendants: what they share counts once.'''
    return sum(int(process.memory_full_info().pss) for process in _tree())


def _tree() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    if sys.platform == 'linux':
        # The kernel's CPU clock of another process, in nanoseconds; /proc only counts ticks of 10 ms, of which an idle
        # worker may not use one.
        return time.clock_gettime((~process.pid << 3) | 2)
    times = process.cpu_times()
    return float(times.user + times.system)
