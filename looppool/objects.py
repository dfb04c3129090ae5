'''Objects that live in one worker, and what stands for them elsewhere.

1. An object is held by its worker until the `RemoteObject` that ``create`` gave is closed or collected, or the worker's
   process ends. It never moves: no other process has a copy.
2. A `RemoteObject` may travel. In the worker that holds the object it arrives as the object itself, anywhere else as
   another `RemoteObject`, which does not keep it alive.
3. A key is good for one process: the next one in its place knows that it never had the object.
'''

import asyncio
import contextlib
import inspect
import os
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from .callee import calls_tasks
from .errors import LoopPoolError, WorkerDied
from .here import current_worker

if TYPE_CHECKING:
    from .verbs import Verbs

__all__ = ['Key', 'RemoteObject', 'create', 'pools', 'release_soon']


class Key(NamedTuple):
    '''Which object of which process.'''

    process: str
    pid: int
    number: int


pools: Final[weakref.WeakValueDictionary[str, Any]] = weakref.WeakValueDictionary()
'''The pools of this process, by the key that their workers know.'''


# In the worker that holds them


class _Home:
    '''The objects of this process.'''

    def __init__(self) -> None:
        self.process = os.urandom(8).hex()
        self.objects: dict[Key, Any] = {}
        self._count = 0

    def hold(self, made: Any) -> Key:
        self._count += 1
        key = Key(self.process, os.getpid(), self._count)
        self.objects[key] = made
        return key

    def find(self, key: Key) -> Any:
        if key in self.objects:
            return self.objects[key]
        if key.process == self.process:
            raise ReferenceError('the object was released: its RemoteObject was closed or collected')
        here = current_worker()
        raise WorkerDied(here.number, key.pid, None, reason='its objects ended with it', name=here.name)


_homes: Final[dict[int, _Home]] = {}
'''Whoever was forked from a worker is not at home there.'''


def _home() -> _Home:
    return _homes.get(os.getpid()) or _homes.setdefault(os.getpid(), _Home())


@calls_tasks
async def create(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key:
    '''Make an object and hold it.'''
    made = factory(*args, **kwargs)
    if inspect.iscoroutine(made):
        made = await made
    return _home().hold(made)


@calls_tasks
def use(key: Key, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    '''Call a method of an object.'''
    return getattr(_home().find(key), method)(*args, **kwargs)


@calls_tasks
def attribute(key: Key, name: str) -> Any:
    '''An attribute of an object.'''
    return getattr(_home().find(key), name)


def let_go(key: Key) -> None:
    '''Hold an object no longer.'''
    _home().objects.pop(key, None)


# Elsewhere


class RemoteObject:
    '''An object that lives in a worker. Use it on the loop of the pool, or of the worker, that has it.

    ``await obj.method(...)`` calls a method there, as ``call`` does; ``async for item in obj.method(...)`` iterates
    over what it yields, as ``stream`` does. ``await obj.get(name)`` gives an attribute. `close` lets go of the object,
    also as an async context manager, and so does collecting the `RemoteObject`.

    Passed to a call in the same worker it arrives as the object itself; in another worker, as a `RemoteObject` that
    goes through the parent. Neither keeps it alive.

    Every use raises WorkerDied once the process that held the object has ended, as a replacement does not have it, and
    ReferenceError when it was closed; else what ``call`` and ``stream`` raise.
    '''

    def __init__(self, verbs: 'Verbs', key: Key, *, link: Any = None, keeps: bool = False) -> None:
        '''Made by ``create`` and by unpickling.

        :param link: the link to the process, where that is known.
        :param keeps: whether the object lives as long as this.
        '''
        self._verbs = verbs
        self._key = key
        self._link = link
        self._keeps = keeps
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def __repr__(self) -> str:
        return f'<RemoteObject {self._key.number} of pid {self._key.pid}{": closed" * self._closed}>'

    def __getattr__(self, name: str) -> '_Method':
        if name.startswith('_'):
            raise AttributeError(f'{name} cannot be reached from outside of the worker')
        return _Method(self, name)

    async def get(self, name: str) -> Any:
        '''The value of an attribute.'''
        return await self._usable().call(attribute, self._key, name)

    async def close(self) -> None:
        '''Let go of the object; it may be called again. It ends there when nothing else holds it.'''
        if not self._closed:
            self._closed = True
            if self._keeps:
                await release(self._verbs, self._key, self._link)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if self._keeps and not self._closed:
            # From any thread, and after the loop's end; in nobody's context, whose values might travel along.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(release_soon, self._verbs, self._key, self._link, context=Context())

    def __reduce__(self) -> tuple[Any, ...]:
        self._usable()
        return _arrive, (*self._verbs._where(), self._key)

    def _usable(self) -> 'Verbs':
        if self._closed:
            raise ReferenceError(f'{self!r} was closed')
        if self._link is not None and self._link.buried:
            self._link.member.pool.check_running('call')
            raise self._link.error()
        return self._verbs


class _Method:
    '''A method of an object elsewhere.'''

    def __init__(self, of: RemoteObject, name: str) -> None:
        self._of = of
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> '_Use':
        return _Use(self._of, (self._of._key, self._name, args, kwargs))


class _Use:
    '''A method called: to be awaited, or to be iterated over.'''

    def __init__(self, of: RemoteObject, request: tuple[Any, ...]) -> None:
        self._of = of
        self._request = request

    def __await__(self) -> Generator[Any, None, Any]:
        return self._of._usable().call(use, *self._request).__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._of._usable().stream(use, *self._request)


async def release(verbs: 'Verbs', key: Key, link: Any) -> None:
    '''Let go of an object; if it is gone already, that is all right.'''
    if link is not None:
        link.hold(-1)
    with contextlib.suppress(LoopPoolError, ValueError):
        await verbs._lasting().call(let_go, key)


def release_soon(verbs: 'Verbs', key: Key, link: Any) -> None:
    '''As `release`, without waiting for it.'''
    task = asyncio.ensure_future(release(verbs, key, link))
    _releases.add(task)
    task.add_done_callback(_releases.discard)


_releases: Final[set[asyncio.Task[None]]] = set()


def _arrive(pool: str, address: int | str, key: Key) -> Any:
    '''What a `RemoteObject` becomes where it arrives.'''
    home = _homes.get(os.getpid())
    if home is not None and key.process == home.process:
        return home.find(key)
    if pool in pools:
        return RemoteObject(pools[pool].member(address), key)
    # What knows of other workers knows of objects as well.
    from .peer import peer_in

    return RemoteObject(peer_in(pool, address), key)
