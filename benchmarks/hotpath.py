'''Where the time of a message goes, in the parent and in the worker.

    python -m benchmarks.hotpath > manual/hotpath.csv

1. CPU time for one message is measured first, without a profiler. Then py-spy samples both processes, native frames
   included, and the shares of the samples cut that time into parts. It has to be installed, and allowed to look into
   other processes.
2. A sample belongs to the innermost frame that says where it is: what pickle allocates is pickle's, what the
   interpreter does for a line of looppool is looppool's.
3. Samples within ``epoll_wait`` are left out: there a process waits.
'''

import asyncio
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import looppool
from benchmarks.engine import Feed
from benchmarks.load import keep_in_flight
from benchmarks.meters import cpu_of
from benchmarks.peers.tasks import echo
from benchmarks.workers import Echo, EchoFromCoroutine

__all__ = ['PARTS', 'main', 'part_of']

PARTS = ('looppool', 'pickle', 'kernel', 'asyncio', 'program')
'''What a message's time is cut into; *kernel* is reading and writing, *program* what uses looppool.'''

_MARKS = {
    'pickle': ('(_pickle', 'pickle.py:'),
    'kernel': ('send (libc', 'recv (libc', 'recvfrom (libc', 'sendto (libc'),
    'program': ('(benchmarks/', '(concurrent/'),
    'looppool': ('(looppool/',),
    'asyncio': ('(asyncio/', '(_asyncio', '(selectors.py:', '(selectmodule', '(tornado/'),
}
'''What the frames of each part have in them, as py-spy writes them.'''

_WAITING = 'epoll_wait (libc'
_RATE, _SECONDS = 500, 6

Pool = looppool.Pool[Any, Any]
Run = Callable[[int], Awaitable[object]]


def _calls(pool: Pool) -> Run:
    return partial(keep_in_flight, partial(pool.call, echo))


def _items(iterate: Callable[[int], Any]) -> Run:
    async def run(count: int) -> None:
        async for _ in iterate(count):
            pass

    return run


_CASES: dict[str, tuple[type[looppool.Worker[Any, Any]], Callable[[Pool], Run], int]] = {
    'message, plain handlers': (Echo, lambda pool: Feed(pool, coroutine=False).run, 100_000),
    'message, coroutine in the worker': (EchoFromCoroutine, lambda pool: Feed(pool, coroutine=False).run, 100_000),
    'call': (looppool.Worker, _calls, 50_000),
    'item of a stream': (looppool.Worker, lambda pool: _items(partial(pool.stream, range)), 200_000),
    'item of map, chunks of 100': (
        looppool.Worker, lambda pool: _items(lambda count: pool.map(echo, range(count), chunksize=100)), 200_000,
    ),
}
'''For each row of the table its worker, what runs, and how many messages at once.'''


def main() -> None:
    '''Measure every case and print the table as CSV.'''
    table = csv.writer(sys.stdout, lineterminator='\n')
    table.writerow(['µs of CPU for one', 'process', 'all', *PARTS])
    for name, (worker_class, make, count) in _CASES.items():
        for process, (seconds, shares) in asyncio.run(_measured(worker_class, make, count)).items():
            parts = [seconds, *(seconds * shares[part] for part in PARTS)]
            table.writerow([name, process, *(f'{part * 1e6:.2f}' for part in parts)])
            sys.stdout.flush()


async def _measured(
    worker_class: type[looppool.Worker[Any, Any]], make: Callable[[Pool], Run], count: int
) -> dict[str, tuple[float, dict[str, float]]]:
    '''Return the CPU seconds for one message and the share of each part, for parent and worker.'''
    pool = Pool(pool_size=1, worker_class=worker_class)
    async with pool:
        run, pids = make(pool), {'parent': os.getpid(), 'worker': pool.members[0].pid or 0}
        await run(count)
        before = {name: cpu_of([pid]) for name, pid in pids.items()}
        for _ in range(5):
            await run(count)
        seconds = {name: (cpu_of([pid]) - before[name]) / (5 * count) for name, pid in pids.items()}
        return {name: (seconds[name], shares) for name, shares in (await _sampled(run, count, pids)).items()}


async def _sampled(run: Run, count: int, pids: dict[str, int]) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        profilers = [_profiler(pid, Path(folder) / name) for name, pid in pids.items()]
        deadline = time.monotonic() + 10 * _SECONDS
        while any(profiler.poll() is None for profiler in profilers) and time.monotonic() < deadline:
            await run(count)
        for profiler in profilers:
            if profiler.wait(1.0):
                raise RuntimeError(f'py-spy ended with exit code {profiler.returncode}')
        return {name: _shares((Path(folder) / name).read_text().splitlines()) for name in pids}


def _profiler(pid: int, file: Path) -> 'subprocess.Popen[bytes]':
    command = [
        str(Path(sys.executable).with_name('py-spy')), 'record', '--native', '--format', 'raw', '--rate', str(_RATE),
        '--duration', str(_SECONDS), '--output', str(file), '--pid', str(pid),
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _shares(stacks: Iterable[str]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for line in stacks:
        stack, _, samples = line.rpartition(' ')
        part = part_of(stack.split(';'))
        if part is not None:
            counts[part] += int(samples)
    return {part: counts[part] / counts.total() for part in PARTS}


def part_of(frames: list[str]) -> str | None:
    '''Return the part that a stack belongs to, given from the outermost frame; None if it only waits.'''
    if _WAITING in frames[-1]:
        return None
    for frame in reversed(frames):
        for part, marks in _MARKS.items():
            if any(mark in frame for mark in marks):
                return part
    return 'program'


if __name__ == '__main__':
    main()
