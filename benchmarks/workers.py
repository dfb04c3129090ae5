"""The workers that looppool's own rows run; nothing but looppool is imported here, for each worker imports it."""

import asyncio

import looppool
from benchmarks.peers.tasks import NAP

__all__ = ['Echo', 'EchoFromCoroutine', 'EchoWithCredit', 'Nap']


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


class Nap(looppool.Worker[int, int]):
    '''Answers after `NAP` seconds.'''

    @looppool.task_done
    async def _process_message(self, message: int) -> None:
        await asyncio.sleep(NAP)
        self._put_nowait(message)
