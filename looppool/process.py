'''Worker processes: three contexts to start them in, and one handle on each.

1. `start` gives a `Process` at once; its pid may come later. Whatever the context, the child gets three descriptors
   (link, status page, stderr) and learns the rest over the link.
2. A script is never run a second time in a child: nothing of the parent's ``__main__`` is imported there.
3. The exit is watched by a descriptor on the loop (pidfd, or the fork server's report), or where there is no pidfd by
   a thread that waits for it. No signal handler and no ``waitpid(-1)``: the application's own children are its own.
4. What the worker writes to stderr is passed on to the parent's stderr; the end of it is kept for the errors.
'''

import asyncio
import atexit
import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from . import child
from .forkserver import REPORT, ForkServer

__all__ = ['CONTEXTS', 'Launch', 'Process', 'close_fork_servers', 'default_context', 'start']

CONTEXTS: Final = ('fork', 'forkserver', 'spawn')
_STDERR_KEPT: Final = 4096
'''How much of the end of stderr is kept, in bytes: a Python traceback of some depth.'''
_REPORT_GRACE: Final = 5.0
'''How long a fork server may take to report on a process that was killed, in seconds. It is quick unless it hangs, and
a server that is given up takes all its workers with it.'''
_STRANGER_POLL: Final = 0.005
'''How often to look for a process that can't be waited for, in seconds.'''
_LAST_READS: Final = 8
'''How often stderr is read after the end: more than what a pipe holds.'''


def default_context() -> str:
    '''``forkserver`` where there is fork, as it starts fast and copies no threads; else ``spawn``.'''
    return 'forkserver' if hasattr(os, 'fork') else 'spawn'


@dataclasses.dataclass(frozen=True)
class Launch:
    '''How to start the processes of a pool.

    :param context: ``'fork'``, ``'forkserver'`` or ``'spawn'``.
    :param env: environment variables (name, value) to set in the workers, on top of the parent's.
    :param cwd: their working directory; None for the parent's.
    :param path: folders to put in front of their ``sys.path``.
    :param preload: modules for the fork server to import before it forks.
    :param executable: the Python interpreter to start (``spawn`` only); it must be able to import looppool.
    :param uvloop: whether their loops are uvloop's.
    '''

    context: str
    env: tuple[tuple[str, str], ...] = ()
    cwd: str | None = None
    path: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    executable: str | None = None
    uvloop: bool = False

    def __post_init__(self) -> None:
        if self.context not in CONTEXTS:
            raise ValueError(f'context has to be one of {", ".join(CONTEXTS)}, not {self.context!r}')
        if self.executable is not None and self.context != 'spawn':
            raise ValueError(f"executable needs context='spawn': a {self.context} child runs the interpreter it copies")
        if self.preload and self.context != 'forkserver':
            raise ValueError("preload needs context='forkserver'")

    def sys_path(self) -> list[str]:
        return [*self.path, *(p for p in sys.path if p not in self.path)]

    def environ(self) -> dict[str, str]:
        return {**os.environ, **dict(self.env)}


class Process:
    '''One worker process. All methods belong to the loop's thread.

    :ivar pid: None until it is known.
    :ivar exitcode: as in `subprocess`, negative for a signal; None while it runs, and when nobody could tell.
    :ivar ended: whether the process is gone.
    :ivar lost_with: the fork server that died and took this process along; else None.
    '''

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stderr: int,
        on_started: Callable[[], None],
        on_exit: Callable[[], None],
    ) -> None:
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.ended = False
        self.lost_with: ForkServer | None = None
        self.give_up: Callable[[], None] | None = None
        '''Called when a fork server's report was waited for in vain; None where there is none.'''
        self._loop = loop
        self._on_started = on_started
        self._on_exit = on_exit
        self._owner = os.getpid()
        self._kill_wanted = False
        self._stderr_fd = stderr
        self._stderr: deque[bytes] = deque()
        os.set_blocking(stderr, False)
        loop.add_reader(stderr, self._relay_stderr)

    def kill(self) -> None:
        '''Send SIGKILL, now or as soon as the pid is known. A process that has ended is left alone.'''
        if self.ended or self._owner != os.getpid():
            return
        if self.give_up is not None and not self._kill_wanted:
            # A fork server is to tell the pid and the end; one that hangs must not hold up everything else.
            self._loop.call_later(_REPORT_GRACE, self._stop_waiting_for_report)
        self._kill_wanted = True
        if self.pid is not None:
            # With the fork server the pid may be reaped, and in theory reused, between its report and our reading it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def interrupt(self) -> None:
        '''Send the signal that makes a worker look what to interrupt.'''
        if not self.ended and self._owner == os.getpid() and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, child.INTERRUPT_SIGNAL)

    def _stop_waiting_for_report(self) -> None:
        if self.give_up is not None and not self.ended:
            self.give_up()
            self._ended(None)

    def stderr_end(self) -> str:
        '''The last that the process wrote to stderr.'''
        return b''.join(self._stderr)[-_STDERR_KEPT:].decode(errors='replace').strip()

    def _started(self, pid: int) -> None:
        self.pid = pid
        if self._kill_wanted:
            self.kill()
        self._on_started()

    def _ended(self, exitcode: int | None) -> None:
        if self.ended:
            return
        self.ended = True
        self.exitcode = exitcode
        self._loop.remove_reader(self._stderr_fd)
        # Bounded, as a child of the worker may have inherited the pipe and go on writing.
        for _ in range(_LAST_READS):
            if not self._relay_stderr():
                break
        os.close(self._stderr_fd)
        self._on_exit()

    def _relay_stderr(self) -> bool:
        '''Pass on what there is; return whether there can be more.'''
        try:
            data = os.read(self._stderr_fd, 65536)
        except OSError:
            return False
        if not data:
            self._loop.remove_reader(self._stderr_fd)
            return False
        self._stderr.append(data)
        while len(self._stderr) > 1 and sum(map(len, self._stderr)) - len(self._stderr[0]) >= _STDERR_KEPT:
            self._stderr.popleft()
        _pass_on(data)
        return True


def start(
    launch: Launch,
    loop: asyncio.AbstractEventLoop,
    link: socket.socket,
    page: int,
    *,
    on_started: Callable[[], None],
    on_exit: Callable[[], None],
) -> Process:
    '''Start a worker process.

    :param link: the child's end of the link; the caller closes it afterwards, and `page` too.
    :param page: the descriptor of the status page.
    :param on_started: called once the pid is known, on the loop, perhaps before this returns.
    :param on_exit: called once, on the loop, when the process is gone.
    :raises OSError: the system could not start one.
    '''
    ours, theirs = os.pipe()
    process = Process(loop, ours, on_started, on_exit)
    try:
        _STARTERS[launch.context](launch, process, (link.fileno(), page, theirs))
    except BaseException:
        process._on_exit = lambda: None
        process._ended(None)
        raise
    finally:
        os.close(theirs)
    return process


def _pass_on(data: bytes) -> None:
    '''Write to stderr what fits there now: a reader that has fallen asleep must not stop the loop.'''
    poller = select.poll()
    poller.register(2, select.POLLOUT)
    with contextlib.suppress(OSError):
        # A pipe that is writable takes that much without blocking.
        for start in range(0, len(data), select.PIPE_BUF):
            if not poller.poll(0):
                break
            os.write(2, data[start : start + select.PIPE_BUF])


Descriptors = tuple[int, int, int]


def _start_fork(launch: Launch, process: Process, fds: Descriptors) -> None:
    from .workermain import main

    parent = os.getpid()
    child.prepare_fork()
    with child.stop_signals_blocked():
        pid = os.fork()
        if not pid:
            child.forget_exit_handlers()
            asyncio._set_running_loop(None)
            main(*fds, parent, launch.uvloop)
    _watch(process, pid, lambda: _reap(pid))


def _start_spawn(launch: Launch, process: Process, fds: Descriptors) -> None:
    options = [*fds, os.getpid(), launch.uvloop]
    if launch.executable is None:
        setup, arguments = 'sys.path[:] = json.loads(sys.argv[2])', [json.dumps(launch.sys_path())]
    else:
        setup, arguments = f'sys.path.append({_package_root()!r})', []
    code = f'import sys, json; {setup}; from looppool.workermain import main; main(*json.loads(sys.argv[1]))'
    flags = child.interpreter_flags() if launch.executable is None else []
    with child.stop_signals_blocked():
        popen = subprocess.Popen(
            [launch.executable or sys.executable, *flags, '-c', code, json.dumps(options), *arguments],
            env=launch.environ(),
            cwd=launch.cwd,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stderr=fds[2],
        )

    def reap() -> int | None:
        code = _reap(popen.pid)
        # Popen would make up a code where somebody else has reaped the child.
        popen.returncode = 0
        return code

    _watch(process, popen.pid, reap)


def _package_root() -> str:
    '''The folder that holds the package looppool.'''
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _start_forkserver(launch: Launch, process: Process, fds: Descriptors) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with contextlib.ExitStack() as undo, theirs:
        undo.callback(ours.close)
        server = _fork_server(launch)
        try:
            server.fork(*fds, theirs.fileno())
        except OSError:
            # It died since it was last used.
            server.close()
            server = _fork_server(launch)
            server.fork(*fds, theirs.fileno())
        undo.pop_all()

    def give_up() -> None:
        process._loop.remove_reader(ours)
        ours.close()
        server.close()

    process.give_up = give_up
    process._loop.add_reader(ours, _on_report, process, ours, server)


_STARTERS: Final = {'fork': _start_fork, 'forkserver': _start_forkserver, 'spawn': _start_spawn}


def _on_report(process: Process, report: socket.socket, server: ForkServer) -> None:
    try:
        data = report.recv(REPORT.size)
    except BlockingIOError:
        return
    except OSError:
        data = b''
    if data and process.pid is None:
        process._started(REPORT.unpack(data)[0])
        return
    process._loop.remove_reader(report)
    report.close()
    if data:
        process._ended(REPORT.unpack(data)[0])
        return
    process.give_up = None
    # The server died. Its children die with it, but not at the same moment, and what this one has taken up can be told
    # only when it is gone.
    process.lost_with = server
    process.kill()
    if process.pid is None:
        process._ended(None)
    else:
        _watch(process, process.pid, lambda: -signal.SIGKILL, _await_stranger)


def _await_stranger(pid: int) -> None:
    '''Wait for the end of a process that is no child of this one.'''
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(_STRANGER_POLL)


def _await_child(pid: int) -> None:
    '''Wait for the end of a child, and leave it to be reaped.'''
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def _reap(pid: int) -> int | None:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None  # Somebody else in this process has waited for it.


def _watch(
    process: Process, pid: int, exitcode: Callable[[], int | None], wait: Callable[[int], None] = _await_child
) -> None:
    '''Have `process` told when `pid` ends, with what `exitcode` then gives; `wait` blocks a thread until then.'''
    process._started(pid)
    loop = process._loop
    try:
        pidfd = os.pidfd_open(pid)
    except (AttributeError, OSError):
        _watch_in_thread(process, pid, exitcode, wait)
        return

    def ended() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process._ended(exitcode())

    loop.add_reader(pidfd, ended)


def _watch_in_thread(
    process: Process, pid: int, exitcode: Callable[[], int | None], wait: Callable[[int], None]
) -> None:
    def watch() -> None:
        wait(pid)
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody is left to be told.
            process._loop.call_soon_threadsafe(lambda: process._ended(exitcode()))

    threading.Thread(target=watch, name=f'looppool-wait-{pid}', daemon=True).start()


# Fork servers, one for each set of options, shared by the pools of this process

_servers: Final[dict[Launch, ForkServer]] = {}
_servers_lock = threading.Lock()


def _fork_server(launch: Launch) -> ForkServer:
    with _servers_lock:
        server = _servers.get(launch)
        if server is not None and not server.alive:
            server.close()
            server = None
        if server is None:
            options = {'sys_path': launch.sys_path(), 'preload': launch.preload, 'uvloop': launch.uvloop}
            server = _servers[launch] = ForkServer(options, launch.environ(), launch.cwd)
        return server


def close_fork_servers() -> None:
    '''End the fork servers of this process, and the workers that they forked. New pools start new ones.'''
    with _servers_lock:
        for server in _servers.values():
            server.close()
        _servers.clear()


def _forget_fork_servers() -> None:
    for server in _servers.values():
        server.forget()
    _servers.clear()


def fork_server_pids() -> Iterator[int]:
    '''The pids of the fork servers that wait for pools of this process.'''
    return (server.pid for server in _servers.values() if server.alive)


atexit.register(close_fork_servers)
os.register_at_fork(after_in_child=_forget_fork_servers)
