'''xoscar: actors without a lock, one in each process of an actor pool, connected by sockets.'''

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.load import Load, Values, rate_async, rate_by_turns, sampled_async
from benchmarks.peers.tasks import NAP

__all__ = ['EchoActor', 'latency', 'sleepers', 'throughput']

_xoscar: Any = import_module('xoscar')


class EchoActor(_xoscar.StatelessActor):  # type: ignore[misc]
    '''The same tasks as `peers.tasks`, as methods.'''

    async def echo(self, message: int) -> int:
        '''Return the *message*.'''
        return message

    async def nap(self, message: int) -> int:
        '''Return the *message* after `NAP` seconds.'''
        await asyncio.sleep(NAP)
        return message


def throughput(load: Load) -> Values:
    '''Measure the calls answered a second; more of them in flight made it slower.'''
    return asyncio.run(_throughput(load))


def latency(load: Load) -> Values:
    '''Measure one call at a time, in seconds.'''
    return asyncio.run(_latency(load))


def sleepers(load: Load) -> Values:
    '''Measure the sleeping calls done a second, all of them sent at once.'''
    return asyncio.run(_sleepers(load))


@asynccontextmanager
async def _actors(load: Load) -> AsyncIterator[list[Any]]:
    pool = await _xoscar.create_actor_pool('127.0.0.1', n_process=load.workers)
    try:
        yield [
            await _xoscar.create_actor(
                EchoActor,
                address=pool.external_address,
                uid=f'echo-{number}',
                # Process 0 is the pool's main process, which is the caller's own.
                allocate_strategy=_xoscar.allocate_strategy.ProcessIndex(number + 1),
            )
            for number in range(load.workers)
        ]
    finally:
        await pool.stop()


async def _throughput(load: Load) -> Values:
    async with _actors(load) as actors:
        return await rate_by_turns([actor.echo for actor in actors], load)


async def _latency(load: Load) -> Values:
    async with _actors(load) as actors:
        return await sampled_async(lambda message: actors[0].echo(message), load)


async def _sleepers(load: Load) -> Values:
    async with _actors(load) as actors:

        async def run(count: int) -> None:
            await asyncio.gather(*(actors[i % len(actors)].nap(i) for i in range(count)))

        return await rate_async(run, load)
