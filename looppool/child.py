'''The first and the last steps of every process that looppool starts.

1. Workers and fork servers stop by message: SIGINT and SIGTERM do nothing there. They are *handled* and not ignored,
   because a disposition of "ignore" would be inherited by every program that a worker runs. The parent starts a child
   with both signals blocked, and the child unblocks them when its handlers stand, so that none falls in between.
2. A worker dies with the process that forked it, whatever its loop is doing: the kernel sees to it (PDEATHSIG) or,
   where it can't, a thread does.
3. A worker has no stdin, and its stderr is a pipe to the parent, which passes it on and keeps the end of it.
'''

import atexit
import contextlib
import faulthandler
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NoReturn

__all__ = [
    'INTERRUPT_SIGNAL',
    'die_with_parent',
    'do_nothing',
    'enter',
    'forget_exit_handlers',
    'ignore_stop_signals',
    'interpreter_flags',
    'leave',
    'prepare_fork',
    'stop_signals_blocked',
]

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
INTERRUPT_SIGNAL: Final = signal.SIGURG
'''Interrupts a task. Nothing happens to a process that knows nothing of it, such as a program that a worker runs.'''
_PR_SET_PDEATHSIG: Final = 1
_PARENT_POLL: Final = 0.25
'''How often a thread looks for the parent where the kernel gives no signal, in seconds.'''


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    '''Start children inside: they begin with the stop signals blocked, and keep them so until they `enter`.'''
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    '''Let SIGINT and SIGTERM do nothing here, but keep their defaults for programs started from here.'''
    # The parent's wakeup descriptor is shared after a fork: what is written there would wake the parent.
    signal.set_wakeup_fd(-1)
    for signum in STOP_SIGNALS:
        signal.signal(signum, do_nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def do_nothing(_signum: int, _frame: object) -> None:
    '''A signal handler that lets a signal do no more than wake up.'''


def enter(stderr_fd: int, parent_pid: int) -> None:
    '''Make this process a worker's: signals, death with its parent, stdin, stderr, exit handlers.

    :param stderr_fd: the write end of the pipe to the parent; it is closed here.
    :param parent_pid: the process that forked this one.
    '''
    ignore_stop_signals()
    die_with_parent(parent_pid)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    # A forked one would give what the parent has read ahead.
    sys.stdin = open(0, closefd=False)
    os.dup2(stderr_fd, 2)
    os.close(stderr_fd)
    faulthandler.enable(2)
    guard = _ForkGuard()
    os.register_at_fork(before=guard.before, after_in_parent=guard.after, after_in_child=guard.after_in_child)


class _ForkGuard:
    '''What a worker forks of its own accord can be stopped by signals, as anywhere else.'''

    def __init__(self) -> None:
        self._of_thread = threading.local()

    def before(self) -> None:
        # A signal that meets the child before it has the default handlers would be lost.
        self._of_thread.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def after(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._of_thread.mask)

    def after_in_child(self) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.after()


def forget_exit_handlers() -> None:
    '''In a fork of the application: its exit handlers are its own.'''
    atexit._clear()
    threading._threading_atexits.clear()  # type: ignore[attr-defined]


def die_with_parent(parent_pid: int) -> None:
    '''End this process when the one that forked it ends.'''
    if not _ask_kernel():
        threading.Thread(target=_watch_parent, args=(parent_pid,), name='looppool-parent', daemon=True).start()
    # The parent may have died before the kernel was asked.
    if os.getppid() != parent_pid:
        os._exit(1)


def _ask_kernel() -> bool:
    prctl = _prctl()
    return prctl is not None and prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0


@functools.cache
def _prctl() -> Callable[..., int] | None:
    if not sys.platform.startswith('linux'):
        return None
    import ctypes

    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    return prctl


def interpreter_flags() -> list[str]:
    '''The options that this interpreter runs with, for one that shall run likewise (as multiprocessing takes them).

    With -P, as the child is told its ``sys.path`` and needs no entry for ``-c``; without it Python 3.13.0 can't import
    the standard library when the working directory is gone.
    '''
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [*flags, '-P']


def prepare_fork() -> None:
    '''Do before a fork what should not be done after it: flush what would be written twice, import, open libraries.'''
    _prctl()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _watch_parent(parent_pid: int) -> None:
    while os.getppid() == parent_pid:
        time.sleep(_PARENT_POLL)
    os._exit(1)


def leave(code: int) -> NoReturn:
    '''End this process: run the exit handlers that the worker registered, flush, and go, without what it inherited.'''
    try:
        # As the interpreter does at its end: threads first, and with them the executors, then the exit handlers.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
