'''The killer's companion: all that a pool can be asked, cancelled at random, while its workers come, go and die.

Each thing that was accepted ends once, with the right value or one of the documented errors. A journal that the workers
write to where it outlives them tells what ran, and how often. Then the pool works, every permit is back, and the books
of the workers are empty. Every failure shows the seed; ``LOOPPOOL_SEED=...`` runs one again, as far as the moments
allow it.
'''

import asyncio
import contextlib
import gc
import os
import pickle
import random
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from faults.observed import LIMIT, kill, until

import looppool
from looppool import Member, Pool, Worker, task_done

NUMBER = struct.Struct('<I')
CLIENTS = 12
WINDOW = 16
'''Tasks that a worker may have accepted at once: few, so that some wait.'''
ENDINGS = (
    looppool.WorkerDied, looppool.WorkerStartError, looppool.TaskInterrupted, looppool.RemoteError,
    asyncio.CancelledError,
)  # fmt: skip
'''How what was asked may end, if not with its value: its worker died, or did not start, it was interrupted, it was
cancelled there, by ``Member.stop``, or here.'''
LOGGED = r'was killed by SIGKILL|did not start|failed after it was cancelled|raised after its task was done'


class Witness(Worker[int, int]):
    '''Writes each task down, and gives one result.'''

    def _initialise(self, journal: str) -> None:
        HERE.append(self)
        # What is appended in one write stays whole, whoever dies.
        self.journal = os.open(journal, os.O_WRONLY | os.O_APPEND)

    @task_done
    async def _process_message(self, number: int) -> None:
        note(number)
        if number % 2:
            await asyncio.sleep(0.001)
        self._put_nowait(number)


HERE: list[Witness] = []


def note(number: int) -> None:
    os.write(HERE[0].journal, NUMBER.pack(number))


def plain(number: int) -> int:
    note(number)
    return number


async def waits(number: int) -> int:
    note(number)
    await asyncio.sleep(number % 5 * 0.001)
    return number


def blocks(number: int) -> int:
    note(number)
    time.sleep(0.003)
    return number


def counts(number: int, count: int) -> Iterator[int]:
    note(number)
    yield from range(count)


async def echoes(stream: Any, number: int) -> int:
    note(number)
    async for item in stream:
        await stream.send(item)
    return number


class Image:
    '''Lies where pickle has found its buffer.'''

    def __init__(self, buffer: Any) -> None:
        self.pixels = memoryview(buffer)

    def __reduce_ex__(self, _protocol: Any) -> tuple[type['Image'], tuple[pickle.PickleBuffer]]:
        return Image, (pickle.PickleBuffer(self.pixels),)

    def fill(self, value: int) -> None:
        self.pixels[:] = bytes([value]) * len(self.pixels)

    def is_full_of(self, value: int) -> bool:
        return self.pixels == bytes([value]) * len(self.pixels)


def fills(number: int, image: Image, value: int) -> Image:
    note(number)
    image.fill(value)
    return image


def images(number: int, count: int, size: int) -> Iterator[Image]:
    note(number)
    for index in range(count):
        yield Image(bytes([index]) * size)


def squared(value: int) -> int:
    return value * value


def books() -> list[int]:
    '''How much is open in this worker, beside the call of this function.'''
    main = HERE[0]._main
    end = main._end
    ends: tuple[Any, ...] = (end.exchanges, end.asks, main._pending, main._relayed, main._relays)
    return [len(main._open) - 1, *map(len, ends), len(main._callee._unbegun), len(main._callee._runner.waiting)]


def lent() -> int:
    '''How much this worker has sent that is not given back.'''
    gc.collect()
    return len(HERE[0]._main._end.lent)


class Clients:
    '''Ask for things until enough was asked, and keep account.'''

    def __init__(self, pool: Pool[int, int], chance: random.Random, count: int) -> None:
        self.pool = pool
        self.chance = chance
        self.left = count
        self.numbers = 0
        self.ended: Counter[str] = Counter()
        '''How often each verb has ended, and how.'''
        self.returned: set[int] = set()
        '''What has run to its end, and so ran once.'''
        self.put: set[int] = set()
        self.results: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self.wrong: list[BaseException] = []
        pool.process_message = self._on_result
        pool.process_failure = self._on_failure

    @task_done
    def _on_result(self, number: int, _result_done: Any) -> None:
        self.results[number] += 1

    def _on_failure(self, number: int, error: BaseException) -> None:
        self.failures[number] += 1
        if not isinstance(error, ENDINGS):
            self.wrong.append(error)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    async def client(self) -> None:
        verbs = [
            self.puts, self.calls, self.calls, self.streams, self.exchanges, self.maps, self.reserves, self.larges
        ]  # fmt: skip
        while self.left > 0:
            self.left -= 1
            await self.ask(self.chance.choice(verbs))

    async def ask(self, verb: Callable[[], Awaitable[None]]) -> None:
        '''Ask for something, and perhaps cancel it soon.'''
        asked = asyncio.ensure_future(verb())
        if self.chance.random() < 0.25:
            await asyncio.wait([asked], timeout=self.chance.choice([0, 0.001, 0.005, 0.02]))
            asked.cancel()
        name = verb.__name__
        done, _ = await asyncio.wait([asked], timeout=25)
        assert done, f'{name} does not end: {asked}'
        try:
            await asked
        except ENDINGS as error:
            self.ended[f'{name}: {type(error).__name__}'] += 1
        except ValueError as error:
            assert 'has left' in str(error), error
        else:
            self.ended[name] += 1

    def whom(self) -> Any:
        '''The pool, or one of its workers.'''
        members = [*self.pool.members, *self.pool.named.values()]
        return self.pool if self.chance.random() < 0.6 else self.chance.choice(members)

    async def puts(self) -> None:
        for _ in range(self.chance.randint(1, 5)):
            number = self.number()
            await self.whom().put(number)
            self.put.add(number)

    async def calls(self) -> None:
        number = self.number()
        assert await self.whom().call(self.chance.choice([plain, waits, blocks]), number) == number
        self.returned.add(number)

    async def streams(self) -> None:
        number, count = self.number(), self.chance.choice([0, 5, 3000])
        leave_at = self.chance.choice([None, 0, 1500])
        seen = 0
        async with contextlib.aclosing(self.whom().stream(counts, number, count)) as items:
            async for item in items:
                assert item == seen
                seen += 1
                if item == leave_at:
                    return
        assert seen == count
        self.returned.add(number)

    async def larges(self) -> None:
        number, size = self.number(), self.chance.choice([100, 70_000, 300_000])
        image = Image(bytearray(size))
        # Kept for a while, beside what comes next.
        filled = await self.whom().call(fills, number, image, number % 256)
        self.returned.add(number)
        second, index = self.number(), 0
        async for one in self.whom().stream(images, second, 30, size):
            assert one.is_full_of(index)
            index += 1
        assert index == 30
        self.returned.add(second)
        assert image.is_full_of(0)
        assert filled.is_full_of(number % 256)

    async def exchanges(self) -> None:
        number, count = self.number(), self.chance.choice([0, 3, 1500])

        async def send() -> None:
            with contextlib.suppress(looppool.StreamClosed):
                for item in range(count):
                    await stream.send(item)
            stream.end()

        async with self.whom().open_stream(echoes, number) as stream:
            sending = asyncio.ensure_future(send())
            try:
                assert [item async for item in stream] == list(range(count))
                assert await stream.result() == number
            finally:
                sending.cancel()
        self.returned.add(number)

    async def maps(self) -> None:
        count = self.chance.choice([3, 300])
        values = [value async for value in self.whom().map(squared, range(count))]
        assert values == [number * number for number in range(count)]

    async def reserves(self) -> None:
        number = self.number()
        async with self.pool.reserve() as lease:
            assert await lease.call(waits, number) == number
            self.returned.add(number)
            if self.chance.random() < 0.2:
                raise asyncio.CancelledError


async def wreak(pool: Pool[int, int], clients: Clients, chance: random.Random) -> None:
    '''Do to workers what may be done to them, for ever; on a slow machine no more of it than elsewhere.'''

    async def murder(member: Member) -> None:
        kill(member.pid)

    async def interrupt(member: Member) -> None:
        for _ in range(5):
            member.interrupt()
            await asyncio.sleep(0)

    async def resize(_member: Member) -> None:
        await pool.resize(chance.randint(1, 4))

    async def spawn(_member: Member) -> None:
        if len(pool.named) < 2:
            await pool.spawn(f'kitty {chance.random()}')

    deeds: list[Callable[[Member], Awaitable[None]]] = [
        murder, interrupt, interrupt, resize, spawn, lambda member: member.kill(), lambda member: member.stop(0.02)
    ]  # fmt: skip
    while True:
        # One that is just starting would never get to its end under so much fire.
        ready = [member for member in [*pool.members, *pool.named.values()] if member.state == 'ready']
        if not ready:
            await asyncio.sleep(0.01)
            continue
        member = chance.choice(ready)
        with contextlib.suppress(TimeoutError, looppool.WorkerStartError):
            async with asyncio.timeout(chance.random() * 0.5):
                await chance.choice(deeds)(member)
                await asyncio.sleep(chance.random() * 0.1)
        due = max(0, clients.left - chance.randint(0, 5))
        while clients.left > due:
            await asyncio.sleep(0.005)


async def assert_sound(pool: Pool[int, int]) -> None:
    '''The pool works, every permit is back, and nobody has anything open.'''
    await until(lambda: all(member.state == 'ready' for member in pool.everybody()) and not pool._leaving)
    await until(lambda: pool.statistics().in_flight == 0)
    everybody = [*pool.members, *pool.named.values()]
    for member in everybody:
        open_there = await member.call(books)
        assert not any(open_there), open_there
        # What ended with an error may be kept by its traceback, in a circle.
        async with asyncio.timeout(LIMIT):
            while await member.call(lent) or member.link.end.lent:
                gc.collect()
    statistics = pool.statistics()
    assert (statistics.in_flight, statistics.bytes, statistics.results_pending, statistics.waiting) == (0, 0, 0, 0)
    assert statistics.credits == len(everybody) * WINDOW
    assert not pool._lessees and all(slot.lease is None for slot in pool._roster.everyone)
    assert all(not member.link.end.calls and not member.link.end.owed for member in everybody if member.link)


SIZES = {'forkserver': 1200, 'fork': 800, 'spawn': 300}


def make_pool(context: str, journal: Path) -> Pool[int, int]:
    journal.touch()
    return Pool(
        pool_size=None, min_size=2, max_size=4, idle_ttl=None, worker_class=Witness, context=context,
        options={'journal': str(journal)}, max_tasks=4 * WINDOW, cancel_grace=0.05, max_restarts=10_000,
        restart_window=0.001,
    )  # fmt: skip


async def besiege(pool: Pool[int, int], clients: Clients, chance: random.Random) -> None:
    '''Have the clients ask for all that they are to ask for, under fire.'''
    havoc = [asyncio.ensure_future(wreak(pool, clients, chance)) for _ in range(2)]
    await asyncio.gather(*[clients.client() for _ in range(CLIENTS)])
    for one in havoc:
        one.cancel()
    await asyncio.wait(havoc)
    await assert_sound(pool)


@pytest.mark.timeout(180)  # a worker that is killed takes seconds to be replaced where many tests run at once
async def test_whatever_is_asked_ends_once(context: str, logs: LogGuard, tmp_path: Path) -> None:
    logs.expect(LOGGED)
    seed = int(os.environ.get('LOOPPOOL_SEED', random.SystemRandom().getrandbits(32)))
    print(f'LOOPPOOL_SEED={seed}')
    chance, journal = random.Random(seed), tmp_path / 'journal'
    pool = make_pool(context, journal)
    clients = Clients(pool, chance, SIZES[context])
    async with pool:
        await besiege(pool, clients, chance)
    print(sorted(clients.ended.items()))
    check(clients, read_journal(journal))


def read_journal(journal: Path) -> Counter[int]:
    return Counter(number for (number,) in NUMBER.iter_unpack(journal.read_bytes()))


def check(clients: Clients, ran: Counter[int]) -> None:
    assert not clients.wrong
    assert set(ran.values()) == {1}, 'something ran twice'
    assert clients.returned <= ran.keys()
    assert set(clients.results.values()) | set(clients.failures.values()) <= {1}
    # A put that was cancelled may have been accepted already; a task that has put its result may have died then.
    assert clients.put <= clients.results.keys() | clients.failures.keys()
