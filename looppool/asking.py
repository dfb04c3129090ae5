'''What a worker asks of its pool: bounded, and answered like a call.'''

import asyncio
import pickle
from threading import get_ident
from typing import Final

from .codec import Encoded, cancelled_elsewhere, check_encoded, unpack_error
from .errors import Full
from .packing import Packing
from .protocol import HEAD_SIZE, Caller, WorkerEnd

__all__ = ['Asking', 'Op', 'asking', 'set_asking']

WINDOW: Final = 1024
'''How much a worker may ask at once; the rest waits, first come, first served.'''


class Op:
    '''What may be asked; with the address of a worker.'''

    CALL: Final = 'call'
    PUT: Final = 'put'
    FIND: Final = 'find'
    WAIT: Final = 'wait'


class Asking:
    '''Asks the pool. It is the link of the calls that this worker makes. All methods belong to the loop's thread.

    :ivar packing: what is done with what goes to other workers.
    '''

    def __init__(self, loop: asyncio.AbstractEventLoop, end: WorkerEnd) -> None:
        self.loop = loop
        self.end = end
        self.packing = Packing()
        self.pool = ''
        '''The key of its pool.'''
        self._turn = asyncio.Lock()
        self._answered = asyncio.Event()
        self._thread = get_ident()

    async def ask(self, caller: Caller, op: str, address: int | str, encoded: Encoded) -> None:
        '''Ask, when it may. Cancelled, nothing was asked.'''
        head = self._head(op, address, encoded)
        if self._full:
            async with self._turn:
                while len(self.end.asks) >= WINDOW:
                    self._answered.clear()
                    await self._answered.wait()
        self._send(caller, head, encoded)

    def ask_nowait(self, caller: Caller, op: str, address: int | str, encoded: Encoded) -> None:
        '''Ask; `Full` if it may not now.'''
        head = self._head(op, address, encoded)
        if self._full:
            raise Full('call', f'worker {address}')
        self._send(caller, head, encoded)

    @property
    def _full(self) -> bool:
        return self._turn.locked() or len(self.end.asks) >= WINDOW

    def _head(self, op: str, address: int | str, encoded: Encoded) -> bytes:
        self.check_thread()
        head = pickle.dumps((op, address))
        check_encoded(encoded, min(self.end.max_body, self.end.max_own_body - len(head) - HEAD_SIZE))
        return head

    def check_thread(self) -> None:
        '''RuntimeError if this is not the loop's thread.'''
        if get_ident() != self._thread:
            raise RuntimeError('another worker was called from a thread: use asyncio.run_coroutine_threadsafe')

    def _send(self, caller: Caller, head: bytes, encoded: Encoded) -> None:
        caller.on_sent(self, self.end.ask(caller, head, *encoded[:2]))

    def on_told(self) -> None:
        '''An answer has come.'''
        self._answered.set()

    def abandon(self, ident: int) -> None:
        '''An answer is of no use any more.'''
        if ident in self.end.asks:
            self.end.abort(ident)

    def understand(self, body: bytes) -> BaseException:
        '''The error in an answer; it says itself where it was raised.'''
        return unpack_error(body)

    def cut_short(self, error: BaseException) -> BaseException:
        '''The error of a call that was cancelled, but not from here.'''
        return cancelled_elsewhere(error)


_asking: Asking | None = None


def asking() -> Asking:
    '''How to ask from here.

    :raises RuntimeError: this is no worker process.
    '''
    if _asking is None:
        raise RuntimeError('this code does not run in a worker: in the parent, use pool.member(...)')
    return _asking


def set_asking(one: Asking) -> None:
    '''Called once, by the worker's main.'''
    global _asking
    _asking = one
