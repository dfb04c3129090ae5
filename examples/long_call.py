'''A call that never ends: a time limit ends it, and nothing else on its worker.

One worker runs two counters beside a function that loops for ever. The function is interrupted where it is; the
counters, whose state is nowhere but in their coroutines, go on in the same process.
'''

import asyncio
import os

import looppool


def run_away() -> None:
    while True:
        pass


async def count(stream: looppool.Exchange) -> int:
    '''Count what is received, and tell the count after each.'''
    number = 0
    async for name in stream:
        number += 1
        await stream.send(f'{name} is at {number} in process {os.getpid()}')
    return number


async def main() -> None:
    async with (
        looppool.Pool(pool_size=1, cancel_grace=0.5) as pool,
        pool.open_stream(count) as first,
        pool.open_stream(count) as second,
    ):

        async def ask() -> None:
            for name, stream in (('first', first), ('second', second)):
                await stream.send(name)
                print(await stream.receive())

        await ask()
        print(f'worker 0 is process {pool.members[0].pid}')
        try:
            async with asyncio.timeout(0.5):
                await pool.call(run_away)
        except TimeoutError:
            print('run_away has run too long')

        await ask()  # answered as soon as run_away is interrupted, cancel_grace after the time limit
        print(f'worker 0 is process {pool.members[0].pid}, {pool.statistics().restarts} restarts')


asyncio.run(main())
