"""Looppool 0.4.0 from PyPI, the original, on Tornado 6.

Its package is named `looppool` too, so ``python -m benchmarks setup`` puts it into a folder of its own, and only the
processes that run this module have that folder on their path, before everything else (see `processes.py`).

What it needs to run on Tornado 6 and Python 3.11:

1. the start method fork, which Python 3.14 no longer defaults to: its queues travel by inheritance;
2. silence about the loop's aliases that Tornado 6 deprecates;
3. handlers that are plain or ``gen.coroutine``: what a native coroutine returns is never awaited;
4. a producer that copes with `Full` itself: there is no ``await put``.
"""

import asyncio
import multiprocessing
import queue
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from tornado import gen
from tornado.ioloop import IOLoop

from benchmarks.load import WINDOW, Load, PingPong, Values, rate_async
from benchmarks.peers.tasks import NAP

__all__ = ['latency', 'sleepers', 'throughput']

warnings.filterwarnings('ignore', category=DeprecationWarning)

_original: Any = import_module('looppool')

Handler = Callable[[Any, int], object]


def _answer(worker: Any, message: int) -> None:
    worker._put_nowait(message)
    worker._task_done()


@gen.coroutine
def _nap(worker: Any, message: int) -> Iterator[Any]:
    yield gen.sleep(NAP)
    _answer(worker, message)


class _Feed:
    '''Keeps up to *window* messages in flight, topped up as results come; the fastest way it was found to run.'''

    def __init__(self, pool: Any, window: int) -> None:
        self._pool = pool
        self._window = window
        self._count = self._put = self._received = 0
        self._finished: asyncio.Future[None] | None = None
        pool.process_message = self._result

    async def run(self, count: int) -> None:
        '''Put *count* messages and return when all results were handled.'''
        self._count = count
        self._put = self._received = 0
        self._finished = asyncio.get_running_loop().create_future()
        self._top_up()
        await self._finished

    def _result(self, _result: int, result_done: Callable[[], None]) -> None:
        result_done()
        self._received += 1
        self._top_up()
        if self._received == self._count and self._finished:
            self._finished.set_result(None)

    def _top_up(self) -> None:
        end = min(self._count, self._received + self._window)
        try:
            while self._put < end:
                self._pool.put_nowait(self._put)
                self._put += 1
        except queue.Full:
            pass  # one worker lags behind: the next result tries again


def throughput(load: Load) -> Values:
    '''Measure put → result with a plain function or a coroutine in the worker.'''
    answer = _answer if load.handlers == 'plain' else gen.coroutine(_answer)
    # Half the window, so that a worker that lags behind rarely makes the round robin stumble.
    return asyncio.run(_fed(load, answer, WINDOW, WINDOW // 2))


def sleepers(load: Load) -> Values:
    '''Measure the sleeping tasks done a second with the window open for all of them.'''
    return asyncio.run(_fed(load, _nap, 2 * load.messages, load.messages))


def latency(load: Load) -> Values:
    '''Measure one message at a time, in seconds.'''
    return asyncio.run(_latency(load))


@asynccontextmanager
async def _started(load: Load, handler: Handler, limit: int) -> AsyncIterator[Any]:
    multiprocessing.set_start_method('fork', force=True)
    worker = type('EchoWorker', (_original.Worker,), {'_process_message': handler})
    pool = _original.Pool(IOLoop.current(), load.workers, worker, max_tasks=limit, max_results=limit)
    pool.start()
    try:
        yield pool
    finally:
        pool.stop()


async def _fed(load: Load, handler: Handler, limit: int, window: int) -> Values:
    async with _started(load, handler, limit) as pool:
        return await rate_async(_Feed(pool, window).run, load)


async def _latency(load: Load) -> Values:
    async with _started(load, _answer, WINDOW) as pool:
        ping_pong = PingPong(pool.put_nowait, load)

        def received(_result: int, result_done: Callable[[], None]) -> None:
            ping_pong.answered()
            result_done()

        pool.process_message = received
        return await ping_pong.run()
