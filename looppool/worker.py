'''`Worker`, which a user subclasses, and the main of a worker process.

1. Tasks are taken up in the order of their ids; the last id is stored in the status page before its handler runs.
2. A task is taken up while fewer than `concurrency` are open, and more result credits are free than tasks are open:
   so a worker that gives one result per task never sees `Full`.
3. A task ends once: by ``_task_done()``, or by the error that its handler raises. A done that is called while an
   exception passes through the handler (``try: … finally: self._task_done()``) waits for how the handler ends.
4. The last message is the pill: what was accepted ends, ``_finalise`` runs, what was put leaves, the process exits.
'''

import asyncio
import contextvars
import functools
import inspect
import logging
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, NoReturn, ParamSpec, TypeVar

from tornado.ioloop import IOLoop

from . import child
from .channel import Channel
from .codec import Key, decode, define, encode, pack_error
from .errors import Full, ProtocolError
from .frames import Frame, check_size
from .protocol import Window, WorkerEnd
from .status import StatusPage
from .watchdog import Watchdog

__all__ = ['Worker', 'idempotent', 'is_idempotent', 'main', 'task_done']

TaskT = TypeVar('TaskT')
ResultT = TypeVar('ResultT')
T = TypeVar('T')
P = ParamSpec('P')
R = TypeVar('R')

_log: Final = logging.getLogger('looppool.worker')


class Worker(Generic[TaskT, ResultT]):
    '''The base of your workers. Its one instance lives with its IO loop in a worker process.

    Override `_process_message`, and as you need `_initialise` and `_finalise`; each may be a plain function or a
    coroutine. All of them, and the methods for your use, belong to the thread of the worker's loop: from another
    thread, go through ``self._ioloop.add_callback``.
    '''

    _number: int
    '''The worker's number in its pool, from 0. A replacement has the number of the worker that it replaces.'''
    _ioloop: IOLoop
    '''The Tornado loop of this process.'''
    _options: dict[str, Any]
    '''``Pool(options=...)``.'''
    _pool_name: str
    '''``Pool(name=...)``.'''
    _main: '_Main'

    def _initialise(self, *args: Any, **options: Any) -> Any:
        '''Set up; called once, before any task, with ``Pool(options=...)`` as keyword arguments.

        What it raises fails ``pool.start()`` with `WorkerStartError`.
        '''

    def _process_message(self, message: TaskT) -> Any:
        '''Handle a task. Call `_task_done` when it is done, now or later, or decorate with `task_done`.

        What it raises ends the task: ``pool.process_failure`` gets it.
        '''
        raise NotImplementedError(f'{type(self).__name__} has no _process_message: override it in your Worker')

    def _finalise(self) -> Any:
        '''Clean up; called once, after the last task, before the process exits.'''

    def _put_nowait(self, result: ResultT) -> None:
        '''Put a result, in a task or without one.

        :raises Full: the window of results is used up. A task's one result never meets this.
        :raises MessageTooBig: it is larger than ``Pool(max_message_bytes=...)``.
        :raises Exception: the error of pickling it.
        '''
        self._main.put_nowait(result)

    async def _put(self, result: ResultT) -> None:
        '''As `_put_nowait`, but waits for credit, first come, first served. Cancelled, it has put nothing.'''
        await self._main.put(result)

    def _task_done(self) -> None:
        '''The current task is done: the one whose handler runs, or from which this callback or asyncio task comes.

        :raises RuntimeError: there is no current task.
        :raises ValueError: it is done already.
        '''
        self._main.task_done()

    def _task_failed(self, error: BaseException) -> None:
        '''A task ended with `error`; it is on its way to the parent. Override it to report errors from here.'''

    def _loop_blocked(self, seconds: float, stack: str) -> None:
        '''The loop is blocked, for `seconds` so far, by `stack`. Called from the watchdog's thread meanwhile.'''
        _log.warning(
            'worker %d (pid %d) of pool %r: the loop is blocked for %.3f s by\n%s',
            self._number, os.getpid(), self._pool_name, seconds, stack,
        )  # fmt: skip


def task_done(handler: Callable[P, R]) -> Callable[P, R]:
    '''Decorate a handler so that what it handles is done when it returns.

    For ``Worker._process_message``, and for a pool's ``process_message(result, result_done)``; plain functions,
    coroutines and ``@gen.coroutine``. If the handler raises, nothing is done: the error ends the task.
    '''
    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def wrapper(*args: Any) -> None:
            await handler(*args)  # type: ignore[call-arg]
            _done_of(args)()
    else:

        @functools.wraps(handler)
        def wrapper(*args: Any) -> Any:
            outcome = handler(*args)  # type: ignore[call-arg]
            if outcome is not None and inspect.isawaitable(outcome):
                return _done_after(outcome, args)
            _done_of(args)()
            return None

    return wrapper  # type: ignore[return-value]


def _done_of(args: tuple[Any, ...]) -> Callable[[], None]:
    first = args[0]
    if len(args) == 2 and isinstance(first, Worker):
        return first._task_done
    return args[-1]  # type: ignore[no-any-return]


async def _done_after(outcome: Any, args: tuple[Any, ...]) -> None:
    await outcome
    _done_of(args)()


def idempotent(target: T) -> T:
    '''Mark a Worker class, or its ``_process_message``, whose tasks may be run twice without harm.

    A task that may have run when its worker died is then run once more, or ``Pool(retries=...)`` times if that is more.
    '''
    target._looppool_idempotent = True  # type: ignore[attr-defined]
    return target


def is_idempotent(target: object) -> bool:
    '''Whether `target` was marked by `idempotent`.'''
    return getattr(target, '_looppool_idempotent', False)


# The worker process

_current: Final[contextvars.ContextVar[int]] = contextvars.ContextVar('looppool_task')
'''The id of the task that a piece of code belongs to.'''

_RUNNING: Final = object()
'''The state of an open task while its plain handler runs. Later: its asyncio task, or None when that has returned.'''


def main(link: int, page: int, stderr: int, parent: int) -> NoReturn:
    '''Be a worker process until the pill, and end it. The first three are descriptors, `parent` is a pid.'''
    code = 1
    try:
        child.enter(stderr, parent)
        code = asyncio.run(_serve(socket.socket(fileno=link), StatusPage(page)))
        os.close(page)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        child.leave(code)


async def _serve(link: socket.socket, page: StatusPage) -> int:
    return await _Main(link, page).exit


class _Main:
    '''The worker process's side of everything: it is the `WorkerHandler` of its link, and runs its Worker.'''

    def __init__(self, link: socket.socket, page: StatusPage) -> None:
        self.loop = asyncio.get_running_loop()
        self.exit: asyncio.Future[int] = self.loop.create_future()
        self.worker: Worker[Any, Any]
        self._page = page
        self._pending: deque[Frame] = deque()
        self._open: dict[int, Any] = {}
        '''The tasks that are taken up and have not ended, with their states.'''
        self._deferred: set[int] = set()
        '''Those that said they are done while an exception passes through their handler.'''
        self._overdrawn: set[int] = set()
        '''Those that have once put a result beyond the window's bytes.'''
        self._concurrency = 1
        self._working = False
        self._stopping = False
        self._put_turn = asyncio.Lock()
        self._credit = asyncio.Event()
        self._thread = threading.get_ident()
        self._channel = Channel(link, self.loop, self._work, self._on_closed)
        self._end = WorkerEnd(self, self._pending.append, self._channel.wake)
        self._channel.open(self._end)

    # Starting

    def on_configure(self, body: bytes) -> None:
        '''Set up the process before anything of the user is imported.'''
        self._configuration = configuration = pickle.loads(body)
        sys.path[:] = configuration['sys_path'] or [*configuration['path'], *sys.path]
        _set_environ(configuration['environ'])
        if configuration['cwd'] is not None:
            os.chdir(configuration['cwd'])
        self._concurrency = configuration['concurrency']
        self._end.results = Window(configuration['results'], configuration['result_bytes'])
        self._end.limit_bodies(configuration['max_body'])

    def on_define(self, body: bytes) -> Key:
        return define(body)

    def on_start(self, body: bytes) -> None:
        self._starting = self.loop.create_task(self._start(body))

    async def _start(self, body: bytes) -> None:
        try:
            self.worker = self._make_worker(*decode(body))
            self._beat()
            outcome = self.worker._initialise(**self.worker._options)
            if inspect.isawaitable(outcome):
                await outcome
            self._start_watchdog()
        except BaseException as error:
            self._end.start_failed(*pack_error(error, self._end.max_body))
            await self._channel.drained()
            self._leave(1)
        else:
            self._handler = self.worker._process_message
            self._end.ready()

    def _make_worker(self, worker_class: type[Worker[Any, Any]], options: dict[str, Any]) -> Worker[Any, Any]:
        _set_title(f'looppool: {self._configuration["pool"]} worker {self._configuration["number"]}')
        # The attributes are there before a subclass's __init__ may want them.
        worker = worker_class.__new__(worker_class)
        worker._main = self
        worker._number = self._configuration['number']
        worker._pool_name = self._configuration['pool']
        worker._options = options
        worker._ioloop = IOLoop.current()
        worker.__init__()  # type: ignore[misc]
        return worker

    def _beat(self) -> None:
        self._page.heartbeat = time.monotonic()
        self.loop.call_later(self._configuration['heartbeat'], self._beat)

    def _start_watchdog(self) -> None:
        threshold = self._configuration['blocking_threshold']
        if threshold:
            Watchdog(lambda: self._page.heartbeat, threshold, self.worker._loop_blocked).start()

    # Tasks

    def _work(self, deadline: float) -> bool:
        '''Take up what may be taken up; the channel's `work`.'''
        pending, open_, results = self._pending, self._open, self._end.results
        self._working = True
        while (
            pending
            and len(open_) < self._concurrency
            and results.limit - results.used > len(open_)
            and results.bytes < results.max_bytes
        ):
            _, ident, body = pending.popleft()
            self._take_up(ident, body)
            if time.monotonic() > deadline:
                break
        else:
            self._working = False
            self._finish_if_idle()
            return False
        self._working = False
        return True

    def _take_up(self, ident: int, body: bytes) -> None:
        self._page.taken_up = ident
        self._open[ident] = _RUNNING
        _current.set(ident)
        try:
            outcome = self._handler(decode(body))
        except BaseException as error:
            self._fail(ident, error)
            return
        if outcome is not None and inspect.isawaitable(outcome):
            self._open[ident] = self.loop.create_task(self._follow(ident, outcome))
        elif ident in self._open:
            self._returned(ident)

    async def _follow(self, ident: int, outcome: Any) -> None:
        try:
            await outcome
        except BaseException as error:
            self._fail(ident, error)
        else:
            if ident in self._open:
                self._returned(ident)

    def _returned(self, ident: int) -> None:
        '''The handler of an open task has returned: the task is done if it said so, else it stays open.'''
        self._open[ident] = None
        if ident in self._deferred:
            self._deferred.discard(ident)
            self._done(ident)

    def task_done(self) -> None:
        ident = _current.get(0)
        state = self._open.get(ident, self)
        if state is self or ident in self._deferred:
            raise _not_open(ident)
        if state is not None and sys.exception() is not None:
            self._deferred.add(ident)
        else:
            self._done(ident)

    def _done(self, ident: int) -> None:
        self._end.done(ident)
        self._forget(ident)

    def _fail(self, ident: int, error: BaseException) -> None:
        if ident in self._open:
            self._deferred.discard(ident)
            self._end.failed(ident, *pack_error(error, self._end.max_body))
            self._forget(ident)
        else:
            _log.error('a handler of worker %d raised after its task was done', self.worker._number, exc_info=error)
        try:
            self.worker._task_failed(error)
        except Exception:
            _log.exception('_task_failed of worker %d raised', self.worker._number)

    def _forget(self, ident: int) -> None:
        del self._open[ident]
        if self._overdrawn:
            self._overdrawn.discard(ident)
        if not self._working and (self._pending or self._stopping):
            self._channel.work_soon()

    # Results

    def put_nowait(self, result: object) -> None:
        self._check_thread('_put_nowait')
        body, needs = encode(result)
        if not self._end.results.admits(len(body)) and not self._overdraw():
            raise Full('result', f'worker {self.worker._number}')
        self._end.send_result(body, needs)

    def _overdraw(self) -> bool:
        '''Each task may go beyond the window's bytes once: nobody knew how large its result is when it was taken up.'''
        ident = _current.get(0)
        results = self._end.results
        if results.used >= results.limit or ident not in self._open or ident in self._overdrawn:
            return False
        self._overdrawn.add(ident)
        return True

    async def put(self, result: object) -> None:
        self._check_thread('_put')
        body, needs = encode(result)
        check_size(len(body), self._end.max_body)
        async with self._put_turn:
            while not self._end.results.admits(len(body)):
                self._credit.clear()
                await self._credit.wait()
            self._end.send_result(body, needs)

    def on_credit(self) -> None:
        self._credit.set()

    def _check_thread(self, method: str) -> None:
        if threading.get_ident() != self._thread:
            raise RuntimeError(
                f'{method} was called from another thread than that of the loop: '
                f'use self._ioloop.add_callback(self.{method}, ...)'
            )

    # Stopping

    def on_pill(self) -> None:
        # The channel calls `_work` next, which finishes when there is nothing to do.
        self._stopping = True

    def on_cancel(self) -> None:
        self._pending.clear()
        for ident, state in list(self._open.items()):
            if isinstance(state, asyncio.Task):
                state.cancel()
            else:
                self._fail(ident, asyncio.CancelledError())

    def _finish_if_idle(self) -> None:
        if self._stopping and not self._open and not self._pending:
            self._stopping = False
            self._finishing = self.loop.create_task(self._finish())

    async def _finish(self) -> None:
        try:
            outcome = self.worker._finalise()
            if inspect.isawaitable(outcome):
                await outcome
        except BaseException:
            _log.exception('_finalise of worker %d raised', self.worker._number)
        self._end.bye()
        await self._channel.drained()
        self._leave(0)

    def _leave(self, code: int) -> None:
        if not self.exit.done():
            self.exit.set_result(code)

    def _on_closed(self, error: ProtocolError | None) -> None:
        '''The parent is gone, or has let go of this worker: nothing that could be done here is of use to anybody.'''
        if error:
            print(f'looppool: worker {os.getpid()}: {error}', file=sys.stderr, flush=True)
        os._exit(1)


def _not_open(ident: int) -> Exception:
    if not ident:
        return RuntimeError('_task_done() was called where there is no current task')
    return ValueError('_task_done() was called for a task that has ended already')


def _set_environ(environ: dict[str, str]) -> None:
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _set_title(title: str) -> None:
    from setproctitle import setproctitle

    setproctitle(title)
