'''`Pool`: takes tasks, hands them to its workers, and hands back what comes of them.

1. Everything happens on one loop, in one thread; nothing blocks it. Decisions are the roster's, I/O is the members',
   and the life of the workers is the supervisor's, whose layers are the bases of this class.
2. A message is pickled and its size checked before a permit is taken; from then on it is *accepted*, and ends exactly
   once: done, or in `process_failure`.
'''

import asyncio
import logging
import os
import reprlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Final, Generic

from tornado.ioloop import IOLoop

from .callee import CALL
from .calls import Call, Request
from .codec import Encoded, check_encoded
from .errors import Full, PoolBroken, PoolClosed
from .lease import Leasing
from .lifecycle import END
from .packing import Codec, Packing
from .payload import for_several
from .protocol import Parcel, Terms
from .roster import Address, Slot, Waiter
from .runner import caught
from .settings import Settings, checked_options, checked_sizes, checked_variables, make_launch
from .supervisor import retries_of
from .worker import ResultT, TaskT, Worker, is_idempotent

__all__ = ['Pool']

_log: Final = logging.getLogger('looppool')


class Pool(Leasing, Generic[TaskT, ResultT]):
    '''A pool of worker processes, each with its own Tornado IO loop.

    All methods belong to the thread of the pool's loop. From another thread go through
    ``pool.ioloop.add_callback(pool.put_nowait, message)``; a wrong thread is told so by RuntimeError.

    :param ioloop: the Tornado loop that the pool lives on; default: the one that runs when the pool is started.
    :param pool_size: number of workers; default, if there is no `min_size` or `max_size` either: the CPUs that this
        process may use.
    :param worker_class: the `Worker` subclass. It may be defined anywhere, also in a script or a notebook.
    :param max_tasks: bound of the tasks that are accepted and not done, in messages; each worker has its share.
    :param max_results: bound of the results that are put and not done, in messages; each worker has its share.
    :param max_bytes: bound of either, in pickled bytes.
    :param context: ``'fork'``, ``'forkserver'`` or ``'spawn'``; default: forkserver where the system has fork.
    :param distribution: ``'round_robin'`` (strict), or ``'least_loaded'``.
    :param options: keyword arguments for ``Worker._initialise``; also ``worker._options``.
    :param name: for logs, process titles and errors.
    :param retries: how often a task that may have run is run again when its worker died.
    :param min_size: instead of `pool_size`, together with `max_size`: the number of workers to start with, and to keep;
        default: 1.
    :param max_size: the pool grows up to here while every worker is busy, that is, has `concurrency` tasks or more, or
        when a message finds no credit. Default, with a `min_size`: the CPUs, or `min_size` if that is more.
    :param idle_ttl: for each worker that was idle for so many seconds, the worker with the highest number leaves, down
        to `min_size`; None: none leaves.
    :param restart: ``'one_for_one'``: a worker that died is replaced; ``'one_for_all'``: so are all others with it.
    :param max_restarts: this many restarts within `restart_window` are allowed; one more breaks the pool.
    :param restart_window: seconds.
    :param restart_delay: seconds before the second restart within `restart_window`; it doubles with each further one.
    :param max_restart_delay: seconds; the delay never gets longer.
    :param max_tasks_per_worker: a worker that was given so many tasks is recycled: a new process takes its place, and
        the old one finishes what it has, beside it. None: never. Workers with names are not recycled.
    :param max_rss: bytes of resident memory above which a worker is recycled; looked at once a second.
    :param max_age: seconds after which a worker is recycled.
    :param recycle_jitter: a fraction: each new worker may do up to that much less of `max_tasks_per_worker` and of
        `max_age`, by chance, so that not all are recycled at once.
    :param concurrency: how many tasks a worker runs at once; default: its share of `max_tasks`.
    :param start_timeout: seconds for a worker to become ready.
    :param stop_timeout: seconds for `stop` until it cancels what still runs; None: no limit.
    :param blocking_threshold: seconds after which a worker's blocked loop is logged with its stack; None: never.
    :param heartbeat_timeout: seconds without a turn of its loop after which a worker is replaced; None: never.
    :param cancel_grace: seconds that a cancelled call may go on blocking its worker's loop until it is interrupted, and
        as many more until the worker is killed.
    :param codec: how tasks, results and items become bytes, where pickle is not what you want; see `Codec`.
    :param contextvars: the context variables whose values travel along with tasks, calls and streams: each runs with
        the values that they had where it was put or called. They are found by name, those of a script by value.
    :param max_message_bytes: cap on one pickled message.
    :param env: environment variables to set in the workers, on top of the parent's.
    :param cwd: working directory of the workers; default: the parent's.
    :param path: folders to put in front of the workers' ``sys.path``.
    :param preload: names of modules that the fork server imports before it forks (forkserver only); looppool and the
        module of `worker_class` are imported there anyway.
    :param executable: the Python interpreter to run (spawn only).
    :param uvloop: whether the workers' loops are uvloop's, which is to be installed; that of the pool may be any.
    :raises ValueError: an argument is out of range; the text names it.
    :raises TypeError: `worker_class` is no subclass of `Worker`, `ioloop` no Tornado loop, `codec` no `Codec`, or
        `contextvars` no list of context variables.
    :raises ImportError: `uvloop` is wanted, and not installed.
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
    remote traceback; of the tasks that end with the pool itself, only their number.
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
        min_size: int | None = None,
        max_size: int | None = None,
        idle_ttl: float | None = 60.0,
        restart: str = 'one_for_one',
        max_restarts: int = 3,
        restart_window: float = 5.0,
        restart_delay: float = 0.05,
        max_restart_delay: float = 5.0,
        max_tasks_per_worker: int | None = None,
        max_rss: int | None = None,
        max_age: float | None = None,
        recycle_jitter: float = 0.0,
        concurrency: int | None = None,
        start_timeout: float = 30.0,
        stop_timeout: float | None = 5.0,
        blocking_threshold: float | None = None,
        heartbeat_timeout: float | None = None,
        cancel_grace: float = 1.0,
        codec: Codec | None = None,
        contextvars: Sequence[ContextVar[Any]] = (),
        max_message_bytes: int = 1 << 30,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        path: Sequence[str | os.PathLike[str]] = (),
        preload: Sequence[str] = (),
        executable: str | None = None,
        uvloop: bool = False,
    ) -> None:
        least, most = checked_sizes(pool_size, min_size, max_size)
        settings = Settings(
            worker_class=worker_class,
            min_size=least,
            max_size=most,
            idle_ttl=idle_ttl,
            max_tasks=max_tasks,
            max_results=max_results,
            max_bytes=max_bytes,
            max_message_bytes=max_message_bytes,
            name=name,
            retries=retries,
            restart=restart,
            max_restarts=max_restarts,
            restart_window=restart_window,
            restart_delay=restart_delay,
            max_restart_delay=max_restart_delay,
            max_tasks_per_worker=max_tasks_per_worker,
            max_rss=max_rss,
            max_age=max_age,
            recycle_jitter=recycle_jitter,
            concurrency=concurrency,
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            blocking_threshold=blocking_threshold,
            heartbeat_timeout=heartbeat_timeout,
            cancel_grace=cancel_grace,
            codec=codec,
            contextvars=checked_variables(contextvars),
            launch=make_launch(worker_class, context, env, cwd, path, preload, executable, uvloop),
        )
        super().__init__(settings, distribution, checked_options(options), ioloop)
        if not hasattr(self, 'process_message'):
            self.process_message = self._keep_result
        if not hasattr(self, 'process_failure'):
            self.process_failure = self._log_failure
        self._retries = retries
        self._terms = Terms(retries=retries_of(worker_class, retries))
        '''Of a message that is not addressed and needs no definitions.'''
        self._call_terms = Terms(retries=retries)
        '''Of a call likewise.'''
        self._max_message_bytes = max_message_bytes
        self._encode = self.packing.pack_task

    # Putting

    def put_nowait(self, message: TaskT, worker_num: Address | None = None) -> None:
        '''Put a task to the worker whose turn it is, or to the worker with the number or the name `worker_num`.

        :raises Full: that worker has no credit now, or others wait for it.
        :raises MessageTooBig: the pickled message is larger than `max_message_bytes`.
        :raises PoolClosed: the pool is not running.
        :raises PoolBroken: it is broken.
        :raises ValueError: there is no worker `worker_num`.
        :raises RuntimeError: called from another thread.
        :raises Exception: the error of pickling it.
        '''
        parcel = self._pack(message, worker_num)
        slot = self._roster.claim(parcel[2], worker_num)
        if slot is None:
            raise Full('task', f'pool {self.name!r}' if worker_num is None else f'worker {worker_num}')
        slot.deliver(parcel)

    async def put(self, message: TaskT, worker_num: Address | None = None) -> None:
        '''As `put_nowait`, but wait for credit, first come, first served. Cancelled, it has put nothing.

        :raises ValueError: there is no worker `worker_num`, or it has left the pool meanwhile.
        '''
        parcel = self._pack(message, worker_num)
        slot = self._roster.claim(parcel[2], worker_num) or await self._permit(parcel[2], worker_num)
        slot.deliver(parcel)

    async def broadcast(self, message: TaskT, retain: object = None) -> None:
        '''Put a task to every worker, also to those with names.

        It waits for credit of all, then puts to all; cancelled, it has put nothing.

        :param retain: a hashable key; the last message of each key is also given to every worker that starts later,
            ahead of its other tasks. None: it is not kept.
        :raises: as `put`.
        '''
        data, terms, size, _ = self._pack(message, None)
        data = for_several(data)
        slots: list[Slot] = []
        try:
            # Workers may come and go while it waits.
            while missing := [slot for slot in self._roster.everyone if slot not in slots]:
                slots += await self._permit_of(missing[0], size)
            if retain is not None:
                self._roster.retain((data, terms._replace(retain=retain), size, None))
        except BaseException:
            for slot in slots:
                self._roster.release(slot, size)
            raise
        for slot in slots:
            if retain is None or slot.open:
                retries = self._retries_at(slot.address)
                slot.deliver((data, terms._replace(number=slot.address, retain=retain, retries=retries), size, None))
            else:
                # The worker that starts there will get it as a retained one.
                self._roster.release(slot, size)

    async def _permit_of(self, slot: Slot, size: int) -> list[Slot]:
        '''A permit of one slot: of none, if it leaves before there is one.'''
        try:
            return [self._roster.claim(size, slot.address) or await self._permit(size, slot.address)]
        except ValueError:
            if slot in self._roster.everyone:
                raise
            return []

    def _pack(self, message: TaskT, number: Address | None) -> Parcel:
        if not self._accepting or self._thread != get_ident():
            self._refuse()
        data, needs, size = encoded = self._encode(message)
        if needs or number is not None or size > self._max_message_bytes:
            return data, self._make_terms(encoded, number), size, None
        return data, self._terms, size, None

    def _make_terms(self, encoded: Encoded, number: Address | None) -> Terms:
        if number is not None and number not in self._roster:
            raise ValueError(self._no_worker(number))
        check_encoded(encoded, self._max_message_bytes)
        return Terms(encoded[1], number, retries=self._retries_at(number))

    def _retries_at(self, address: Address | None) -> int:
        named = self.named.get(address) if isinstance(address, str) else None
        return named.blueprint.retries if named else self._terms.retries

    def _refuse(self, method: str = 'put_nowait') -> None:
        self.check_thread(method)
        raise self._refusal()

    # Calls

    def _call_loop(self) -> asyncio.AbstractEventLoop:
        if not self._accepting or self._thread != get_ident():
            self._refuse('call')
        return self.asyncio_loop

    def _packing(self) -> Packing:
        return self.packing

    def _pack_call(self, call: Call, request: Request) -> Parcel:
        mode, function, _, _ = request
        data, needs, size = encoded = self.packing.pack_request(request)
        if needs or size > self._max_message_bytes:
            check_encoded(encoded, self._max_message_bytes)
        # What a stream has given can't be taken back, so it is not run again.
        retries = 0 if mode != CALL else max(self._retries, 1) if is_idempotent(function) else self._retries
        terms = Terms(needs, retries=retries) if needs or retries != self._retries else self._call_terms
        return data, terms, size, call

    def _width(self) -> int:
        return len(self.members)

    async def _accept(self, parcel: Parcel) -> None:
        self.check_running('call')
        if not self._try_accept(parcel):
            _, terms, size, _ = parcel
            slot = await self._permit(size, terms.number, least=terms.number is None)
            slot.deliver(parcel)

    def _try_accept(self, parcel: Parcel) -> bool:
        _, terms, size, _ = parcel
        number = terms.number
        slot = self._roster.claim_least(size) if number is None else self._roster.claim(size, number)
        if slot is None:
            return False
        slot.deliver(parcel)
        return True

    def _accept_nowait(self, parcel: Parcel) -> None:
        if not self._try_accept(parcel):
            number = parcel[1].number
            raise Full('task', f'pool {self.name!r}' if number is None else f'worker {number}')

    async def call_all(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        '''Run a function in every worker, and return the values in the order of their numbers.

        Workers with names have none, and are not among them.

        :raises ExceptionGroup: what failed, once all have ended.
        :raises: what `call` raises before it sends anything.
        '''
        calls = [caught(member.call, function, *args, **kwargs) for member in self.members]
        values = await asyncio.gather(*calls, return_exceptions=True)
        errors = [value for value in values if isinstance(value, BaseException)]
        if errors:
            raise BaseExceptionGroup(f'{function!r} failed in {len(errors)} of {len(values)} workers', errors)
        return values

    async def _permit(self, size: int, number: Address | None, *, least: bool = False) -> Slot:
        granted: asyncio.Future[None] = self.asyncio_loop.create_future()
        waiter = Waiter(
            number,
            size,
            grant=lambda: None if granted.done() else granted.set_result(None),
            refuse=lambda error: None if granted.done() else granted.set_exception(error),
            least=least,
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
            if result is END:
                self._results.put_nowait((END, None))
                break
            result_done()
            yield result
        if self.state == 'broken':
            raise self._refusal()

    def _log_failure(self, task: TaskT, error: BaseException) -> None:
        if isinstance(error, (PoolClosed, PoolBroken)):
            # One line for all of them, when the pool has ended.
            self.untold += 1
            return
        _log.error('task %s failed: %s', reprlib.repr(task), error, exc_info=error)
