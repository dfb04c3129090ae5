'''`Peer`: another worker of the pool, as the code in a worker knows it. What it is asked goes through the parent.'''

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from .asking import Op, asking
from .calls import Call, Request
from .codec import Encoded
from .lifecycle import checked_seconds
from .objects import Key, RemoteObject
from .packing import Packing
from .protocol import Caller, Parcel, Terms
from .verbs import Verbs

__all__ = ['Peer', 'find_worker', 'peer_in', 'wait_for_worker']


class Peer(Verbs):
    '''Another worker of the pool. It has the verbs of a `Member`, for code that runs in a worker, on its loop.

    Calls and streams are handed on by the parent, which does not unpickle them. They begin there at once, beside what
    the worker is busy with (``Pool(concurrency=...)`` does not count them), so workers may call each other in a circle.

    :ivar name: its name; for a worker without a name, its number.
    '''

    def __init__(self, name: str | int) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f'<Peer {self.name!r}>'

    async def put(self, message: Any) -> None:
        '''Put a task to it, as ``pool.put(message, worker_num=...)`` would: return when it is accepted.

        :raises ValueError: there is no such worker any more.
        :raises PoolClosed: the pool is stopping.
        :raises: as ``Pool.put``.
        '''
        await _ask(self.put, Op.PUT, self.name, self._packing().pack_task(message))

    def _keep(self, link: Any, key: Key) -> RemoteObject:
        return RemoteObject(self, key, keeps=True)

    def _hold(self, link: Any, count: int) -> None:
        '''The pool does not know of objects that workers have in one another.'''

    def _where(self) -> tuple[str, int | str]:
        return asking().pool, self.name

    def _call_loop(self) -> asyncio.AbstractEventLoop:
        asking().check_thread()
        return asking().loop

    def _pack_call(self, call: Call, request: Request) -> Parcel:
        data, needs, size = self._packing().pack_request(request)
        return data, Terms(needs, self.name), size, call

    def _packing(self) -> Packing:
        asking().check_thread()
        return asking().packing

    async def _accept(self, parcel: Parcel) -> None:
        await asking().ask(*self._call_of(parcel))

    def _accept_nowait(self, parcel: Parcel) -> None:
        asking().ask_nowait(*self._call_of(parcel))

    def _call_of(self, parcel: Parcel) -> tuple[Caller, str, str | int, Encoded]:
        data, terms, size, call = parcel
        assert call is not None
        return call, Op.CALL, self.name, (data, terms.needs, size)


async def find_worker(name: str) -> Peer:
    '''The worker of this pool with that name, for code that runs in a worker.

    It stays the same when that worker is replaced: what is asked meanwhile waits for the next one.

    :raises ValueError: there is none; see `wait_for_worker`.
    :raises RuntimeError: this is no worker process, or not the thread of its loop.
    '''
    return await _find(find_worker, Op.FIND, name)


async def wait_for_worker(name: str, timeout: float | timedelta | None = None) -> Peer:
    '''As `find_worker`, but wait until there is one.

    :param timeout: seconds, or a timedelta; None: no limit.
    :raises TimeoutError: there is none after that time.
    :raises PoolClosed: the pool is stopping.
    '''
    async with asyncio.timeout(checked_seconds(timeout)):
        return await _find(wait_for_worker, Op.WAIT, name)


async def _find(asker: Callable[..., Any], op: str, name: str) -> Peer:
    if not isinstance(name, str):
        raise TypeError(f'name has to be a string, not {name!r}')
    await _ask(asker, op, name, (b'', (), 0))
    return Peer(name)


async def _ask(asker: Callable[..., Any], op: str, name: str | int, encoded: Encoded) -> Any:
    call = Call(asking().loop, asker)
    await asking().ask(call, op, name, encoded)
    return await call.value()


def peer_in(pool: str, name: str | int) -> Peer:
    '''A worker of the pool with the key `pool`.

    :raises LookupError: this is no worker of that pool.
    '''
    if asking().pool != pool:
        raise LookupError('an object of a pool has come where that pool is not known')
    return Peer(name)
