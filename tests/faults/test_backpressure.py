'''A slow consumer and a fast producer: `put` waits or `Full` is raised, and memory stays flat on both sides.'''

import asyncio
import queue
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from workers import Casualty

import looppool

from .observed import ObservedPool, until

SIZE = 200_000
'''Bytes of each message here.'''
WINDOW = 8
'''Messages of the window, in either direction.'''
FLAT = 24 << 20
'''Bytes that a process may grow: many windows (1.6 MB) and what an allocator keeps, but few of the 200 MB that pass.'''


class HoldingPool(ObservedPool):
    '''Ends no result before it is told to.'''

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{'max_tasks': WINDOW, 'max_results': WINDOW, 'pool_size': 1} | settings)
        self.open: asyncio.Queue[Callable[[], None]] = asyncio.Queue()

    def process_message(self, result: Any, result_done: Callable[[], None]) -> None:
        self.arrived.put_nowait(len(result))
        self.open.put_nowait(result_done)


async def stalled(pool: ObservedPool) -> None:
    '''Wait until nothing moves any more: the results fill their window, and so do the tasks behind them.'''
    await until(lambda: pool.statistics().results_pending == pool.statistics().in_flight == WINDOW)


async def fill(pool: ObservedPool) -> int:
    '''Put without waiting until there is no credit; returns how many.'''
    count = 0
    while True:
        try:
            pool.put_nowait(('echo', bytes(SIZE)))
            count += 1
        except queue.Full:
            if pool.statistics().results_pending == pool.statistics().in_flight == WINDOW:
                return count
            await asyncio.sleep(0.005)


async def test_put_nowait_is_full_and_put_waits(context: str) -> None:
    async with HoldingPool(context=context) as pool:
        # The results of the first window are held; the second one waits in the worker.
        assert await fill(pool) == 2 * WINDOW
        with pytest.raises(looppool.Full) as caught:
            pool.put_nowait(('echo', b'too much'))
        assert isinstance(caught.value, queue.Full)
        assert 'await pool.put(...)' in str(caught.value)
        putting = asyncio.create_task(pool.put(('echo', b'waits')))
        await until(lambda: pool.statistics().waiting == 1)
        (await pool.open.get())()
        await putting
        for _ in range(2 * WINDOW):
            (await pool.open.get())()
        await until(lambda: pool.statistics().in_flight == 0)


async def test_worker_that_floods_is_full(context: str) -> None:
    async with HoldingPool(context=context) as pool:
        pool.put_nowait(('flood', WINDOW + 1, 1))
        _, error = await pool.failure()
        assert isinstance(error, looppool.Full)
        assert 'await self._put(...)' in str(error)
        for _ in range(WINDOW):
            (await pool.open.get())()


async def test_worker_that_floods_patiently_waits(context: str) -> None:
    async with HoldingPool(context=context) as pool:
        pool.put_nowait(('flood_patiently', 3 * WINDOW, 1))
        for _ in range(3 * WINDOW):
            done = await pool.open.get()
            assert pool.statistics().results_pending <= WINDOW
            done()
        await until(lambda: pool.statistics().in_flight == 0)


async def test_window_of_bytes(context: str) -> None:
    async with HoldingPool(context=context, max_tasks=1000, max_results=1000, max_bytes=4 * SIZE + SIZE // 2) as pool:
        for _ in range(4):
            pool.put_nowait(('hold', bytes(SIZE)))
        with pytest.raises(looppool.Full):
            pool.put_nowait(('hold', bytes(SIZE)))
        pool.put_nowait(('echo', b'small'))
        await pool.kill()
        for _ in range(5):
            await pool.failure()


async def test_memory_stays_flat_with_a_slow_consumer(context: str) -> None:
    async with HoldingPool(context=context) as pool:
        passed, sizes = 0, []

        async def produce() -> None:
            while True:
                await pool.put(('echo', bytes(SIZE)))

        producing = asyncio.create_task(produce())
        while passed < 1000:
            await stalled(pool)
            sizes.append(memory(pool))
            for _ in range(WINDOW):
                (await pool.open.get())()
                passed += 1
        producing.cancel()
        await asyncio.wait([producing])
        await pool.kill()
    settled = sizes[len(sizes) // 10 :]
    for process in zip(*settled, strict=True):
        assert max(process) - min(process) < FLAT


async def test_memory_stays_flat_with_a_worker_that_gives_more_than_it_takes(context: str) -> None:
    async with HoldingPool(context=context) as pool:
        pool.put_nowait(('flood_patiently', 1000, SIZE))
        sizes = []
        for number in range(1000):
            if not number % 50:
                await until(lambda: pool.open.qsize() == WINDOW)
                sizes.append(memory(pool))
            (await pool.open.get())()
        await until(lambda: pool.statistics().in_flight == 0)
    for process in zip(*sizes[2:], strict=True):
        assert max(process) - min(process) < FLAT


def memory(pool: ObservedPool) -> tuple[int, ...]:
    '''The resident memory of this process and of the workers, in bytes.'''
    pids = [None, *(member.pid for member in pool.members)]
    return tuple(psutil.Process(pid).memory_info().rss for pid in pids)


async def test_results_that_nobody_takes_stop_the_worker(context: str) -> None:
    '''As above, by the iterator: what is not taken from it is not done.'''
    settings: dict[str, Any] = {'max_tasks': WINDOW, 'max_results': WINDOW, 'context': context}
    async with looppool.Pool[Any, Any](pool_size=1, worker_class=Casualty, **settings) as pool:
        for number in range(2 * WINDOW):
            await pool.put(('echo', number))
        await until(lambda: pool.statistics().results_pending == WINDOW)
        with pytest.raises(looppool.Full):
            pool.put_nowait(('echo', 'too much'))
        results = pool.results()
        assert [await anext(results) for _ in range(2 * WINDOW)] == list(range(2 * WINDOW))
