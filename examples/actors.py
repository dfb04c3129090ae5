'''Actors: named workers that call each other, feeds that flow together, and an object that lives in one of them.

1. ``left`` and ``right`` play ping-pong: each calls the other while the other waits for it.
2. Two feeds stream their readings straight into ``aggregator``, which checks that nothing is lost, doubled or out of
   order; the parent hands on what it does not look at.
3. The ledger is an object in ``aggregator``; the feeds book into it from where they are.
'''

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import looppool

READINGS = 2000
FEEDS = ('north', 'south')


async def play(rally: int) -> list[str]:
    '''Call the other player until the rally is over; who has played comes back in turn.'''
    here = looppool.current_worker().name
    assert here is not None
    if rally == 0:
        return [here]
    other = await looppool.find_worker('right' if here == 'left' else 'left')
    return [here, *await other.call(play, rally - 1)]


async def readings(count: int) -> AsyncIterator[tuple[str | None, int]]:
    '''What a feed reads: numbered, with its own name.'''
    for number in range(count):
        if number % 100 == 0:
            await asyncio.sleep(0.001)
        yield looppool.current_worker().name, number


async def aggregate(feeds: tuple[str, ...], count: int) -> dict[str, int]:
    '''Let the feeds flow together; return how many readings of each have come, every one once and in order.'''
    together: asyncio.Queue[tuple[str, int]] = asyncio.Queue(maxsize=100)

    async def drain(name: str) -> None:
        feed = await looppool.find_worker(name)
        async for reading in feed.stream(readings, count):
            await together.put(reading)

    expected = {name: itertools.count() for name in feeds}
    came = dict.fromkeys(feeds, 0)
    async with asyncio.TaskGroup() as group:
        for name in feeds:
            group.create_task(drain(name))
        for _ in range(count * len(feeds)):
            name, number = await together.get()
            assert number == next(expected[name]), f'{name} is out of order at {number}'
            came[name] += 1
    return came


class Ledger:
    '''What was booked, by whom.'''

    def __init__(self) -> None:
        self.entries: dict[str, int] = {}

    def book(self, name: str, amount: int) -> int:
        self.entries[name] = self.entries.get(name, 0) + amount
        return sum(self.entries.values())


async def book(ledger: Any, amount: int) -> int:
    '''In a feed: `ledger` is elsewhere, and takes a call.'''
    name = looppool.current_worker().name
    total: int = await ledger.book(name, amount)
    return total


async def main() -> None:
    async with looppool.Pool(pool_size=1) as pool:
        for name in ('left', 'right', 'aggregator', *FEEDS):
            await pool.spawn(name)
        print('rally:', ' '.join(await pool.named['left'].call(play, 5)))
        came = await pool.named['aggregator'].call(aggregate, FEEDS, READINGS)
        print('readings:', came)
        async with await pool.named['aggregator'].create(Ledger) as ledger:
            for amount, name in enumerate(FEEDS, start=10):
                print(f'total after {name}:', await pool.named[name].call(book, ledger, amount))
            print('ledger:', await ledger.get('entries'))


if __name__ == '__main__':
    asyncio.run(main())
