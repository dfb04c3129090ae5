'''`Pool`: starts, feeds, watches, restarts and stops its workers.

1. Everything happens on one loop, in one thread; nothing blocks it. Decisions are the roster's, I/O is the members'.
2. A message is pickled and its size checked before a permit is taken; from then on it is *accepted*, and ends exactly
   once: done, or in `process_failure`.
3. Stopping is one way down: drain (workers that die meanwhile are still replaced), pill, and when the time is up
   cancel, then SIGKILL. Killing is its last step alone. A broken pool goes the same last step.
'''

import asyncio
import contextlib
import copy
import inspect
import logging
import os
import reprlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Self

from tornado.ioloop import IOLoop

from .codec import decode, encode
from .errors import Full, LoopPoolError, PoolBroken, PoolClosed, WorkerDied, WorkerStartError
from .frames import check_size
from .member import Member, end_result
from .protocol import Parcel, Window
from .roster import RestartBudget, Roster, Slot, Waiter
from .settings import Settings, make_launch, usable_cpus
from .statistics import PoolStatistics
from .worker import ResultT, TaskT, Worker, is_idempotent

__all__ = ['Pool']

_log: Final = logging.getLogger('looppool')

_CANCEL_GRACE: Final = 1.0
'''Seconds that workers get between cancel and SIGKILL.'''
_DEFAULT: Final[Any] = object()
_END: Final[Any] = object()


class Pool(Generic[TaskT, ResultT]):
    '''A pool of worker processes, each with its own Tornado IO loop.

    All methods belong to the thread of the pool's loop. From another thread go through
    ``pool.ioloop.add_callback(pool.put_nowait, message)``; a wrong thread is told so by RuntimeError.

    :param ioloop: the Tornado loop that the pool lives on; default: the one that runs when the pool is started.
    :param pool_size: number of workers; default: the CPUs that this process may use.
    :param worker_class: the `Worker` subclass. It may be defined anywhere, also in a script or a notebook.
    :param max_tasks: bound of the tasks that are accepted and not done, in messages; each worker has its share.
    :param max_results: bound of the results that are put and not done, in messages; each worker has its share.
    :param max_bytes: bound of either, in pickled bytes.
    :param context: ``'fork'``, ``'forkserver'`` or ``'spawn'``; default: forkserver where the system has fork.
    :param distribution: ``'round_robin'`` (strict), or ``'least_loaded'``.
    :param options: keyword arguments for ``Worker._initialise``; also ``worker._options``.
    :param name: for logs, process titles and errors.
    :param retries: how often a task that may have run is run again when its worker died.
    :param max_restarts: this many restarts within `restart_window` are allowed; one more breaks the pool.
    :param restart_window: seconds.
    :param concurrency: how many tasks a worker runs at once; default: its share of `max_tasks`.
    :param start_timeout: seconds for a worker to become ready.
    :param stop_timeout: seconds for `stop` until it cancels what still runs; None: no limit.
    :param blocking_threshold: seconds after which a worker's blocked loop is logged with its stack; None: never.
    :param heartbeat_timeout: seconds without a turn of its loop after which a worker is killed and replaced; None: never.
    :param max_message_bytes: cap on one pickled message.
    :param env: environment variables to set in the workers, on top of the parent's.
    :param cwd: working directory of the workers; default: the parent's.
    :param path: folders to put in front of the workers' ``sys.path``.
    :param preload: names of modules that the fork server imports before it forks (forkserver only); looppool and the
        module of `worker_class` are imported there anyway.
    :param executable: the Python interpreter to run (spawn only).
    :raises ValueError: an argument is out of range; the text names it.
    :raises TypeError: `worker_class` is no subclass of `Worker`, or `ioloop` no Tornado loop.
    '''

    process_message: Callable[[ResultT, Callable[[], None]], Any]
    '''Handles a result: a plain function or a coroutine; assign yours, or define it in a subclass.

    It is called as ``process_message(result, result_done)`` and calls `result_done` when the result is done, now or
    later, or is decorated with `looppool.task_done`. What it raises is logged, and ends the result. By default, results
    are kept for `results`.
    '''
    process_failure: Callable[[TaskT, BaseException], Any]
    '''Called once, as ``process_failure(task, error)``, for every accepted task that did not end well.

    A plain function or a coroutine; assign yours, or define it in a subclass. By default, it logs the error with the
    remote traceback.
    '''

    def __init__(
        self,
        ioloop: IOLoop | None = None,
        pool_size: int | None = None,
        worker_class: type[Worker[TaskT, ResultT]] = Worker,
        *,
        max_tasks: int = 4096,
        max_results: int = 4096,
        max_bytes: int = 256 << 20,
        context: str | None = None,
        distribution: str = 'round_robin',
        options: Mapping[str, Any] | None = None,
        name: str = 'pool',
        retries: int = 0,
        max_restarts: int = 3,
        restart_window: float = 5.0,
        concurrency: int | None = None,
        start_timeout: float = 30.0,
        stop_timeout: float | None = 5.0,
        blocking_threshold: float | None = None,
        heartbeat_timeout: float | None = None,
        max_message_bytes: int = 1 << 30,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        path: Sequence[str | os.PathLike[str]] = (),
        preload: Sequence[str] = (),
        executable: str | None = None,
    ) -> None:
        if ioloop is not None and not isinstance(ioloop, IOLoop):
            raise TypeError(f'ioloop has to be a tornado.ioloop.IOLoop or None, not {ioloop!r}')
        self.settings = settings = Settings(
            worker_class=worker_class,
            pool_size=usable_cpus() if pool_size is None else pool_size,
            max_tasks=max_tasks,
            max_results=max_results,
            max_bytes=max_bytes,
            max_message_bytes=max_message_bytes,
            name=name,
            retries=retries,
            max_restarts=max_restarts,
            restart_window=restart_window,
            concurrency=concurrency,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            blocking_threshold=blocking_threshold,
            heartbeat_timeout=heartbeat_timeout,
            launch=make_launch(worker_class, context, env, cwd, path, preload, executable),
        )
        self.name = name
        if not hasattr(self, 'process_message'):
            self.process_message = self._keep_result
        if not hasattr(self, 'process_failure'):
            self.process_failure = self._log_failure
        self.state = 'new'
        self.ioloop = ioloop
        self.draining = False
        self._options = dict(options or {})
        marked = is_idempotent(worker_class) or is_idempotent(worker_class._process_message)
        self._retries = max(retries, 1) if marked else retries
        windows = [Window(settings.task_window, settings.window_bytes) for _ in range(settings.pool_size)]
        self._roster = Roster([Slot(number, window) for number, window in enumerate(windows)], distribution)
        self._budget = RestartBudget(max_restarts, restart_window)
        self.members = tuple(Member(self, slot) for slot in self._roster.slots)
        self._thread: int | None = None
        self._accepting = False
        self._reason = 'was not started: await pool.start() first'
        self._cause: BaseException | None = None
        self._results: asyncio.Queue[Any] = asyncio.Queue()
        self._handlers: set[asyncio.Task[None]] = set()
        self._stoppers = 0
        self._supervising = True
        self.changed = asyncio.Event()
        self._closed = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._signals: tuple[int, ...] = ()
        self._signum: int | None = None

    def __repr__(self) -> str:
        return f'<Pool {self.name!r}: {self.state}, {len(self.members)} workers>'

    # Starting

    async def start(self) -> None:
        '''Start the workers; return when every one has initialised.

        :raises WorkerStartError: a worker failed to; the others are ended then. Its cause is the remote error.
        :raises PoolClosed: the pool was started before, or `stop` was called meanwhile.
        '''
        if self.state != 'new':
            raise PoolClosed(self.name, f'can be started only once, and it is {self.state}: make a new Pool')
        self._adopt_running_loop()
        self.encoded_worker = encode((self.settings.worker_class, self._options))
        self.state = 'starting'
        self._reason = 'is still starting: await pool.start() first'
        try:
            for member in self.members:
                member.start()
            while not all(member.state == 'ready' for member in self.members):
                await self._change()
                self._raise_start_error()
        except BaseException:
            await self.kill()
            raise
        self.state = 'running'
        self._accepting = True
        self._watch_heartbeats()

    def _adopt_running_loop(self) -> None:
        running = IOLoop.current()
        if self.ioloop not in (None, running):
            raise RuntimeError('the pool was made for another IO loop than the one that runs: start it there')
        self.ioloop = running
        self.asyncio_loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    async def _change(self) -> None:
        '''Wait until something about a member or a task has changed.'''
        self.changed.clear()
        await self.changed.wait()

    def _raise_start_error(self) -> None:
        if self._cause is not None:
            raise self._cause
        if self.state != 'starting':
            raise self._refusal()

    # Putting

    def put_nowait(self, message: TaskT, worker_num: int | None = None) -> None:
        '''Put a task to the worker whose turn it is, or to the worker `worker_num`.

        :raises Full: that worker has no credit now, or others wait for it.
        :raises MessageTooBig: the pickled message is larger than `max_message_bytes`.
        :raises PoolClosed: the pool is not running. :raises PoolBroken: it is broken.
        :raises ValueError: there is no worker `worker_num`.
        :raises RuntimeError: called from another thread.
        :raises Exception: the error of pickling it.
        '''
        parcel = self._pack(message, worker_num)
        slot = self._roster.claim(len(parcel.data), worker_num)
        if slot is None:
            raise Full('task', f'pool {self.name!r}' if worker_num is None else f'worker {worker_num}')
        self.members[slot.number].send(parcel)

    async def put(self, message: TaskT, worker_num: int | None = None) -> None:
        '''As `put_nowait`, but wait for credit, first come, first served. Cancelled, it has put nothing.'''
        parcel = self._pack(message, worker_num)
        slot = self._roster.claim(len(parcel.data), worker_num) or await self._permit(len(parcel.data), worker_num)
        self.members[slot.number].send(parcel)

    async def broadcast(self, message: TaskT, retain: object = None) -> None:
        '''Put a task to every worker. It waits for credit of all of them, then puts to all; cancelled, it has put nothing.

        :param retain: a hashable key; the last message of each key is also given to every worker that starts later,
            ahead of its other tasks. None: it is not kept.
        :raises: as `put`.
        '''
        parcel = self._pack(message, None)._replace(retain=retain)
        size = len(parcel.data)
        slots: list[Slot] = []
        try:
            for number in range(len(self.members)):
                slots.append(self._roster.claim(size, number) or await self._permit(size, number))
            if retain is not None:
                self._roster.retain(parcel)
        except BaseException:
            for slot in slots:
                self._roster.release(slot, size)
            raise
        for slot in slots:
            if retain is None or slot.open:
                self.members[slot.number].send(parcel._replace(number=slot.number))
            else:
                # The worker that starts there will get it as a retained one.
                self._roster.release(slot, size)

    def _pack(self, message: TaskT, number: int | None) -> Parcel:
        if not self._accepting or self._thread != threading.get_ident():
            self._refuse()
        if number is not None and (number not in range(len(self.members)) or isinstance(number, bool)):
            raise ValueError(f'worker_num has to be from 0 to {len(self.members) - 1}, not {number!r}')
        data, needs = encode(message)
        check_size(len(data), self.settings.max_message_bytes)
        return Parcel(data, needs, number, None, self._retries)

    def _refuse(self) -> None:
        if self._thread not in (None, threading.get_ident()):
            raise RuntimeError(
                f'pool {self.name!r} was used from another thread than that of its loop: '
                f'use pool.ioloop.add_callback(pool.put_nowait, message)'
            )
        raise self._refusal()

    def _refusal(self, started: bool | None = None) -> LoopPoolError:
        '''The error that says why the pool takes nothing, or why a task that it took did not end well.'''
        if self.state == 'broken':
            return PoolBroken(self.name, self._budget.limit, self._budget.window, self._cause, started=started)
        return PoolClosed(self.name, self._reason, started=started)

    async def _permit(self, size: int, number: int | None) -> Slot:
        granted: asyncio.Future[None] = self.asyncio_loop.create_future()
        waiter = Waiter(
            number,
            size,
            grant=lambda: None if granted.done() else granted.set_result(None),
            refuse=lambda error: None if granted.done() else granted.set_exception(error),
        )
        self._roster.wait(waiter)
        try:
            await granted
            if self.state not in ('running', 'stopping'):
                raise self._refusal()
        except BaseException:
            self._roster.leave(waiter)
            raise
        assert waiter.slot is not None
        return waiter.slot

    # Results and failures

    def _keep_result(self, result: ResultT, result_done: Callable[[], None]) -> None:
        self._results.put_nowait((result, result_done))

    async def results(self) -> AsyncIterator[ResultT]:
        '''Iterate over the results, instead of `process_message`. A result is done when it is handed to you.

        Several may iterate; each result goes to one of them. It ends when the pool has stopped and all are taken.

        :raises PoolBroken: at the end, if the pool is broken.
        '''
        while True:
            result, result_done = await self._results.get()
            if result is _END:
                self._results.put_nowait((_END, None))
                break
            result_done()
            yield result
        if self.state == 'broken':
            raise self._refusal()

    def _log_failure(self, task: TaskT, error: BaseException) -> None:
        _log.error('task %s failed: %s', reprlib.repr(task), error, exc_info=error)

    def follow(self, outcome: Any, result_done: Callable[[], None] | None = None) -> None:
        '''See a handler's coroutine to its end; if it fails, log that and end its result.'''
        if inspect.isawaitable(outcome):
            task = self.asyncio_loop.create_task(self._follow(outcome, result_done))
            self._handlers.add(task)
            task.add_done_callback(self._followed)

    async def _follow(self, outcome: Any, result_done: Callable[[], None] | None) -> None:
        try:
            await outcome
        except Exception:
            _log.exception('a handler of pool %r failed', self.name)
            if result_done:
                end_result(result_done)

    def _followed(self, task: asyncio.Task[None]) -> None:
        self._handlers.discard(task)
        self.changed.set()

    def _fail(self, parcel: Parcel, error: BaseException) -> None:
        task: Any = parcel.data
        try:
            task = decode(parcel.data)
        except Exception as failure:
            error.add_note(f'the task is given as its pickled bytes, as it could not be loaded: {failure!r}')
        try:
            self.follow(self.process_failure(task, error))
        except Exception:
            _log.exception('process_failure of pool %r failed', self.name)

    # What the members tell

    def member_ready(self, member: Member) -> None:
        member.state = 'ready'
        self._roster.open(member.slot)
        member.send_backlog()
        self.changed.set()

    def tasks_ended(self, member: Member, size: int, count: int) -> None:
        '''`count` tasks of `size` bytes in all are done.'''
        self._roster.release(member.slot, size, count)
        self.changed.set()

    def task_failed(self, member: Member, parcel: Parcel, error: BaseException) -> None:
        member.failed += 1
        self._roster.release(member.slot, len(parcel.data))
        self.changed.set()
        self._fail(parcel, error)

    def member_exited(self, member: Member) -> None:
        '''The member's process is gone, and its link was read to the end.'''
        assert member.link is not None
        link = member.link
        error = link.error()
        owed = member.bury()
        self.changed.set()
        if self.state == 'starting':
            self._cause = self._cause or error
        elif self.state in ('running', 'stopping') and self._supervising:
            self._replace(member, owed, error)
        else:
            self._give_up(member, owed)

    def _replace(self, member: Member, owed: list[tuple[Parcel, bool]], error: LoopPoolError) -> None:
        failed, moved_to = self._roster.bury(member.slot, owed)
        for slot in moved_to:
            self.members[slot.number].send_backlog()
        for parcel in failed:
            member.failed += 1
            self._fail(parcel, _with_fate(error, started=True))
        # Its stderr was passed on when it was written: what the log needs is how it ended.
        _log.warning('pool %r: %s', self.name, str(error).partition('\n')[0])
        self._restart(member, error)

    def _restart(self, member: Member, error: LoopPoolError) -> None:
        delay = self._budget.spend(self.asyncio_loop.time())
        if delay is None:
            self._break(error)
        else:
            member.restarts += 1
            member.restart_later(delay, self._start_again)

    def _start_again(self, member: Member) -> None:
        try:
            member.start()
        except OSError as error:
            failure = WorkerStartError(member.number, None, f'the system cannot start a process: {error}')
            self._restart(member, failure)

    def _give_up(self, member: Member, owed: list[tuple[Parcel, bool]]) -> None:
        '''Fail all that the member had accepted; nobody will run it any more.'''
        waiting = [(parcel, False) for parcel in member.slot.backlog]
        member.slot.backlog.clear()
        for parcel, started in owed + waiting:
            member.failed += 1
            member.slot.window.give(len(parcel.data))
            self._fail(parcel, self._refusal(started))

    def _watch_heartbeats(self) -> None:
        timeout = self.settings.heartbeat_timeout
        if timeout is None or self.state not in ('running', 'stopping'):
            return
        for member in self.members:
            age = member.heartbeat_age()
            if member.state == 'ready' and age is not None and age > timeout:
                member.kill(f'its loop has not turned for {age:.1f} s')
        self.asyncio_loop.call_later(timeout / 4, self._watch_heartbeats)

    # Stopping

    async def stop(self, timeout: float | None = _DEFAULT) -> None:
        '''Take nothing new, let every accepted task end, then let the workers finalise and exit.

        It may be called again, while the pool starts, or from a handler. Those who wait in `put` get `PoolClosed`.
        If it is cancelled, the workers are killed.

        :param timeout: seconds until what still runs is cancelled; a second later it is killed. Default:
            `stop_timeout`; None: no limit.
        '''
        if self.state == 'starting':
            self._abandon('was stopped while it started')
        await self._close(self.settings.stop_timeout if timeout is _DEFAULT else timeout)

    async def kill(self) -> None:
        '''End the workers at once with SIGKILL; every task that has not ended fails with `PoolClosed`.'''
        self._abandon('was killed')
        await self._close(None)

    async def join(self) -> int | None:
        '''Wait until the pool has stopped.

        :returns: the signal that stopped it (see `stop_on_signals`), or None.
        :raises PoolBroken: it broke.
        '''
        await self._closed.wait()
        if self.state == 'broken':
            raise self._refusal()
        return self._signum

    def stop_on_signals(self, *signals: int) -> None:
        '''Stop when this process gets one of `signals`; a second one kills. For the main thread, when started.

        Default: SIGTERM and SIGINT. Await `join`, which tells the signal, and exit with ``128 + signal``.
        The handlers are removed when the pool has stopped.
        '''
        self._signals = signals or (signal.SIGTERM, signal.SIGINT)
        for signum in self._signals:
            self.asyncio_loop.add_signal_handler(signum, self._on_signal, signum)

    def _on_signal(self, signum: int) -> None:
        if self._signum is not None:
            self._abandon(f'was killed by a second signal ({signal.Signals(signum).name})')
        self._signum = self._signum or signum
        self._begin_to_close(self.settings.stop_timeout)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await (self.stop() if error is None else self.kill())

    async def _close(self, timeout: float | None) -> None:
        if self._thread is None:
            self.state, self._reason = 'stopped', 'was stopped before it was started'
            self._closed.set()
            return
        self._begin_to_close(timeout)
        caller = asyncio.current_task()
        if caller in self._handlers:
            self._stoppers += 1
            self.changed.set()
        try:
            await self._closed.wait()
        except BaseException:
            self._abandon('was killed, as its stop was cancelled')
            raise

    def _begin_to_close(self, timeout: float | None) -> None:
        if self._closing is None:
            self._closing = self.asyncio_loop.create_task(self._shut_down(timeout))

    async def _shut_down(self, timeout: float | None) -> None:
        deadline = None if timeout is None else self.asyncio_loop.time() + timeout
        if self._supervising:
            self._refuse_more('is stopping')
        self.draining = True
        try:
            await self._until(self._is_drained, deadline)
            await self._stop_members(deadline)
        finally:
            self._abandon('was stopped before the task ended')
        await self._until(self._is_empty, None)
        self._finish()

    async def _stop_members(self, deadline: float | None) -> None:
        drained = self._is_drained()
        self._supervising = False
        self._reason = 'was stopped before the task ended'
        for member in self.members:
            member.cancel_restart()
            if not drained:
                member.cancel()
            member.pill()
        grace = self.asyncio_loop.time() + _CANCEL_GRACE
        await self._until(self._is_empty, max(deadline, grace) if drained and deadline else deadline and grace)

    def _is_drained(self) -> bool:
        if not self._supervising:
            return True
        # A result in the hands of a handler that itself waits for this stop can't be done before it.
        pending = sum(member.results_pending for member in self.members) - self._results.qsize() - self._stoppers
        busy = any(slot.window.used for slot in self._roster.slots) or len(self._handlers) > self._stoppers
        return not busy and pending <= 0

    def _is_empty(self) -> bool:
        return all(member.link is None for member in self.members)

    async def _until(self, condition: Callable[[], bool], deadline: float | None) -> None:
        '''Wait until `condition` holds or the loop's clock has reached `deadline`.'''
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while not condition():
                    await self._change()

    def _refuse_more(self, reason: str, state: str = 'stopping') -> None:
        self._accepting = False
        self.state = state
        self._reason = reason
        self._roster.dismiss_waiters(self._refusal())

    def _abandon(self, reason: str, state: str = 'stopping') -> None:
        '''Kill what there is, and replace nothing any more.'''
        if self.state in ('stopped', 'broken', 'new'):
            return
        self._supervising = False
        self._refuse_more(reason, state)
        for member in self.members:
            member.cancel_restart()
            member.kill(f'the pool {reason}')
        self.changed.set()

    def _break(self, cause: LoopPoolError) -> None:
        self._cause = cause
        self._abandon('is broken', 'broken')
        _log.error('%s', self._refusal())
        self._begin_to_close(None)

    def _finish(self) -> None:
        for signum in self._signals:
            self.asyncio_loop.remove_signal_handler(signum)
        if self.state != 'broken':
            self.state, self._reason = 'stopped', 'has stopped'
        for member in self.members:
            self._give_up(member, [])
        self._results.put_nowait((_END, None))
        self._closed.set()

    def statistics(self) -> PoolStatistics:
        '''What the pool knows of itself and its workers now.'''
        members = tuple(member.statistics() for member in self.members)
        sums = {
            field: sum(getattr(member, field) for member in members)
            for field in ('restarts', 'in_flight', 'done', 'failed', 'results', 'results_pending', 'credits', 'bytes')
        }
        return PoolStatistics(self.name, self.state, self._roster.waiting, members, **sums)


def _with_fate(error: LoopPoolError, *, started: bool) -> LoopPoolError:
    '''The same death, as told to one of the tasks that were owed.'''
    told = copy.copy(error)
    told.__dict__['started'] = started
    return told
