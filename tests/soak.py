'''The soak: mixed load under the seeded killer for half an hour, with one pool that lives all through it.

    python tests/soak.py --minutes 30

1. In each round the clients of `test_mixed_killer` ask that pool for all that can be asked, while its workers are
   killed, interrupted, come and go. Then `test_killer` has its turn with a pool of its own, under each context in turn,
   so that also pools come and go. The accounts of both are checked: what went in came out, exactly once.
2. Between two rounds nothing is under way, so the parent and the fork servers have to have what they had: as many
   descriptors, threads and processes, all permits, and about as much memory. Segments are kept for the next large
   message, for some seconds; there have to be about as many.
3. What fails, fails at once, with the seed; ``LOOPPOOL_SEED=...`` runs it again, as far as the moments allow it.
'''

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import platform
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import test_killer
import test_mixed_killer
from conftest import CONTEXTS, LogGuard
from faults.observed import until

from looppool import Pool, process

WARM_UP = len(CONTEXTS)
'''Rounds after which every fork server runs and whatever is made once has been made.'''
SEGMENT = '/memfd:looppool (deleted)'
'''What the descriptor of a segment refers to.'''
ROUND_LIMIT = 240.0
'''Seconds for one round, which takes some ten.'''
TELL_EVERY = 60.0
'''Seconds.'''
FEWEST = 40
'''Rounds, of which the first tenth is left out, that memory can be judged by: it takes some to find its level.'''
GROWTH = 0.1
'''How much more memory there may be towards the end than towards the beginning, as a share.'''
SLACK = 4 << 20
'''So many bytes more are none too many in any case.'''
SEGMENTS_SLACK = 10
'''So many segments likewise.'''


@dataclasses.dataclass(frozen=True)
class Sample:
    '''What there is between two rounds; sizes in bytes.'''

    memory: int
    server_memory: int
    segments: int
    counts: dict[str, int]
    '''Of other descriptors, threads and processes.'''


class Soak:
    '''One run.

    :param asked: how many things are asked for in a round.
    '''

    def __init__(self, folder: Path, seed: int, asked: int, guard: LogGuard) -> None:
        self.total: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self._folder = folder
        self._asked = asked
        self._chance = random.Random(seed)
        self._guard = guard
        self._logged = guard.expect(f'{test_mixed_killer.LOGGED}|{test_killer.LOGGED}')
        self._numbers = 0

    async def run(self, seconds: float) -> None:
        '''Go through rounds until the time is over, but through some in any case.'''
        begin = told = time.monotonic()
        journal = self._folder / 'mixed'
        pool = test_mixed_killer.make_pool('forkserver', journal)
        async with pool:
            while time.monotonic() - begin < seconds or len(self.samples) <= WARM_UP:
                async with asyncio.timeout(ROUND_LIMIT):
                    await self._round(pool, journal)
                if time.monotonic() >= told + TELL_EVERY:
                    told = time.monotonic()
                    print(f'{told - begin:5.0f} s: {self.told()}', flush=True)
        self.total['restarts'] += pool.statistics().restarts

    def told(self) -> str:
        '''How far it is, on one line.'''
        last = self.samples[-1]
        sizes = f'parent {last.memory / 2**20:.1f} MiB, fork servers {last.server_memory / 2**20:.1f} MiB'
        rounds = f'{self.total["rounds"]} rounds, {self.total["killed"]:,} killed'
        return f'{rounds}, {sizes}, {last.segments} segments, {last.counts}'

    async def _round(self, pool: Pool[int, int], journal: Path) -> None:
        await self._mixed(pool, journal)
        await self._tasks(CONTEXTS[len(self.samples) % len(CONTEXTS)])
        self.total['rounds'] += 1
        self.total['killed'] += sum('SIGKILL' in line for line in self._logged)
        self._logged.clear()
        assert not self._guard.unexpected, self._guard.unexpected
        await calm(pool)
        self.samples.append(sample())
        check_counts(self.samples)

    async def _mixed(self, pool: Pool[int, int], journal: Path) -> None:
        clients = test_mixed_killer.Clients(pool, self._chance, self._asked)
        clients.numbers = self._numbers
        await test_mixed_killer.besiege(pool, clients, self._chance)
        ran = test_mixed_killer.read_journal(journal)
        test_mixed_killer.check(clients, ran)
        assert min(ran) > self._numbers, 'something ran a round too late'
        os.truncate(journal, 0)
        self._numbers = clients.numbers
        self.total['tasks'] += len(clients.put)
        for ending, count in clients.ended.items():
            self.total[ending.partition(':')[0]] += count
            self.total['ended early'] += count * (':' in ending)

    async def _tasks(self, context: str) -> None:
        tasks, kills = 2 * self._asked, max(1, self._asked // 500)
        journal = self._folder / 'tasks'
        account = await test_killer.run(context, journal, self._chance.getrandbits(32), tasks, kills)
        test_killer.check(account, test_killer.read_journal(journal), tasks)
        journal.unlink()
        self.total['tasks'] += tasks
        self.total['restarts'] += account.statistics.restarts


async def calm(pool: Pool[int, int]) -> None:
    '''Bring the pool back to its smallest size.'''
    for member in list(pool.named.values()):
        await member.stop()
    await pool.resize(2)
    await until(lambda: not pool._leaving)
    await test_mixed_killer.assert_sound(pool)


def sample() -> Sample:
    gc.collect()
    own = psutil.Process()
    descriptors = targets_of_descriptors()
    segments = sum(target == SEGMENT for target in descriptors)
    servers = [psutil.Process(pid) for pid in process.fork_server_pids()]
    return Sample(
        own_memory(own),
        sum(map(own_memory, servers)),
        segments,
        {
            'descriptors': len(descriptors) - segments,
            'descriptors of fork servers': sum(server.num_fds() for server in servers),
            'threads': own.num_threads(),
            'processes': len(own.children(recursive=True)),
        },
    )


def own_memory(process: psutil.Process) -> int:
    '''What is resident, without files and segments that are mapped.'''
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def targets_of_descriptors() -> list[str]:
    '''What the descriptors of this process refer to.'''
    found = []
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(FileNotFoundError):  # the one of the listing itself
            found.append(os.readlink(f'/proc/self/fd/{name}'))
    return found


def check_counts(samples: Sequence[Sample]) -> None:
    '''What can be counted is as it was after the warm-up.'''
    if len(samples) > WARM_UP:
        assert samples[-1].counts == samples[WARM_UP - 1].counts, (samples[-1], samples[WARM_UP - 1])


def check_flat(name: str, sizes: Sequence[int], slack: int) -> tuple[float, float]:
    '''Something has not grown; returns its medians over the first and the last quarter, the warm-up left out.'''
    flat = sizes[max(WARM_UP, len(sizes) // 10):]
    quarter = max(1, len(flat) // 4)
    first, last = statistics.median(flat[:quarter]), statistics.median(flat[-quarter:])
    if len(sizes) >= FEWEST:
        assert last <= max(first * (1 + GROWTH), first + slack), f'{name} grew from {first:,.0f} to {last:,.0f}'
    return first, last


def main() -> None:
    parser = argparse.ArgumentParser(description='Mixed load under the seeded killer.')
    parser.add_argument('--minutes', type=float, default=30.0, help='for how long (default: %(default)g)')
    parser.add_argument('--asked', type=int, default=3000, help='things asked for in a round (default: %(default)d)')
    options = parser.parse_args()
    seed = int(os.environ.get('LOOPPOOL_SEED', random.SystemRandom().getrandbits(32)))
    print(f'LOOPPOOL_SEED={seed}, Python {platform.python_version()}', flush=True)
    guard = LogGuard()
    logging.getLogger().addHandler(guard)
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), seed, options.asked, guard)
        asyncio.run(soak.run(options.minutes * 60))
    print_summary(soak)


def print_summary(soak: Soak) -> None:
    print(', '.join(f'{name} {count:,}' for name, count in soak.total.items()))
    for name, count in soak.samples[-1].counts.items():
        print(f'{name}: {count}, as at the beginning')
    for name, field in (('the parent', 'memory'), ('the fork servers', 'server_memory')):
        first, last = check_flat(f'memory of {name}', [getattr(each, field) for each in soak.samples], SLACK)
        print(f'memory of {name}: {first / 2**20:.1f} MiB in the first quarter, {last / 2**20:.1f} MiB in the last')
    first, last = check_flat('the number of segments', [each.segments for each in soak.samples], SEGMENTS_SLACK)
    print(f'segments: {first:g} in the first quarter, {last:g} in the last')


if __name__ == '__main__':
    main()
