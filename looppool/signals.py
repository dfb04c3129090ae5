'''Signals of the application, handed to every pool that wants them: a loop itself keeps one handler a signal.'''

import asyncio
import weakref
from collections.abc import Callable
from typing import Final

__all__ = ['unwatch', 'watch']

Watcher = Callable[[int], None]

_watchers: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, list[Watcher]]]] = (
    weakref.WeakKeyDictionary()
)


def watch(loop: asyncio.AbstractEventLoop, signum: int, watcher: Watcher) -> None:
    '''Call ``watcher(signum)`` on `loop` whenever the signal comes. For the main thread.'''
    watchers = _watchers.setdefault(loop, {}).setdefault(signum, [])
    if not watchers:
        loop.add_signal_handler(signum, _dispatch, loop, signum)
    watchers.append(watcher)


def unwatch(loop: asyncio.AbstractEventLoop, signum: int, watcher: Watcher) -> None:
    '''Call it no more; behind the last watcher, the signal has its default effect again.'''
    watchers = _watchers[loop][signum]
    watchers.remove(watcher)
    if not watchers:
        loop.remove_signal_handler(signum)


def _dispatch(loop: asyncio.AbstractEventLoop, signum: int) -> None:
    for watcher in list(_watchers[loop][signum]):
        watcher(signum)
