'''`Reloader`: when source files change, the workers get the new code, and no task is lost.

1. Changes come in bursts: nothing happens until no file has changed for `delay` seconds. What changes later begins
   anew, and a worker that is just being started for the changes before is let go.
2. Replacing is one worker after another, each as `Supervisor.renew` does it: the next process is ready before the old
   one gets nothing more. If it fails to start, the old ones stay, and the next change is the next attempt.
3. Reloading in place is all or nothing in each worker: a module that fails leaves all of them as they were.
'''

import ast
import asyncio
import contextlib
import fnmatch
import graphlib
import importlib.util
import logging
import operator
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from .errors import LoopPoolError, PoolBroken, PoolClosed
from .here import current_worker
from .modules import is_under, modules_from

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

    from .pool import Pool

__all__ = ['MODES', 'Reloader', 'reload_files']

_log: Final = logging.getLogger('looppool')

MODES: Final = ('replace', 'reload')

_JOIN_TIMEOUT: Final = 1.0
'''Seconds for watchdog's threads to end; they need some milliseconds.'''


class Reloader:
    '''Watches source files, and has a pool's workers run the new code when they change.

    :param pool: a pool that runs.
    :param paths: the files and folders to watch; of a folder, all that is below it, except for hidden files and folders
        and for ``site-packages``.
    :param mode: ``'replace'``: the workers, also those with names, are replaced by new processes one after another; a
        worker that is leased is replaced at the end of the lease. ``'reload'``: the changed modules are reloaded in the
        processes as they are; see `reload_files`.
    :param patterns: of the names of the files that matter.
    :param delay: seconds without another change after which it begins.
    :raises FileNotFoundError: there is no such path.
    :raises ValueError: the mode is unknown, or `delay` is no time.
    :raises TypeError: `paths` or `patterns` is no list.

    Use it as ``async with Reloader(pool, ['app'])``, or call `start` and `stop`. What fails is logged; the workers then
    stay as they are, and it is tried again at the next change.
    '''

    def __init__(
        self,
        pool: 'Pool[Any, Any]',
        paths: Sequence[str | os.PathLike[str]],
        *,
        mode: str = 'replace',
        patterns: Sequence[str] = ('*.py',),
        delay: float = 0.2,
    ) -> None:
        for name, items in (('paths', paths), ('patterns', patterns)):
            if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
                raise TypeError(f'{name} has to be a list of strings, not {items!r}')
        if mode not in MODES:
            raise ValueError(f'mode has to be one of {", ".join(MODES)}, not {mode!r}')
        if isinstance(delay, bool) or not isinstance(delay, (int, float)) or not delay >= 0:
            raise ValueError(f'delay has to be a number of seconds, not {delay!r}')
        self.pool = pool
        self.paths = tuple(os.path.realpath(path, strict=True) for path in paths)
        self.mode = mode
        self._patterns = tuple(patterns)
        self._delay = delay
        self._observer: BaseObserver | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Task[None] | None = None
        self._files: set[str] = set()
        '''What has changed and has not reached the workers.'''

    # Watching

    def start(self) -> None:
        '''Watch from now on. Does nothing if started. Call it on the pool's loop.

        It takes the time of a walk through all folders. Workers that start from now on, also after `stop`, import what
        is under `paths` anew, under every start method.

        :raises ImportError: the package watchdog is missing.
        :raises OSError: the system can't watch so many folders.
        :raises PoolClosed: the pool is not running.
        '''
        if self._observer is None:
            self.pool.check_thread('start', 'ioloop.add_callback(reloader.start)')
            self.pool.check_running('start')
            loop = self.pool.asyncio_loop
            self._observer = _observe(self.paths, lambda *change: loop.call_soon_threadsafe(self._note, *change))
            self.pool.reimport = tuple({*self.pool.reimport, *self.paths})

    def stop(self) -> None:
        '''Watch no more, and leave workers that were not replaced as they are; `start` may follow. Does nothing if
        stopped. Call it on the pool's loop.'''
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(_JOIN_TIMEOUT)
            self._observer = None
            for pending in (self._timer, self._round):
                if pending is not None:
                    pending.cancel()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self._round is not None:
            await asyncio.wait([self._round])

    def _note(self, path: str, is_folder: bool) -> None:
        '''Something has happened to a file, or a folder is gone with all its files.'''
        matters = is_folder or any(fnmatch.fnmatch(os.path.basename(path), pattern) for pattern in self._patterns)
        if self._observer is None or not matters or not is_under(path, self.paths):
            return
        self._files.add(os.path.realpath(path))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.pool.asyncio_loop.call_later(self._delay, self._begin)

    # Rounds

    def _begin(self) -> None:
        if self._round is not None and self.mode == 'replace':
            self._round.cancel()
        self._round = self.pool.asyncio_loop.create_task(self._run(self._round))

    async def _run(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await asyncio.wait([previous])
        files = sorted(self._files)
        self._files.clear()
        for file in files:
            _forget_bytecode(file)
        try:
            await (self._replace(files) if self.mode == 'replace' else self._reload(files))
        except (PoolClosed, PoolBroken):
            self.stop()
        except BaseException as error:
            self._files.update(files)
            if not isinstance(error, LoopPoolError):
                raise
            _log.error(
                'pool %r: the workers stay as they are until the next change, as a new one fails after changes of %s',
                self.pool.name, ', '.join(files), exc_info=error,
            )  # fmt: skip

    async def _replace(self, files: list[str]) -> None:
        # Leased ones last, as that may take long.
        for member in sorted(self.pool.everybody(), key=lambda member: member.slot.lease is not None):
            await self.pool.renew(member)
        _log.info('pool %r: all workers run the new code of %s', self.pool.name, ', '.join(files))

    async def _reload(self, files: list[str]) -> None:
        members = [member for member in self.pool.everybody() if not member.leaving]
        calls = [member.call(reload_files, files) for member in members]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        # Not while its workers say goodbye.
        self.pool.check_running('call')
        if not errors:
            _log.info('pool %r: all workers have reloaded %s', self.pool.name, ', '.join(files))
            return
        self._files.update(files)
        _log.error(
            'pool %r: %d of %d workers stay as they are until the next change, as %s could not be reloaded',
            self.pool.name, len(errors), len(members), ', '.join(files), exc_info=errors[0],
        )  # fmt: skip


def _observe(paths: Sequence[str], note: Callable[[str, bool], object]) -> 'BaseObserver':
    '''Have `note` called, from another thread, with what changes, and whether that is a folder.'''
    try:
        from watchdog import events
        from watchdog.observers import Observer
    except ImportError as error:
        raise ImportError("the package watchdog is missing: pip install 'looppool[reload]'") from error

    class Handler(events.FileSystemEventHandler):
        def on_any_event(self, event: events.FileSystemEvent) -> None:
            # The loop may be closed.
            with contextlib.suppress(RuntimeError):
                for path in (event.src_path, event.dest_path):
                    if path:
                        note(os.fsdecode(path), event.is_directory)

    # Without those that tell of reading. Of a folder that comes or moves, its files are told one by one.
    kinds: list[type[events.FileSystemEvent]] = [
        events.FileCreatedEvent, events.FileModifiedEvent, events.FileMovedEvent, events.FileDeletedEvent,
        events.DirDeletedEvent,
    ]  # fmt: skip
    observer = Observer()
    try:
        for folder in dict.fromkeys(path if os.path.isdir(path) else os.path.dirname(path) for path in paths):
            observer.schedule(Handler(), folder, recursive=folder in paths, event_filter=kinds)
        observer.start()
    except BaseException:
        observer.stop()
        raise
    return observer


def _forget_bytecode(file: str) -> None:
    '''Remove what was compiled from a file: it passes for new if the file changed twice within a second.'''
    if file.endswith('.py'):
        with contextlib.suppress(OSError, NotImplementedError):
            os.remove(importlib.util.cache_from_source(file))


# In the workers


def reload_files(files: Sequence[str]) -> list[str]:
    '''Reload what this worker has loaded from `files`, all of it or nothing; returns the names of the modules.

    Each comes after those of them that it imports; a module that has not changed is left alone, and with it what it has
    imported by name. If the class of the `Worker` is among them, its instance gets the new class, and keeps its
    attributes. What is running goes on with the old code.

    :param files: as `os.path.realpath` gives them; those that are gone are passed over.
    :raises Exception: what a module raised; all are as they were before.
    '''
    modules = {name: module for name, module in modules_from(files).items() if os.path.exists(_source(module))}
    before = {name: dict(vars(module)) for name, module in modules.items()}
    importlib.invalidate_caches()
    order = _in_order(modules)
    try:
        for name in order:
            importlib.reload(modules[name])
        _adopt_class(modules)
    except BaseException:
        for name, namespace in before.items():
            vars(modules[name]).clear()
            vars(modules[name]).update(namespace)
        raise
    return order


def _in_order(modules: dict[str, ModuleType]) -> list[str]:
    graph = {name: modules.keys() & set(_imports(module)) - {name} for name, module in modules.items()}
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError:
        return list(modules)


def _imports(module: ModuleType) -> Iterator[str]:
    '''The names of the modules that the source of `module` may import now.'''
    for node in ast.walk(ast.parse(Path(_source(module)).read_bytes(), _source(module))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = '.' * node.level + (node.module or '')
            base = importlib.util.resolve_name(relative, module.__package__) if node.level else relative
            names = (f'{base}.{alias.name}' for alias in node.names)
            yield from (name if name in sys.modules else base for name in names)


def _source(module: ModuleType) -> str:
    assert module.__file__ is not None, 'it was found by its file'
    return module.__file__


def _adopt_class(modules: dict[str, ModuleType]) -> None:
    '''Give the worker the new class, if its class is from one of `modules`.'''
    worker = current_worker().worker
    assert worker is not None, 'it is here'
    old = type(worker)
    if old.__module__ in modules:
        worker.__class__ = operator.attrgetter(old.__qualname__)(modules[old.__module__])
        worker._main.take_handler()
