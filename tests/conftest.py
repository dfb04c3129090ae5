'''What every test gets: a hard time limit, no unexpected log line, and a check that nothing is left behind.'''

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from looppool import Pool, process

try:
    import uvloop
except ImportError:
    uvloop = None
else:
    # At the first loop of a process libuv opens a pipe that it keeps: no test has left it behind.
    uvloop.new_event_loop().close()

CONTEXTS = process.CONTEXTS
needs_uvloop = pytest.mark.skipif(uvloop is None, reason='uvloop is not installed')
ASYNC_SHARE = 2 / 3
'''Of a test's time limit, what a coroutine test has: so its stack is shown and it cleans up.'''
LEAK_PATIENCE = 5.0
'''Seconds for what is ending to be gone.'''


@pytest.fixture(params=CONTEXTS)
def context(request: pytest.FixtureRequest) -> str:
    '''Each start method in turn: a test that takes this fixture is a contract.'''
    return request.param


@pytest.fixture(params=['asyncio', pytest.param('uvloop', marks=[needs_uvloop, pytest.mark.long])])
def each_loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    '''Each kind of loop in turn, for the test and for the workers of its pools; gives what makes one.'''
    if request.param == 'asyncio':
        return asyncio.new_event_loop
    monkeypatch.setitem(Pool.__init__.__kwdefaults__, 'uvloop', True)
    monkeypatch.setenv('TEST_LOOP', 'uvloop')
    return uvloop.new_event_loop


SPAWNED_EVERYWHERE = {
    'test_contexts', 'test_errors_in_tasks', 'test_main_module', 'test_parent_death', 'test_probes', 'test_process',
    'test_signals',
}  # fmt: skip
'''Where workers are spawned under each version of Python. Elsewhere, one is enough: a new interpreter for each worker
takes as much time as all else.'''


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if hasattr(item, 'callspec') else {}
        if parameters.get('context') == 'spawn' and item.path.stem not in SPAWNED_EVERYWHERE:
            item.add_marker(pytest.mark.long)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    '''Run coroutine tests on a fresh loop.'''
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    marker = pyfuncitem.get_closest_marker('timeout')
    limit = float(marker.args[0] if marker else pyfuncitem.config.getini('timeout'))

    async def limited() -> None:
        async with asyncio.timeout(limit * ASYNC_SHARE):
            await pyfuncitem.obj(**arguments)

    with asyncio.Runner(loop_factory=pyfuncitem.funcargs.get('each_loop')) as runner:
        runner.run(limited())
    return True


class LogGuard(logging.Handler):
    '''Collects warnings and errors; those that no `expect` matches fail the test.'''

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.unexpected: list[str] = []
        self._expected: list[tuple[re.Pattern[str], list[str]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter('%(levelname)s:%(name)s:%(message)s').format(record)
        for pattern, matches in self._expected:
            if pattern.search(text):
                matches.append(text)
                return
        self.unexpected.append(text)

    def expect(self, pattern: str) -> list[str]:
        '''Allow log lines that match `pattern`; returns the list that they are collected in.'''
        matches: list[str] = []
        self._expected.append((re.compile(pattern), matches))
        return matches


@pytest.fixture(autouse=True)
def logs() -> Iterator[LogGuard]:
    '''Fails the test on an unexpected warning; ``logs.expect(pattern)`` allows and collects.'''
    guard = LogGuard()
    root = logging.getLogger()
    root.addHandler(guard)
    yield guard
    root.removeHandler(guard)
    assert not guard.unexpected, guard.unexpected


@pytest.fixture(autouse=True)
def nothing_left(logs: LogGuard) -> Iterator[None]:
    '''Compares processes, threads, descriptors and shared memory before and after the test.'''
    before = _snapshot()
    yield
    deadline = time.monotonic() + LEAK_PATIENCE
    while (left := _left(before)) and time.monotonic() < deadline:
        # What an exception's traceback keeps, in a circle, is not lost.
        gc.collect()
        time.sleep(0.01)
    assert not left, f'left behind: {left}'


def _snapshot() -> dict[str, set[object]]:
    return {
        'processes': _processes(),
        'threads': {thread for thread in threading.enumerate() if 'pytest_timeout' not in thread.name},
        'descriptors': _descriptors(),
        'segments': _segments(),
    }


def _left(before: dict[str, set[object]]) -> dict[str, set[object]]:
    return {kind: left for kind, now in _snapshot().items() if (left := now - before[kind])}


def _processes() -> set[object]:
    '''The descendants of this process; fork servers stay warm for the next test, but their children may not stay.'''
    servers = set(process.fork_server_pids())
    return {child.pid for child in psutil.Process().children(recursive=True) if child.pid not in servers}


def _segments() -> set[object]:
    '''The shared memory that this process has mapped.'''
    with open('/proc/self/maps') as maps:
        return {line.split()[0] for line in maps if 'looppool' in line and 'memfd' in line}


def _descriptors() -> set[object]:
    servers = {server._control.fileno() for server in process._servers.values()}
    found: set[object] = set()
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            if int(name) not in servers:
                found.add((name, os.readlink(f'/proc/self/fd/{name}')))
    return {entry for entry in found if '/proc/' not in entry[1]}  # type: ignore[index]
