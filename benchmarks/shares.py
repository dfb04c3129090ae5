"""looppool's shared arrays: sent again and again, by reference."""

import asyncio
from importlib import import_module
from typing import Any

import looppool
from benchmarks.arrays import blank, check
from benchmarks.load import Load, Values, sampled_async
from benchmarks.peers.tasks import first_element

__all__ = ['share']

_shared: Any = import_module('looppool.shared')


def share(load: Load) -> Values:
    '''Measure one call at a time with a list of one number, with a small array, and with shared arrays of two sizes.

    In seconds. Before each call the number, or the first element of the array, is written: the worker has to see it.
    '''
    return asyncio.run(_share(load))


async def _share(load: Load) -> Values:
    arguments = {
        'small': [0],
        'small array': blank(64),
        '1 MiB': _shared.share(blank(1 << 20)),
        '64 MiB': _shared.share(blank(64 << 20)),
    }
    pool: looppool.Pool[Any, Any] = looppool.Pool(pool_size=load.workers)
    async with pool:
        return {name: await _latency(pool, argument, load) for name, argument in arguments.items()}


async def _latency(pool: 'looppool.Pool[Any, Any]', argument: Any, load: Load) -> float:

    async def once(number: int) -> None:
        argument[0] = number
        check(await pool.call(first_element, argument), number)

    return (await sampled_async(once, load))['p50']
