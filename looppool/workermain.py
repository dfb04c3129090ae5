'''The main of a worker process.

1. Tasks are taken up in the order of their ids; the last id is stored in the status page before its handler runs.
2. A task is taken up while fewer than `concurrency` are open, and more result credits are free than tasks are open:
   so a worker that gives one result per task never sees `Full`.
3. A task ends once: by ``_task_done()``, or by the error that its handler raises. A done that is called while an
   exception passes through the handler (``try: … finally: self._task_done()``) waits for how the handler ends.
4. Every task has a copy of the loop's context variables to itself, with the values that have travelled along. The loop
   begins with none, also where the process was forked from one that had some.
5. The last message is the pill: what was accepted ends, ``_finalise`` runs, what was put leaves, the process exits.
'''

import asyncio
import contextvars
import inspect
import itertools
import logging
import os
import pickle
import socket
import sys
import time
import traceback
from collections import deque
from threading import get_ident
from types import CodeType
from typing import Any, Final, NoReturn

from tornado.ioloop import IOLoop

from . import child
from .asking import Asking, set_asking
from .callee import Callee, interruptible
from .channel import Channel
from .codec import Key, check_encoded, decode, define, pack_error
from .errors import Full, PoolClosed, ProtocolError
from .exchange import Exchange
from .here import CurrentWorker, set_current_worker
from .kinds import RELAYED, Kind
from .modules import forget_modules
from .packing import Packing
from .payload import Body, Payload
from .plain import PLAIN
from .protocol import WorkerEnd
from .runner import Runner, as_coroutine
from .segments import SegmentStore, Sharing, open_store
from .status import TAKEN_UP, StatusPage
from .watchdog import Watchdog
from .window import Window
from .worker import Worker, undecorated

__all__ = ['WorkerMain', 'main']

_log: Final = logging.getLogger('looppool.worker')

_current: Final[contextvars.ContextVar[int]] = contextvars.ContextVar('looppool_task')
'''The id of the task that a piece of code belongs to.'''

_RUNNING: Final = object()
'''The state of an open task whose handler has not returned; later it is None.'''
_CALLED: Final = object()
'''The state of an open call.'''
_CALL: Final = int(Kind.CALL)
_RELAY: Final = int(Kind.RELAY)


def main(link: int, page: int, stderr: int, parent: int, uvloop: bool) -> NoReturn:
    '''Be a worker process until the pill, and end it.

    :param link: a descriptor, as `page` and `stderr` are.
    :param parent: a pid.
    :param uvloop: whether its loop is uvloop's.
    '''
    code = 1
    try:
        child.enter(stderr, parent)
        # Kept to the very end: a closed link tells the parent that the worker is gone, and exit handlers take time.
        sock = socket.socket(fileno=link)
        code = contextvars.Context().run(_run, sock, StatusPage(page), uvloop)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        child.leave(code)


def _run(link: socket.socket, page: StatusPage, uvloop: bool) -> int:
    with asyncio.Runner(loop_factory=_new_uvloop if uvloop else None) as runner:
        loop = runner.get_loop()
        serving = loop.create_task(_serve(link, page))
        while not serving.done():
            try:
                _turn(loop, serving)
            except SystemExit:
                # asyncio lets it out of any asyncio task or callback, and gives it to whoever awaits that task as well.
                # It is an error there, and no reason to end all the others.
                continue
        return serving.result()


def _new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _turn(loop: asyncio.AbstractEventLoop, serving: asyncio.Task[int]) -> None:
    '''Run the loop, and nothing else: a loop that is written in C runs what it calls in this frame.'''
    loop.run_until_complete(serving)


def _callers(loop: asyncio.AbstractEventLoop) -> list[CodeType]:
    '''What of this module calls the callbacks of the loop: nothing, where asyncio's own code does.'''
    return [] if isinstance(loop, asyncio.BaseEventLoop) else [_turn.__code__]


async def _serve(link: socket.socket, page: StatusPage) -> int:
    main = WorkerMain(link, page)
    try:
        return await main.exit
    finally:
        main.stop_watching()


class WorkerMain:
    '''The worker process's side of everything: it is the `WorkerHandler` of its link, and runs its Worker.'''

    def __init__(self, link: socket.socket, page: StatusPage) -> None:
        self.loop = asyncio.get_running_loop()
        self.exit: asyncio.Future[int] = self.loop.create_future()
        self._serving = asyncio.current_task()
        self._context = contextvars.copy_context()
        self.worker: Worker[Any, Any]
        self._page = page
        self._words = page.words
        self._pending: deque[tuple[int, int, Body]] = deque()
        self._relayed: deque[tuple[int, int, Body]] = deque()
        '''Calls of other workers that are not taken up.'''
        self._last_relay = 0
        self._open: dict[int, Any] = {}
        '''The tasks that are taken up and have not ended, with their states.'''
        self._relays: set[int] = set()
        '''The calls of other workers that are taken up and have not ended.'''
        self._deferred: set[int] = set()
        '''Those that said they are done while an exception passes through their handler.'''
        self._overdrawn: set[int] = set()
        '''Those that have once put a result beyond the window's bytes.'''
        self._misconfigured: Exception | None = None
        self._watchdog: Watchdog | None = None
        self._concurrency = 1
        self._working = False
        self._stopping = False
        self._forked = False
        os.register_at_fork(after_in_child=self._on_fork)
        self._put_turn = asyncio.Lock()
        self._puts_in_line = 0
        self._credit = asyncio.Event()
        self._thread = get_ident()
        self._runner = Runner(self.loop, self._coroutine_ended)
        self._channel = Channel(link, self.loop, self._work, self._on_closed)
        self._end = WorkerEnd(self, self._receive, self._channel.wake)
        self._end.memory = Sharing(self.loop, self._channel, self._end)
        self._callee = Callee(self.loop, self._end, self._words, self._leave_if_forked, self._forget)
        self._asking = Asking(self.loop, self._end)
        set_asking(self._asking)
        self._use(Packing())
        interruptible(self._words, WorkerMain._handle.__code__, *_callers(self.loop))
        self._channel.open(self._end)

    # Starting

    def on_configure(self, body: bytes) -> None:
        '''Set up the process before anything of the user is imported. What goes wrong fails the start that follows.'''
        try:
            self._configure(pickle.loads(body))
        except Exception as error:
            self._misconfigured = error

    def _configure(self, configuration: dict[str, Any]) -> None:
        self._configuration = configuration
        sys.path[:] = configuration['sys_path'] or [*configuration['path'], *sys.path]
        _set_environ(configuration['environ'])
        if configuration['cwd'] is not None:
            os.chdir(configuration['cwd'])
        forget_modules(configuration['reimport'])
        self._concurrency = configuration['concurrency']
        self._end.results = Window(configuration['results'], configuration['result_bytes'])
        self._end.limit_bodies(configuration['max_body'])
        self._asking.pool = configuration['pool_key']

    def on_define(self, body: bytes | Payload) -> Key:
        return define(body)

    def on_start(self, body: Body) -> None:
        self._starting = self.loop.create_task(self._start(body))

    async def _start(self, body: Body) -> None:
        try:
            if self._misconfigured is not None:
                raise self._misconfigured
            worker_class, options, codec, variables = decode(body)
            self._use(Packing(codec, variables, self._open_store()))
            self.worker = self._make_worker(worker_class, options)
            self._beat()
            outcome = self.worker._initialise(**self.worker._options)
            if inspect.isawaitable(outcome):
                await outcome
            self._start_watchdog()
        except BaseException as error:
            self._end.start_failed(*pack_error(error, self._end.max_own_body))
            await self._channel.drained()
            self._leave(1)
        else:
            self.take_handler()
            self._end.ready()

    def _open_store(self) -> SegmentStore | None:
        return open_store(self._configuration['result_bytes'], self._configuration['segments'])

    def _use(self, packing: Packing) -> None:
        self._callee.packing = self._asking.packing = packing
        self._encode, self._decode = packing.pack, packing.unpack
        self._set_values = packing.set_values if packing.variables else None

    def take_handler(self) -> None:
        '''Handle tasks with the worker's `_process_message` as it is now.'''
        self._handler, self._done_on_return = undecorated(self.worker._process_message)

    def _make_worker(self, worker_class: type[Worker[Any, Any]], options: dict[str, Any]) -> Worker[Any, Any]:
        _set_title(f'looppool: {self._configuration["pool"]} worker {self._configuration["number"]}')
        here = self._configuration
        address = here['number'] if here['name'] is None else here['name']
        self._callee.where = f'worker {address} (pid {os.getpid()}) of pool {here["pool"]!r}'
        # The attributes are there before a subclass's __init__ may want them.
        worker = worker_class.__new__(worker_class)
        set_current_worker(CurrentWorker(here['number'], here['name'], here['pool'], worker))
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
            # What blocked the loop in _initialise is over.
            self._page.heartbeat = time.monotonic()
            self._watchdog = Watchdog(lambda: self._page.heartbeat, threshold, self.worker._loop_blocked)
            self._watchdog.start()

    def stop_watching(self) -> None:
        if self._watchdog:
            self._watchdog.stop()

    # Tasks

    def _receive(self, kind: int, first: int, tasks: list[Body]) -> None:
        line = self._relayed if kind == _RELAY else self._pending
        line.extend(zip(itertools.repeat(kind), itertools.count(first), tasks))

    def _work(self, deadline: float) -> bool:
        '''Take up what may be taken up; the channel's `work`.'''
        pending, open_, results, words = self._pending, self._open, self._end.results, self._words
        clock = time.monotonic
        self._working = True
        if self._relayed:
            self._take_up_relayed()
        while (
            pending
            and self._concurrency > len(open_) < results.limit - results.used
            and results.bytes < results.max_bytes
        ):
            kind, ident, body = pending.popleft()
            words[TAKEN_UP] = ident
            open_[ident] = _RUNNING
            _current.set(ident)
            if kind == _CALL:
                open_[ident] = _CALLED
                self._callee.take_up(ident, body)
            else:
                self._handle(ident, body)
            if clock() > deadline:
                break
        else:
            self._working = False
            self._finish_if_idle()
            return False
        self._working = False
        return True

    def _take_up_relayed(self) -> None:
        '''Begin what other workers call, at once: what is busy here may wait for them.'''
        while self._relayed:
            _, ident, body = self._relayed.popleft()
            self._last_relay = ident
            self._relays.add(ident)
            _current.set(0)
            self._callee.take_up(ident, body)

    def _handle(self, ident: int, body: Body) -> None:
        context = contextvars.copy_context()
        try:
            if self._set_values is not None:
                body = self._set_values(context, body)
            outcome = context.run(self._handler, body if type(body) in PLAIN else self._decode(body))
        except BaseException as error:
            self._fail(ident, error)
            return
        if self._forked:
            self._leave_if_forked(None)
        coroutine = None if outcome is None else as_coroutine(outcome)
        if coroutine is not None:
            self._runner.run(coroutine, context, ident)
        elif self._done_on_return and ident in self._open:
            self._done(ident)
        else:
            self._returned(ident)

    def _coroutine_ended(self, ident: int, error: BaseException | None) -> None:
        if error is not None:
            self._fail(ident, error)
        else:
            if self._forked:
                self._leave_if_forked(None)
            self._returned(ident)

    def _returned(self, ident: int) -> None:
        '''The handler of a task has returned: an open task is done if it said so, else it stays open.'''
        if ident not in self._open:
            if self._done_on_return:
                self._fail(ident, _not_open(ident))
        elif self._done_on_return or ident in self._deferred:
            self._done(ident)
        else:
            self._open[ident] = None

    def task_done(self) -> None:
        if get_ident() != self._thread:
            raise _wrong_thread('_task_done')
        ident = _current.get(0)
        state = self._open.get(ident, self)
        if state is self or state is _CALLED or ident in self._deferred:
            raise _not_open(0 if state is _CALLED else ident)
        if state is not None and sys.exception() is not None:
            self._deferred.add(ident)
        else:
            self._done(ident)

    def _done(self, ident: int) -> None:
        self._end.done(ident)
        del self._open[ident]
        if self._deferred or self._overdrawn or not self._working:
            self._tidy_up(ident)

    def _fail(self, ident: int, error: BaseException) -> None:
        self._leave_if_forked(error)
        if ident in self._open:
            self._end.failed(ident, *pack_error(error, self._end.max_own_body))
            self._forget(ident)
        else:
            _log.error('a handler of worker %d raised after its task was done', self.worker._number, exc_info=error)
        try:
            self.worker._task_failed(error)
        except Exception:
            _log.exception('_task_failed of worker %d raised', self.worker._number)

    def _on_fork(self) -> None:
        self._forked = True

    def _leave_if_forked(self, error: BaseException | None) -> None:
        '''A child that a handler or a call has forked ends where it leaves them: it is no second worker.'''
        if self._forked:
            sys.stdout.flush()
            sys.stderr.flush()
            code = error.code if isinstance(error, SystemExit) else 0 if error is None else 1
            os._exit(code if isinstance(code, int) else 1)

    def _forget(self, ident: int) -> None:
        if ident in self._relays:
            self._relays.discard(ident)
        else:
            del self._open[ident]
        self._tidy_up(ident)

    def _tidy_up(self, ident: int) -> None:
        self._deferred.discard(ident)
        self._overdrawn.discard(ident)
        if not self._working and (self._pending or self._stopping):
            self._channel.work_soon()

    # Results

    def put_nowait(self, result: object) -> None:
        if get_ident() != self._thread:
            raise _wrong_thread('_put_nowait')
        end = self._end
        body, needs, size = encoded = self._encode(result)
        if needs or size > end.max_body:
            check_encoded(encoded, end.max_body)
        if not end.results.try_take(size):
            self._overdraw(size)
        end.send_result(body, needs)

    def _overdraw(self, size: int) -> None:
        '''Each task may go beyond the window's bytes once: nobody knew how large its result is when it was taken up.'''
        ident = _current.get(0)
        results = self._end.results
        self._refuse_when_ended()
        if results.used >= results.limit or ident not in self._open or ident in self._overdrawn:
            raise Full('result', f'worker {self.worker._number}')
        self._overdrawn.add(ident)
        results.take(size)

    async def put(self, result: object) -> None:
        if get_ident() != self._thread:
            raise _wrong_thread('_put')
        body, needs, size = encoded = self._encode(result)
        check_encoded(encoded, self._end.max_body)
        if self._puts_in_line or not self._end.results.try_take(size):
            await self._permit(size)
        self._end.send_result(body, needs)

    async def _permit(self, size: int) -> None:
        '''Stand in line for a permit of the window of results.'''
        self._puts_in_line += 1
        try:
            async with self._put_turn:
                while not self._end.results.try_take(size):
                    self._refuse_when_ended()
                    self._credit.clear()
                    await self._credit.wait()
        finally:
            self._puts_in_line -= 1

    def _refuse_when_ended(self) -> None:
        if not self._end.results.limit:
            raise PoolClosed(self.worker._pool_name, f'is stopping, and its worker {self.worker._number} has finalised')

    def on_credit(self) -> None:
        self._credit.set()

    def on_told(self) -> None:
        self._asking.on_told()

    # Stopping

    def on_pill(self) -> None:
        # The channel calls `_work` next, which finishes when there is nothing to do.
        self._stopping = True

    def on_cancel(self) -> None:
        self._pending.clear()
        for ident in list(self._relays):
            self._callee.abort(ident)
        for ident, state in list(self._open.items()):
            if state is _CALLED:
                self._callee.abort(ident)
            elif state is _RUNNING:
                self._runner.cancel(ident)
            else:
                self._fail(ident, asyncio.CancelledError())

    def on_early(self, ident: int) -> Exchange | None:
        '''Items have come for a call that is not open: not yet, or not any more.'''
        taken_up = self._last_relay if ident & RELAYED else self._words[TAKEN_UP]
        return self._callee.exchange(ident) if ident > taken_up else None

    def on_abort(self, ident: int) -> None:
        if ident in self._open or ident in self._relays:
            self._callee.abort(ident)
            return
        line = self._relayed if ident & RELAYED else self._pending
        for waiting in line:
            if waiting[1] == ident:
                line.remove(waiting)
                self._end.exchanges.pop(ident, None)
                self._end.failed(ident, *pack_error(asyncio.CancelledError()))
                break

    def _finish_if_idle(self) -> None:
        if self._stopping and not (self._open or self._pending or self._relays):
            self._stopping = False
            self._finishing = self.loop.create_task(self._finish(), context=self._context)

    async def _finish(self) -> None:
        try:
            outcome = self.worker._finalise()
            if inspect.isawaitable(outcome):
                await outcome
        except BaseException:
            _log.exception('_finalise of worker %d raised', self.worker._number)
        await self._cancel_the_rest()
        self._end.bye()
        self._end.results.limit = 0
        await self._channel.drained()
        self._leave(0)

    async def _cancel_the_rest(self) -> None:
        '''End what the worker left running on its loop, while it can still put what it has to say.'''
        rest = asyncio.all_tasks() - {self._serving, self._finishing}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

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


def _wrong_thread(method: str) -> Exception:
    # Only a thread of asyncio.to_thread knows the task that it works for, and lends it to the callback.
    hint = ' from asyncio.to_thread' if method == '_task_done' else ''
    return RuntimeError(
        f'{method} was called from another thread than that of the loop: use self._ioloop.add_callback(self.{method})'
        f'{hint}, or await the thread in a coroutine handler'
    )


def _set_environ(environ: dict[str, str]) -> None:
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _set_title(title: str) -> None:
    from setproctitle import setproctitle

    setproctitle(title)
