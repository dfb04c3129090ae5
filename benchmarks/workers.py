"""The workers that looppool's own rows run; nothing but looppool is imported here, for each worker imports it."""

import asyncio
import time
from collections import deque
from typing import Any

import looppool
from benchmarks.peers.tasks import NAP, first_element

__all__ = ['BUSY', 'Busy', 'Echo', 'EchoFromCoroutine', 'EchoWithCredit', 'Hold', 'Keeper', 'Nap']

BUSY = 0.001
'''Seconds of CPU that one busy task takes.'''


class Echo(looppool.Worker[int, int]):
    '''Answers at once from a plain handler.'''

    @looppool.task_done
    def _process_message(self, message: int) -> None:
        self._put_nowait(message)


class EchoFromCoroutine(looppool.Worker[int, int]):
    '''Answers from a coroutine.'''

    @looppool.task_done
    async def _process_message(self, message: int) -> None:
        self._put_nowait(message)


class EchoWithCredit(looppool.Worker[int, int]):
    '''Answers from a coroutine that waits for credit, should there be none.'''

    @looppool.task_done
    async def _process_message(self, message: int) -> None:
        await self._put(message)


class Keeper(looppool.Worker[Any, int]):
    '''Keeps the last array it got, and answers with its first number; None asks for the sum of the array it keeps.'''

    _kept: Any = None

    @looppool.task_done
    def _process_message(self, message: Any) -> None:
        if message is None:
            self._put_nowait(int(self._kept.sum()))
        else:
            self._kept = message
            self._put_nowait(first_element(message))


class Nap(looppool.Worker[int, int]):
    '''Answers after `NAP` seconds.'''

    @looppool.task_done
    async def _process_message(self, message: int) -> None:
        await asyncio.sleep(NAP)
        self._put_nowait(message)


class Busy(looppool.Worker[int, int]):
    '''Answers after `BUSY` seconds of CPU time, however long that takes.'''

    @looppool.task_done
    def _process_message(self, message: int) -> None:
        end = time.process_time() + BUSY
        while time.process_time() < end:
            pass
        self._put_nowait(message)


class Hold(looppool.Worker[int, int]):
    '''Has many coroutines wait, and lets the oldest one answer when one more than *hold* of them do.'''

    def _initialise(self, hold: int) -> None:
        self._hold = hold
        self._held: deque[asyncio.Future[None]] = deque()

    @looppool.task_done
    async def _process_message(self, message: int) -> None:
        released = asyncio.get_running_loop().create_future()
        self._held.append(released)
        if len(self._held) > self._hold:
            self._held.popleft().set_result(None)
        await released
        self._put_nowait(message)
