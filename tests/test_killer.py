'''The seeded killer: workers are killed at random moments under load, and what went in comes out exactly once.

Three accounts are kept: what the pool told (done, failed), the results, and a journal that the workers write to where
it outlives them. Every failure shows the seed; ``LOOPPOOL_SEED=...`` runs one again, as far as the moments allow it.
'''

import asyncio
import contextlib
import os
import random
import signal
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import LogGuard

from looppool import Pool, PoolStatistics, Worker, WorkerDied, process, task_done

NUMBER = struct.Struct('<I')
BALLAST = bytes(300_000)
'''More than a socket takes at once, so that a worker may die in the middle of reading or writing it.'''
WORKERS = 4
WINDOW = 64
'''Tasks that a worker may have accepted at once.'''
LOGGED = r'was killed by SIGKILL|worker \d \(pid \w+\) did not start'


class Witness(Worker[Any, Any]):
    '''Writes each task down, works in one of several ways, and gives one result.'''

    def _initialise(self, journal: str) -> None:
        # What is appended in one write stays whole, whoever dies.
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND)

    def _process_message(self, message: Any) -> Any:
        number = number_of(message)
        os.write(self._journal, NUMBER.pack(number))
        match number % 4:
            case 0:
                self._finish(number)
            case 1:
                return self._finish_later(number)
            case 2:
                self._ioloop.add_callback(self._finish, number)
            case 3:
                self._ioloop.call_later(0.001, self._finish, number)
        return None

    async def _finish_later(self, number: int) -> None:
        await asyncio.sleep(0)
        self._finish(number)

    def _finish(self, number: int) -> None:
        self._put_nowait(loaded(number, 1))
        self._task_done()


def loaded(number: int, remainder: int) -> Any:
    '''A number, now and then with ballast.'''
    return (number, BALLAST) if number % 200 == remainder else number


def number_of(message: Any) -> int:
    return message if isinstance(message, int) else message[0]


class Killer:
    '''Kills after a random number of messages and results, until it has killed enough.'''

    def __init__(self, chance: random.Random, kills: int, events: int, victims: Callable[[], list[int]]) -> None:
        self.kills = kills
        self._chance = chance
        self._longest_wait = max(1, events * 2 // (kills + 2))
        self._victims = victims
        self._killed: set[int] = set()
        self._countdown = 0

    @property
    def done(self) -> bool:
        return len(self._killed) == self.kills

    def tick(self) -> None:
        self._countdown -= 1
        if self._countdown > 0 or self.done:
            return
        victims = [pid for pid in self._victims() if pid not in self._killed]
        if victims:
            victim = self._chance.choice(victims)
            os.kill(victim, signal.SIGKILL)
            self._killed.add(victim)
            self._countdown = self._chance.randint(1, self._longest_wait)


class Account:
    '''What became of the tasks.'''

    def __init__(self, pool: Pool[Any, Any]) -> None:
        self.results: Counter[int] = Counter()
        self.failures: dict[int, BaseException] = {}
        self.failed_twice: list[int] = []
        self.statistics: PoolStatistics
        self.killer: Killer
        pool.process_message = self._process_message
        pool.process_failure = self._process_failure

    @task_done
    def _process_message(self, result: Any, _result_done: Callable[[], None]) -> None:
        self.results[number_of(result)] += 1
        self.killer.tick()

    def _process_failure(self, message: Any, error: BaseException) -> None:
        number = number_of(message)
        if number in self.failures:
            self.failed_twice.append(number)
        self.failures[number] = error


async def run(
    context: str, journal: Path, seed: int, tasks: int, kills: int, retries: int = 0, fork_servers: bool = False
) -> Account:
    '''Put `tasks` to a pool while `kills` of its workers, or of the fork servers, are killed.'''
    journal.touch()
    pool: Pool[Any, Any] = Pool(
        pool_size=WORKERS, worker_class=Witness, context=context, options={'journal': str(journal)}, retries=retries,
        max_tasks=WORKERS * WINDOW, max_restarts=10_000, restart_window=0.001, stop_timeout=None,
    )  # fmt: skip
    account = Account(pool)
    chance = random.Random(seed)

    def victims() -> list[int]:
        # Also such that are still starting.
        pids = [member.pid for member in pool.members if member.pid is not None]
        return parents_of(pids) if fork_servers else pids

    account.killer = killer = Killer(chance, kills, 2 * tasks, victims)
    async with pool:
        for number in range(tasks):
            await pool.put(loaded(number, 2), chance.randrange(WORKERS) if chance.random() < 0.1 else None)
            killer.tick()
        while not killer.done or pool.statistics().restarts < kills:
            killer.tick()
            await asyncio.sleep(0)
    account.statistics = pool.statistics()
    return account


def parents_of(pids: list[int]) -> list[int]:
    '''The fork servers of some workers.'''
    parents = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            parents.add(psutil.Process(pid).ppid())
    return sorted(parents & set(process.fork_server_pids()))


@pytest.fixture
def seed(logs: LogGuard) -> int:
    logs.expect(LOGGED)
    return int(os.environ.get('LOOPPOOL_SEED', random.SystemRandom().getrandbits(32)))


def read_journal(journal: Path) -> Counter[int]:
    return Counter(number for (number,) in NUMBER.iter_unpack(journal.read_bytes()))


def check(account: Account, ran: Counter[int], tasks: int) -> None:
    '''Every task was told exactly once, nothing is lost and nothing came twice.'''
    everything = set(range(tasks))
    statistics, failed = account.statistics, account.failures.keys()
    assert not account.failed_twice
    assert (statistics.done, statistics.failed) == (tasks - len(failed), len(failed))
    for error in account.failures.values():
        assert isinstance(error, WorkerDied) and error.started and error.exitcode == -signal.SIGKILL, error
    assert everything - account.results.keys() <= failed <= everything
    assert account.results.keys() <= everything and set(account.results.values()) == {1}
    assert set(ran.values()) == {1}
    assert everything - failed <= ran.keys() <= everything
    # "May have run" is said of what was taken up; the one at which a worker dies may not have got to its first step.
    assert len(failed - ran.keys()) <= statistics.restarts
    assert_balanced(statistics)


def assert_balanced(statistics: PoolStatistics) -> None:
    assert (statistics.in_flight, statistics.bytes, statistics.results_pending) == (0, 0, 0)
    assert statistics.credits == WORKERS * WINDOW


SIZES = {'forkserver': (24_000, 40), 'fork': (5000, 10), 'spawn': (5000, 6)}


async def test_what_went_in_came_out_exactly_once(context: str, seed: int, tmp_path: Path) -> None:
    tasks, kills = SIZES[context]
    print(f'LOOPPOOL_SEED={seed}')
    account = await run(context, tmp_path / 'journal', seed, tasks, kills)
    assert account.statistics.restarts == kills
    check(account, read_journal(tmp_path / 'journal'), tasks)


async def test_what_went_in_came_out_exactly_once_when_fork_servers_are_killed(seed: int, tmp_path: Path) -> None:
    tasks = 10_000
    print(f'LOOPPOOL_SEED={seed}')
    account = await run('forkserver', tmp_path / 'journal', seed, tasks, 4, fork_servers=True)
    check(account, read_journal(tmp_path / 'journal'), tasks)


async def test_with_retries_nothing_fails(context: str, seed: int, tmp_path: Path) -> None:
    tasks, kills = 3000, 5
    print(f'LOOPPOOL_SEED={seed}')
    account = await run(context, tmp_path / 'journal', seed, tasks, kills, retries=kills)
    ran = read_journal(tmp_path / 'journal')
    assert account.statistics.restarts == kills
    assert not account.failures and (account.statistics.done, account.statistics.failed) == (tasks, 0)
    assert account.results.keys() == ran.keys() == set(range(tasks))
    # Only what may have run when a worker died was run again.
    assert sum(ran.values()) - tasks <= kills * WINDOW
    assert_balanced(account.statistics)
