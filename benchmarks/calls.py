"""looppool's calls: one by one and many at once, `map`, and streams one way and both ways."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import looppool
from benchmarks.load import Load, Values, keep_in_flight, rate_async, sampled_async
from benchmarks.peers.tasks import echo, echo_async

__all__ = ['calls', 'latency', 'mapped', 'ping_pong', 'streamed']

_FUNCTIONS: dict[str, Callable[[int], Any]] = {'plain': echo, 'coroutine': echo_async}


def calls(load: Load) -> Values:
    '''Measure the calls answered a second, of a plain function or a coroutine function.'''
    return asyncio.run(_calls(load, _FUNCTIONS[load.handlers]))


def latency(load: Load) -> Values:
    '''Measure one call at a time, in seconds.'''
    return asyncio.run(_latency(load, _FUNCTIONS[load.handlers]))


def mapped(load: Load) -> Values:
    '''Measure the items a second of `map`.'''
    return asyncio.run(_rate(_map, load))


def streamed(load: Load) -> Values:
    '''Measure the items a second of `stream`, of a plain or an async generator, with its default credit.'''
    return asyncio.run(_rate(_stream, load))


def ping_pong(load: Load) -> Values:
    '''Measure one item at a time there and back on an open stream, in seconds.'''
    return asyncio.run(_ping_pong(load))


def _pool(load: Load) -> 'looppool.Pool[Any, Any]':
    return looppool.Pool(pool_size=load.workers)


async def _calls(load: Load, function: Callable[[int], Any]) -> Values:
    async with _pool(load) as pool:
        return await rate_async(
            lambda count: keep_in_flight(lambda message: pool.call(function, message), count), load
        )


async def _latency(load: Load, function: Callable[[int], Any]) -> Values:
    async with _pool(load) as pool:
        return await sampled_async(lambda message: pool.call(function, message), load)


async def _rate(run: 'Callable[[looppool.Pool[Any, Any], Load, int], Awaitable[None]]', load: Load) -> Values:
    async with _pool(load) as pool:
        return await rate_async(lambda count: run(pool, load, count), load)


async def _map(pool: 'looppool.Pool[Any, Any]', load: Load, count: int) -> None:
    async for _ in pool.map(echo, range(count), ordered=load.ordered, chunksize=load.chunk or None):
        pass


async def _stream(pool: 'looppool.Pool[Any, Any]', load: Load, count: int) -> None:
    async for _ in pool.stream(range if load.handlers == 'plain' else _count, count):
        pass


async def _count(end: int) -> AsyncIterator[int]:
    for number in range(end):
        yield number


async def _ping_pong(load: Load) -> Values:
    async with _pool(load) as pool, pool.open_stream(_echo) as stream:

        async def once(message: int) -> None:
            await stream.send(message)
            await stream.receive()

        return await sampled_async(once, load)


async def _echo(stream: Any) -> None:
    async for message in stream:
        await stream.send(message)
