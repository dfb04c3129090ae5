'''dask (distributed): an actor in each worker of a local cluster, called past the scheduler.'''

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.load import Load, Values, rate_by_turns, sampled_async

__all__ = ['calls', 'latency']

_distributed: Any = import_module('distributed')


_CALLS_IN_FLIGHT = 200
'''With more of them it was slower by far: it opens a connection for each.'''


class _Echo:
    async def echo(self, message: int) -> int:
        return message


def calls(load: Load) -> Values:
    '''Measure the calls answered a second.'''
    return asyncio.run(_calls(load))


def latency(load: Load) -> Values:
    '''Measure one call at a time, in seconds.'''
    return asyncio.run(_latency(load))


@asynccontextmanager
async def _actors(load: Load) -> AsyncIterator[list[Any]]:
    cluster = _distributed.LocalCluster(
        n_workers=load.workers, threads_per_worker=1, processes=True, dashboard_address=None, asynchronous=True
    )
    async with cluster, _distributed.Client(cluster, asynchronous=True) as client:
        addresses = list(cluster.scheduler.workers)
        yield [await client.submit(_Echo, actor=True, workers=[address], pure=False) for address in addresses]


async def _calls(load: Load) -> Values:
    async with _actors(load) as actors:
        return await rate_by_turns([actor.echo for actor in actors], load, _CALLS_IN_FLIGHT)


async def _latency(load: Load) -> Values:
    async with _actors(load) as actors:
        return await sampled_async(lambda message: actors[0].echo(message), load)
