'''ray: actors, one for each worker, called through its object store.'''

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from benchmarks.arrays import Exchange, large_arrays, small_arrays, through
from benchmarks.load import IN_FLIGHT, Load, Values, rate_by_turns, sampled_async

__all__ = ['calls', 'large', 'latency', 'small']

os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
_ray: Any = import_module('ray')

_STORE = 100 << 20
'''Bytes of the object store at least; by default it takes a third of the machine's memory.'''

_ARRAYS_STORED = 4
'''Arrays that the object store holds, if they are large: it uses all its memory before it uses any again, and is slow
until then.'''


class _Echo:
    async def echo(self, message: int) -> int:
        return message


class _Runner:
    def run(self, function: Callable[[Any], Any], array: Any) -> Any:
        return function(array)


def calls(load: Load) -> Values:
    '''Measure the calls answered a second.'''
    return asyncio.run(_calls(load))


def latency(load: Load) -> Values:
    '''Measure one call at a time, in seconds.'''
    return asyncio.run(_latency(load))


def large(load: Load) -> Values:
    '''Measure the speed at which single arrays are passed.'''
    with _started(load):
        return large_arrays(_exchange(), load)


def small(load: Load) -> Values:
    '''Measure the arrays passed a second.'''
    with _started(load):
        return small_arrays(_exchange(), load)


@contextmanager
def _started(load: Load) -> Iterator[None]:
    store = max(_STORE, _ARRAYS_STORED * load.payload)
    _ray.init(
        num_cpus=load.workers, object_store_memory=store, include_dashboard=False, log_to_driver=False,
        logging_level='ERROR',
    )
    try:
        yield
    finally:
        _ray.shutdown()


@contextmanager
def _actors(load: Load) -> Iterator[list[Any]]:
    with _started(load):
        actor = _ray.remote(_Echo).options(num_cpus=1, max_concurrency=IN_FLIGHT)
        yield [actor.remote() for _ in range(load.workers)]


def _exchange() -> Exchange:
    return through(_ray.remote(_Runner).options(num_cpus=1).remote().run.remote, _ray.get)


async def _calls(load: Load) -> Values:
    with _actors(load) as actors:
        return await rate_by_turns([actor.echo.remote for actor in actors], load)


async def _latency(load: Load) -> Values:
    with _actors(load) as actors:
        return await sampled_async(actors[0].echo.remote, load)
