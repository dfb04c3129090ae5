'''A pool that grows under a burst and shrinks again, beside a worker with a name; and a lease.

One worker is enough for most of the day. When a burst comes, the pool starts more, up to four, and lets them go when
they have been idle for a while. The worker `ledger` takes no part in that: it keeps its state as long as the pool
lives. What happens is told by the pool's events.
'''

import asyncio
import time

import looppool


class Render(looppool.Worker[int, str]):
    '''Takes its time for a page.'''

    @looppool.task_done
    async def _process_message(self, page: int) -> None:
        await asyncio.sleep(0.1)
        self._put_nowait(f'page {page} by worker {self._number}')


class Ledger(looppool.Worker[str, str]):
    '''Counts what it is told.'''

    def _initialise(self) -> None:
        self._entries: list[str] = []

    @looppool.task_done
    def _process_message(self, entry: str) -> None:
        self._entries.append(entry)
        self._put_nowait(f'entry {len(self._entries)} of the ledger: {entry}')


async def tell(events: looppool.events.Events) -> None:
    async for event in events:
        if event.kind == 'resized':
            print(f'the size of the pool is {event.size}')
        elif event.kind in ('ready', 'stopped') and event.number is not None:
            print(f'worker {event.name or event.number} {"is ready" if event.kind == "ready" else "has left"}')


async def main() -> None:
    # Each worker has one page in hand and one in reserve. What is not accepted yet goes to whoever comes.
    pool = looppool.Pool(
        worker_class=Render, min_size=1, max_size=4, max_tasks=8, concurrency=1, idle_ttl=0.5,
        distribution='least_loaded',
    )  # fmt: skip
    telling = asyncio.create_task(tell(pool.events()))
    async with pool:
        ledger = await pool.spawn('ledger', worker_class=Ledger)
        results = pool.results()
        pages = 60
        for page in range(pages):
            await pool.put(page)
        makers = set()
        for _ in range(pages):
            makers.add((await anext(results)).rpartition(' by ')[2])
        print(f'{pages} pages by {len(makers)} workers')

        resized = pool.events()
        while len(pool.members) > 1:
            await anext(resized)
        await ledger.put(f'{pages} pages')
        print(await anext(results))

        async with pool.reserve(timeout=5) as lease:
            # Nobody else's work is in this process now: what is measured is only this.
            began = await lease.call(time.process_time)
            await lease.call(sum, range(1_000_000))
            used = await lease.call(time.process_time) - began
            print(f'worker {lease.number}, leased, has used {"some" if used > 0 else "no"} CPU time')
    await telling


asyncio.run(main())
