'''ray: async actors, one for each worker, called through its object store.'''

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from benchmarks.load import IN_FLIGHT, Load, Values, keep_in_flight, rate_async, sampled_async

__all__ = ['calls', 'latency']

os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
_ray: Any = import_module('ray')

_STORE = 100 << 20
'''Bytes of the object store; by default it takes a third of the machine's memory.'''


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
    _ray.init(
        num_cpus=load.workers, object_store_memory=_STORE, include_dashboard=False, log_to_driver=False,
        logging_level='ERROR',
    )
    try:
        actor = _ray.remote(_Echo).options(num_cpus=1, max_concurrency=IN_FLIGHT)
        yield [actor.remote() for _ in range(load.workers)]
    finally:
        _ray.shutdown()


async def _calls(load: Load) -> Values:
    async with _actors(load) as actors:

        def call(message: int) -> Any:
            return actors[message % len(actors)].echo.remote(message)

        return await rate_async(lambda count: keep_in_flight(call, count), load)


async def _latency(load: Load) -> Values:
    async with _actors(load) as actors:
        return await sampled_async(lambda message: actors[0].echo.remote(message), load)
