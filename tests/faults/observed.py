'''A pool that tells the test what became of its tasks, and what to wait for when a process has to end.'''

import asyncio
import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from workers import Casualty

import looppool

__all__ = ['LIMIT', 'PUTS', 'ObservedPool', 'Put', 'Watch', 'kill', 'until']

LIMIT = 20.0
'''Seconds for anything that a test waits for.'''


class ObservedPool(looppool.Pool[Any, Any]):
    '''Keeps results and failures in the order in which they come. Two workers of `Casualty` unless told otherwise.'''

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{'pool_size': 2, 'worker_class': Casualty} | settings)
        self.arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.failed: asyncio.Queue[tuple[Any, BaseException]] = asyncio.Queue()

    @looppool.task_done
    def process_message(self, result: Any, _result_done: Callable[[], None]) -> None:
        self.arrived.put_nowait(result)

    def process_failure(self, task: Any, error: BaseException) -> None:
        self.failed.put_nowait((task, error))

    async def take(self, count: int) -> list[Any]:
        '''The next `count` results.'''
        async with asyncio.timeout(LIMIT):
            return [await self.arrived.get() for _ in range(count)]

    async def result(self) -> Any:
        return (await self.take(1))[0]

    async def failure(self) -> tuple[Any, Any]:
        '''The next task that failed, and its error.'''
        async with asyncio.timeout(LIMIT):
            return await self.failed.get()

    async def replaced(self, number: int = 0, restarts: int = 1) -> None:
        '''Wait until a worker has been replaced at least so often, and works.'''
        member = self.members[number]
        await until(lambda: member.restarts >= restarts and member.state == 'ready')

    def link(self, number: int) -> Any:
        '''What the test has to reach into.'''
        return self.members[number].link

    async def heartbeats(self, count: int) -> None:
        '''Wait until the loop of every worker has stored so many heartbeats.'''
        for number in range(len(self.members)):
            for _ in range(count):
                page = self.link(number).page
                before = page.heartbeat
                await until(lambda page=page, before=before: page.heartbeat > before)

    async def works(self) -> None:
        '''Every worker does its work, and no permit is lost.'''
        for member in self.members:
            await self.put(('who', 'works'), worker_num=member.number)
        answers = await self.take(len(self.members))
        assert {(number, pid) for number, pid, _ in answers} == {(m.number, m.pid) for m in self.members}
        await until(lambda: self.statistics().in_flight == 0)
        assert self.arrived.empty() and self.failed.empty()


async def until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    '''Wait for something that gives no event.'''
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.005)


class Watch:
    '''Sees processes end, whoever they belong to and whoever reaps them. It is entered and left.'''

    def __init__(self, pids: Iterable[int | None]) -> None:
        self._fds: dict[int, int] = {}
        '''The descriptor of each process, by pid.'''
        for pid in pids:
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                self._fds[pid] = os.pidfd_open(pid)

    def alive(self) -> set[int]:
        return {pid for pid, fd in self._fds.items() if not _readable(fd, 0)}

    def survivors(self, seconds: float) -> set[int]:
        '''Those that still live after so many seconds; returns as soon as there is none.'''
        deadline = time.monotonic() + seconds
        return {pid for pid, fd in self._fds.items() if not _readable(fd, max(0.0, deadline - time.monotonic()))}

    async def gone(self) -> None:
        '''Wait until all have ended.'''
        await until(lambda: not self.alive())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)


def _readable(fd: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


Put = Callable[[ObservedPool, Any], Any]
PUTS: dict[str, Put] = {
    'put_nowait': lambda pool, message: pool.put_nowait(message),
    'put': lambda pool, message: pool.put(message),
    'put to a worker': lambda pool, message: pool.put(message, worker_num=1),
    'broadcast': lambda pool, message: pool.broadcast(message),
    'retained broadcast': lambda pool, message: pool.broadcast(message, retain='key'),
}
'''Every way to put a message.'''
