"""looppool's messages: throughput, latency, and many sleeping tasks at once."""

import asyncio
from collections.abc import Callable

import looppool
from benchmarks.load import Load, PingPong, Values, rate_async
from benchmarks.workers import Echo, EchoFromCoroutine, EchoWithCredit, Nap

__all__ = ['Feed', 'latency', 'sleepers', 'throughput']

ResultDone = Callable[[], None]

_WORKERS = {'plain': Echo, 'coroutine': EchoFromCoroutine, 'both': EchoWithCredit}


class Feed:
    '''Puts messages as fast as the pool takes them, and counts the results.'''

    def __init__(self, pool: 'looppool.Pool[int, int]', coroutine: bool) -> None:
        self._pool = pool
        self._left = 0
        self._finished: asyncio.Future[None] | None = None
        pool.process_message = self._result_from_coroutine if coroutine else self._result
        pool.process_failure = self._failed

    async def run(self, count: int) -> None:
        '''Put *count* messages and return when all results were handled.'''
        self._left = count
        self._finished = asyncio.get_running_loop().create_future()
        put = self._pool.put
        for message in range(count):
            await put(message)
        await self._finished

    @looppool.task_done
    def _result(self, _result: int, _result_done: ResultDone) -> None:
        self._count_down()

    @looppool.task_done
    async def _result_from_coroutine(self, _result: int, _result_done: ResultDone) -> None:
        self._count_down()

    def _failed(self, _task: int, error: BaseException) -> None:
        if self._finished and not self._finished.done():
            self._finished.set_exception(error)

    def _count_down(self) -> None:
        self._left -= 1
        if not self._left and self._finished:
            self._finished.set_result(None)


def throughput(load: Load) -> Values:
    '''Measure put → result.'''
    pool = looppool.Pool(pool_size=load.workers, worker_class=_WORKERS[load.handlers])
    return asyncio.run(_fed(pool, load))


def sleepers(load: Load) -> Values:
    '''Measure the sleeping tasks done a second with the window open for twice as many.'''
    limit = 2 * load.messages
    pool = looppool.Pool(pool_size=load.workers, worker_class=Nap, max_tasks=limit, max_results=limit)
    return asyncio.run(_fed(pool, load))


def latency(load: Load) -> Values:
    '''Measure one message at a time, from `put_nowait` to the call of the handler, in seconds.'''
    return asyncio.run(_latency(load))


async def _fed(pool: 'looppool.Pool[int, int]', load: Load) -> Values:
    feed = Feed(pool, load.handlers == 'both')
    async with pool:
        return await rate_async(feed.run, load)


async def _latency(load: Load) -> Values:
    pool = looppool.Pool(pool_size=load.workers, worker_class=Echo)
    ping_pong = PingPong(pool.put_nowait, load)

    def received(_result: int, result_done: ResultDone) -> None:
        ping_pong.answered()
        result_done()

    pool.process_message = received
    async with pool:
        return await ping_pong.run()
