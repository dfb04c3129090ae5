'''A fork server: a small process that has imported what workers need and forks them on request.

1. It is started once per set of options and shared by the pools of a process; it ends when that process does.
2. A request is one byte with four descriptors: link, status page, stderr and report. The first three go to the
   child. On the report the server writes the child's pid and, when it has reaped it, its exit code.
3. It has one thread and opens nothing, so a fork copies a quiet process; what it imported is frozen out of the
   garbage collector's sight, so that the children go on sharing those pages.
'''

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final, NoReturn

from . import child

__all__ = ['REPORT', 'ForkServer', 'main']

REPORT: Final = struct.Struct('<i')
'''A pid or an exit code.'''
_DESCRIPTORS: Final = 4
_PARENT_POLL: Final = 500
'''How often the server looks whether its parent still lives, in milliseconds; a sibling may hold its socket open.'''


class ForkServer:
    '''The parent's side: starts the server process and sends requests.

    :param options: the JSON-able options for `main`.
    :param env: environment variables of the server and so of its children.
    :param cwd: its working directory, or None for the parent's.
    '''

    def __init__(self, options: dict[str, Any], env: dict[str, str], cwd: str | None) -> None:
        self.owner = os.getpid()
        self._control, theirs = socket.socketpair()
        options = {**options, 'control': theirs.fileno(), 'parent': os.getpid()}
        code = 'import sys, json; options = json.loads(sys.argv[1]); sys.path[:] = options["sys_path"]; '
        code += 'from looppool.forkserver import main; main(options)'
        with contextlib.ExitStack() as undo, theirs, child.stop_signals_blocked():
            undo.callback(self._control.close)
            self._process = subprocess.Popen(
                [sys.executable, *child.interpreter_flags(), '-c', code, json.dumps(options)],
                env=env,
                cwd=cwd,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
            undo.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def fork(self, link: int, page: int, stderr: int, report: int) -> None:
        '''Ask for a child. OSError if the server is gone.'''
        socket.send_fds(self._control, [b'f'], [link, page, stderr, report])

    def close(self) -> None:
        '''End the server, and with it the workers that it forked.'''
        self._control.close()
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        '''In a forked child: the server is the parent's, and not to be waited for here.'''
        self._control.close()
        self._process.returncode = 0


# The server process


def main(options: dict[str, Any]) -> NoReturn:
    '''Serve until the parent is gone.'''
    child.ignore_stop_signals()
    control = socket.socket(fileno=options['control'])
    loop = ['uvloop'] if options['uvloop'] else []
    _import(['looppool.workermain', *options['preload'], *loop], options['parent'])
    child.prepare_fork()
    gc.collect()
    gc.freeze()
    server = _Server(control, options['parent'], options['uvloop'])
    try:
        server.serve()
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def _import(names: list[str], parent: int) -> None:
    '''Import what the children need; an import that never ends does not outlive the parent.'''
    imported = threading.Event()
    thread = threading.Thread(target=_watch_parent, args=(parent, imported), daemon=True)
    thread.start()
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:
            # A worker that needs the module fails on it as well, and there the error reaches the application.
            print(f'looppool: the fork server could not import {name}: {error!r}', file=sys.stderr, flush=True)
    imported.set()
    # No thread may be there when the server forks.
    thread.join()


def _watch_parent(parent: int, imported: threading.Event) -> None:
    while not imported.wait(_PARENT_POLL / 1000):
        if os.getppid() != parent:
            os._exit(1)


class _Server:
    def __init__(self, control: socket.socket, parent: int, uvloop: bool) -> None:
        self._control = control
        self._parent = parent
        self._uvloop = uvloop
        self._reports: dict[int, int] = {}
        '''The report descriptor of each child, by pid.'''
        self._wake, wakeup = socket.socketpair()
        self._wakeup = wakeup
        for sock in (self._wake, wakeup):
            sock.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, child.do_nothing)

    def serve(self) -> None:
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        while os.getppid() == self._parent:
            for fd, _ in poller.poll(_PARENT_POLL):
                if fd == self._wake.fileno():
                    self._reap()
                elif not self._serve_request():
                    return

    def _serve_request(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._control, 1, _DESCRIPTORS)
        if not data:
            return False
        if len(fds) == _DESCRIPTORS:
            self._fork(*fds)
        return True

    def _fork(self, link: int, page: int, stderr: int, report: int) -> None:
        server = os.getpid()
        # Blocked as in every start of a child: until its own handlers stand, a stop signal waits.
        with child.stop_signals_blocked():
            pid = os.fork()
            if not pid:
                os.close(report)
                self._become_worker(link, page, stderr, server)
        for fd in (link, page, stderr):
            os.close(fd)
        self._reports[pid] = report
        self._tell(report, pid)

    def _become_worker(self, link: int, page: int, stderr: int, server: int) -> NoReturn:
        for report in self._reports.values():
            os.close(report)
        signal.set_wakeup_fd(-1)
        for sock in (self._control, self._wake, self._wakeup):
            sock.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _worker_main()(link, page, stderr, server, self._uvloop)

    def _reap(self) -> None:
        while True:
            try:
                self._wake.recv(4096)
            except BlockingIOError:
                break
        while self._reports:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            report = self._reports.pop(pid)
            self._tell(report, os.waitstatus_to_exitcode(status))
            os.close(report)

    def _tell(self, report: int, number: int) -> None:
        try:
            os.write(report, REPORT.pack(number))
        except OSError:
            pass  # The pool is gone and does not care any more.


def _worker_main() -> Callable[[int, int, int, int, bool], NoReturn]:
    from .workermain import main

    return main
