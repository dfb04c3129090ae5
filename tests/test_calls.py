'''Calls: what runs, what comes back, what cancelling does, and that an answer or an error always comes.'''

import asyncio
import functools
import gc
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import LogGuard
from harness import Echo, on_each_loop

import looppool
from looppool import Pool
from looppool.callee import _is_users, _Watched
from looppool.calls import Call
from looppool.codec import encode
from looppool.mapping import run_chunk


class TwoArguments(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first, second)


class Adder:
    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, more: int) -> int:
        return self.base + more

    async def __call__(self, more: int) -> int:
        await asyncio.sleep(0)
        return self.base + more


async def doubled(value: int, *, times: int = 2) -> int:
    await asyncio.sleep(0.001)
    return value * times


def fails(first: int, second: int) -> None:
    raise TwoArguments(first, second)


async def fails_later() -> None:
    await asyncio.sleep(0)
    raise ExceptionGroup('several', [ValueError('a'), KeyError('b')])


def exits() -> None:
    sys.exit(3)


def numbers() -> Any:
    yield 1


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def spin(seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def spin_on(path: str) -> None:
    '''Go on in spite of being interrupted.'''
    with open(path, 'w'):
        pass
    while True:
        try:
            spin()
        except looppool.TaskInterrupted:
            pass


async def slow_to_wait() -> None:
    spin(0.002)
    await asyncio.sleep(60)


async def spin_in_a_step() -> None:
    await asyncio.sleep(0)
    spin()


async def spinning() -> Any:
    yield 1
    spin()


async def wait(path: str) -> str:
    with open(path, 'w'):
        pass
    try:
        await asyncio.sleep(60)
    finally:
        os.unlink(path)
    return 'never'


async def breathe(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(0.001)
    return 'alive'


async def ignores(_stream: Any, seconds: float) -> None:
    await breathe(seconds)


async def appears(path: Any, there: bool = True) -> None:
    while os.path.exists(path) != there:
        await asyncio.sleep(0.002)


async def begun(pool: Any, count: int = 1) -> None:
    '''Worker 0 has taken up so many calls.'''
    while pool.members[0].link.page.taken_up < count:
        await asyncio.sleep(0.002)


async def idle(pool: Any) -> None:
    '''Every permit has come back.'''
    while pool.statistics().in_flight:
        await asyncio.sleep(0.002)


# What can be called


async def test_whatever_can_be_called_can_be_called_there(context: str) -> None:
    base = 10

    def closure(value: int) -> int:
        return base + value

    async with Pool(pool_size=2, context=context) as pool:
        assert await pool.call(operator.add, 1, 2) == 3
        assert await pool.call(doubled, 4) == 8
        assert await pool.call(doubled, 4, times=3) == 12
        assert await pool.call(functools.partial(doubled, times=5), 2) == 10
        assert await pool.call(Adder(5).add, 1) == 6
        assert await pool.call(Adder(5), 2) == 7
        assert await pool.call(lambda value: value + 1, 1) == 2
        assert await pool.call(closure, 1) == 11
        assert await pool.call(looppool.in_thread(threading.get_ident)) != await pool.call(threading.get_ident)
        assert await pool.call_nowait(abs, -1) == 1
        assert await pool.members[1].call(os.getpid) == pool.members[1].pid
        assert await pool.call_all(os.getpid) == [member.pid for member in pool.members]
        await idle(pool)
        assert pool.statistics().done == 14


async def test_values_within_the_cap_come_together() -> None:
    async with Pool(pool_size=1, max_message_bytes=64 * 1024) as pool:
        values = await asyncio.gather(*(pool.call(bytes, 64 * 1024 - 60) for _ in range(5)))

    assert [len(value) for value in values] == [64 * 1024 - 60] * 5


class Cancelling:
    '''Cancels who waits for it while it is loaded, as a signal may do.'''

    answer: asyncio.Future[Any]

    def __reduce__(self) -> Any:
        return cancel_answer, ()


def cancel_answer() -> int:
    Cancelling.answer.cancel()
    return 1


async def test_who_is_cancelled_while_the_value_is_loaded_breaks_nothing() -> None:
    call = Call(asyncio.get_running_loop(), doubled)
    Cancelling.answer = call.answer

    call.on_value(encode(Cancelling())[0])

    assert call.answer.cancelled()


async def test_calls_go_to_the_least_loaded_and_round() -> None:
    async with Pool(pool_size=3) as pool:
        pids = await asyncio.gather(*[pool.call(os.getpid) for _ in range(30)])

        assert {pid: pids.count(pid) for pid in set(pids)} == {member.pid: 10 for member in pool.members}


@on_each_loop
async def test_a_thread_leaves_the_loop_free() -> None:
    async with Pool(pool_size=1) as pool:
        slow = asyncio.create_task(pool.call(looppool.in_thread(spin), 0.3))

        assert await pool.call(breathe, 0.01) == 'alive'
        assert not slow.done()
        await slow


# What comes back


@on_each_loop
async def test_errors_come_as_themselves_with_the_remote_traceback(context: str) -> None:
    async with Pool(pool_size=1, context=context) as pool:
        with pytest.raises(TwoArguments) as caught:
            await pool.call(fails, 1, second=2)
        assert caught.value.args == (1, 2)
        assert isinstance(caught.value.__cause__, looppool.RemoteError)
        assert 'in fails' in str(caught.value.__cause__.traceback)
        assert f'worker 0 (pid {pool.members[0].pid})' in caught.value.__notes__[0]
        with pytest.raises(ExceptionGroup) as group:
            await pool.call(fails_later)
        assert [type(error) for error in group.value.exceptions] == [ValueError, KeyError]
        with pytest.raises(SystemExit):
            await pool.call(exits)
        assert await pool.call(abs, -1) == 1
        assert pool.statistics().failed == 3


async def test_what_can_not_travel_is_an_error_at_once_or_the_call_s() -> None:
    async with Pool(pool_size=1) as pool:
        with pytest.raises(TypeError, match='pickle'):
            await pool.call(print, threading.Lock())
        with pytest.raises(TypeError, match='pickle'):
            await pool.call(threading.Lock)
        with pytest.raises(TypeError) as caught:
            await pool.call(numbers)
        assert 'use stream' in ''.join(caught.value.__notes__)
        with pytest.raises(TypeError, match='a function is needed'):
            await pool.call('abs', 1)  # type: ignore[call-overload]
        await idle(pool)


async def test_call_all_tells_all_failures() -> None:
    async with Pool(pool_size=2) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            await pool.call_all(fails, 1, 2)
        assert [type(error) for error in caught.value.exceptions] == [TwoArguments] * 2


@on_each_loop
async def test_an_exit_in_a_worker_is_no_exit_here() -> None:
    async with Pool(pool_size=2) as pool:
        with pytest.raises(BaseExceptionGroup) as caught:
            await pool.call_all(exits)
        assert [type(error) for error in caught.value.exceptions] == [SystemExit] * 2
        with pytest.raises(SystemExit):
            async for _ in pool.map(lambda _: exits(), range(1)):
                pass
        await idle(pool)


async def test_large_values_at_once_stay_whole() -> None:
    async with Pool(pool_size=2) as pool:
        values = await asyncio.gather(*[pool.call(bytes.__mul__, b'%02d' % n, 500_000) for n in range(50)])

        assert values == [b'%02d' % n * 500_000 for n in range(50)]


async def test_a_full_worker_makes_calls_wait_in_order() -> None:
    order: list[int] = []

    async def one(number: int) -> None:
        await pool.call(breathe, 0.002)
        order.append(number)

    async with Pool(pool_size=1, max_tasks=1) as pool:
        first = asyncio.create_task(one(0))
        await asyncio.sleep(0)
        with pytest.raises(looppool.Full):
            pool.call_nowait(abs, 1)
        await asyncio.gather(first, *[one(number) for number in range(1, 10)])

    assert order == list(range(10))


# Deaths


@on_each_loop
async def test_a_call_ends_when_its_worker_dies(context: str, logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    async with Pool(pool_size=1, context=context) as pool:
        others = [asyncio.create_task(pool.call(breathe, 60)) for _ in range(3)]
        while pool.statistics().in_flight < 3:
            await asyncio.sleep(0)
        with pytest.raises(looppool.WorkerDied) as caught:
            await pool.call(die)
        assert (caught.value.signal, caught.value.started) == ('SIGKILL', True)
        for other in others:
            with pytest.raises(looppool.WorkerDied):
                await other
        assert await pool.call(abs, -1) == 1


async def test_a_call_that_had_not_begun_is_run_by_the_replacement(tmp_path: Any, logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    path = str(tmp_path / 'running')
    async with Pool(pool_size=1, concurrency=1) as pool:
        first = asyncio.create_task(pool.call(wait, path))
        await appears(path)
        waiting = [asyncio.create_task(pool.call(abs, -number)) for number in range(20)]
        while pool.statistics().in_flight < 21:
            await asyncio.sleep(0)
        pid = pool.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        assert await asyncio.gather(*waiting) == list(range(20))
        with pytest.raises(looppool.WorkerDied, match='may have run'):
            await first


async def test_an_idempotent_function_is_run_again(tmp_path: Any, logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    mark = str(tmp_path / 'mark')

    @looppool.idempotent
    def dies_once() -> str:
        if not os.path.exists(mark):
            with open(mark, 'w'):
                die()
        return 'done'

    async with Pool(pool_size=1) as pool:
        assert await pool.call(dies_once) == 'done'


async def test_calls_of_a_pool_that_ends_end() -> None:
    pool: Pool[Any, Any] = Pool(pool_size=1)
    with pytest.raises(looppool.PoolClosed):
        await pool.call(abs, 1)
    await pool.start()
    call = asyncio.create_task(pool.call(breathe, 60))
    while not pool.statistics().in_flight:
        await asyncio.sleep(0)
    await pool.kill()
    with pytest.raises(looppool.PoolClosed):
        await call
    with pytest.raises(looppool.PoolClosed):
        await pool.call(abs, 1)


async def test_stop_waits_for_calls() -> None:
    async with Pool(pool_size=1) as pool:
        call = asyncio.create_task(pool.call(breathe, 0.05))
        while not pool.statistics().in_flight:
            await asyncio.sleep(0)
    assert await call == 'alive'


@pytest.mark.parametrize('where', ['call', 'stream', 'open_stream', 'map'])
async def test_a_caller_is_not_cancelled_by_who_cancels_the_function(where: str) -> None:
    async def use(which: Any) -> None:
        if where == 'call':
            await which.call(breathe, 60)
        elif where == 'open_stream':
            async with which.open_stream(ignores, 60):
                pass
        else:
            items = which.map(breathe, [60]) if where == 'map' else which.stream(breathe, 60)
            async for _ in items:
                pass

    async with Pool(pool_size=1, stop_timeout=0.05) as pool:
        # What has to be imported first is not cancelled within a second, on a busy machine.
        await pool.call(breathe, 0)
        call = asyncio.create_task(use(pool))
        await begun(pool, 2)
        await pool.members[0].stop(0.05)
        with pytest.raises(looppool.RemoteError, match='cancelled in its worker'):
            await call
        last = asyncio.create_task(use(pool.members[0]))
        while not pool.members[0].link or not pool.members[0].link.page.taken_up:
            await asyncio.sleep(0.002)
    with pytest.raises(looppool.PoolClosed, match='was stopped before the task ended'):
        await last


# Cancellation


@on_each_loop
async def test_cancelling_a_call_cancels_its_asyncio_task(context: str, tmp_path: Any) -> None:
    path = str(tmp_path / 'running')
    async with Pool(pool_size=1, context=context) as pool:
        call = asyncio.create_task(pool.call(wait, path))
        await appears(path)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await appears(path, there=False)
        await idle(pool)
        assert pool.statistics().restarts == 0


async def test_a_timeout_and_a_task_group_cancel() -> None:
    async with Pool(pool_size=2) as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pool.call(breathe, 60)
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(pool.call(breathe, 60))
                group.create_task(pool.call(fails, 1, 2))
        await idle(pool)


async def test_a_call_that_has_not_begun_is_dropped(tmp_path: Any) -> None:
    path = str(tmp_path / 'never')
    async with Pool(pool_size=1, concurrency=1) as pool:
        first = asyncio.create_task(pool.call(breathe, 0.1))
        while not pool.statistics().in_flight:
            await asyncio.sleep(0)
        second = asyncio.create_task(pool.call(wait, path))
        while pool.statistics().in_flight < 2:
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        await first
        await idle(pool)
        assert not os.path.exists(path)


async def test_cancelling_who_waits_for_credit_leaves_the_credit() -> None:
    async with Pool(pool_size=1, max_tasks=1) as pool:
        first = asyncio.create_task(pool.call(breathe, 0.05))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(pool.call(abs, -number)) for number in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [1, 2]
        await first
        await idle(pool)


async def test_coroutines_that_are_cancelled_before_their_first_step_are_not_complained_about(
    capfd: pytest.CaptureFixture[str]
) -> None:
    async with Pool(pool_size=1) as pool:
        for _ in range(10):
            calls = [asyncio.create_task(pool.call(slow_to_wait)) for _ in range(10)]
            taken_up = pool.statistics().failed + 3
            await begun(pool, taken_up)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            await idle(pool)
    assert not capfd.readouterr().err


async def _interrupted(pool: Any, call: 'asyncio.Task[Any]', neighbour: 'asyncio.Task[str]') -> None:
    while not pool.members[0].link.page.stepping:
        await asyncio.sleep(0.002)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await neighbour == 'alive'
    await idle(pool)
    assert pool.statistics().restarts == 0


SPINNING = {
    'a plain function': spin,
    'a step of a coroutine': spin_in_a_step,
    'a function in C': functools.partial(time.sleep, 60),
    'a chunk of map': functools.partial(run_chunk, spin, 0, [60]),
    'a chunk of map in C': functools.partial(run_chunk, time.sleep, 0, [60]),
}


@on_each_loop
@pytest.mark.parametrize('function', SPINNING.values(), ids=SPINNING.keys())
async def test_what_blocks_its_loop_is_interrupted_and_nobody_else(context: str, function: Any) -> None:
    async with Pool(pool_size=1, context=context, cancel_grace=0.5) as pool:
        neighbour = asyncio.create_task(pool.call(breathe, 0.3))
        await asyncio.sleep(0)
        await _interrupted(pool, asyncio.create_task(pool.call(function)), neighbour)


async def test_a_generator_that_blocks_its_loop_is_interrupted() -> None:
    async def consume() -> None:
        async for _ in pool.stream(spinning):
            pass

    async with Pool(pool_size=1, cancel_grace=0.5) as pool:
        neighbour = asyncio.create_task(pool.call(breathe, 0.3))
        await asyncio.sleep(0)
        await _interrupted(pool, asyncio.create_task(consume()), neighbour)


async def in_a_group(path: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(breathe(60))
        group.create_task(tell_and_spin(path))


async def tell_and_spin(path: str) -> None:
    open(path, 'w').close()
    spin()


@on_each_loop
async def test_an_asyncio_task_of_a_call_that_blocks_is_interrupted_and_nobody_else(
    context: str, tmp_path: Any
) -> None:
    path = str(tmp_path / 'running')
    async with Pool(pool_size=1, context=context, cancel_grace=0.1) as pool:
        neighbour = asyncio.create_task(pool.call(breathe, 0.3))
        call = asyncio.create_task(pool.call(in_a_group, path))
        await appears(path)
        call.cancel()
        assert await neighbour == 'alive'
        await idle(pool)
        assert pool.statistics().restarts == 0


@on_each_loop
async def test_what_can_not_be_interrupted_goes_with_its_worker(tmp_path: Any, logs: LogGuard) -> None:
    killed = logs.expect('could not be interrupted')
    path = str(tmp_path / 'running')
    async with Pool(pool_size=2, cancel_grace=0.05) as pool:
        call = asyncio.create_task(pool.members[0].call(spin_on, path))
        await appears(path)
        call.cancel()
        await asyncio.wait([call])
        await idle(pool)
        assert await pool.members[0].call(abs, -1) == 1
        assert [member.restarts for member in pool.members] == [1, 0]
    assert len(killed) == 1


async def test_a_cancelled_call_behind_one_that_blocks_harms_nobody() -> None:
    async with Pool(pool_size=1, cancel_grace=0.02) as pool:
        waits = asyncio.create_task(pool.call(breathe, 60))
        await asyncio.sleep(0)
        blocks = asyncio.create_task(pool.call(spin, 0.3))
        while not pool.members[0].link or not pool.members[0].link.page.stepping:
            await asyncio.sleep(0.001)
        waits.cancel()
        await blocks
        await idle(pool)
        assert pool.statistics().restarts == 0


@on_each_loop
async def test_a_member_can_be_interrupted_by_hand(context: str) -> None:
    async with Pool(pool_size=1, context=context) as pool:
        call = asyncio.create_task(pool.call(spin))
        while not call.done():
            pool.members[0].interrupt()
            await asyncio.sleep(0.01)
        with pytest.raises(looppool.TaskInterrupted):
            await call
        pool.members[0].interrupt()
        assert await pool.call(abs, -1) == 1


async def test_late_answers_are_dropped_and_late_errors_logged(logs: LogGuard) -> None:
    lines = logs.expect('failed after it was cancelled')

    async def swallows(fail: bool) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        if fail:
            raise ValueError('late')
        return 'late'

    async with Pool(pool_size=1) as pool:
        calls = [asyncio.create_task(pool.call(swallows, fail)) for fail in (False, True)]
        await pool.call(breathe, 0.01)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await idle(pool)
        assert await pool.call(abs, -7) == 7
    assert len(lines) == 1


# Beside messages, and in the parent


async def test_calls_and_messages_go_side_by_side() -> None:
    async with Pool(pool_size=2, worker_class=Echo) as pool:
        for number in range(200):
            await pool.put(number)
        assert await pool.call(abs, -1) == 1
        seen = sorted([await anext(pool.results()) for _ in range(200)])
        assert seen == list(range(200))


async def test_another_thread_is_told_so() -> None:
    async with Pool(pool_size=1) as pool:
        with pytest.raises(RuntimeError, match='add_callback'):
            await asyncio.to_thread(pool.call_nowait, abs, 1)


async def test_return_codes_of_the_parent_s_programs_are_its_own() -> None:
    async with Pool(pool_size=2) as pool:
        calls = [asyncio.create_task(pool.call(abs, number)) for number in range(100)]
        for code in (0, 3):
            done = await asyncio.to_thread(subprocess.run, [sys.executable, '-c', f'raise SystemExit({code})'])
            assert done.returncode == code
        await asyncio.gather(*calls)


class Spinner(looppool.Worker[Any, Any]):
    @looppool.task_done
    def _process_message(self, message: Any) -> None:
        if message == 'spin':
            spin()
        self._put_nowait(message)


@on_each_loop
async def test_a_task_can_be_interrupted_too(context: str) -> None:
    failures: list[BaseException] = []
    async with Pool(pool_size=1, worker_class=Spinner, context=context) as pool:
        pool.process_failure = lambda task, error: failures.append(error)
        await pool.put('spin')
        await pool.put('on')
        while not failures:
            pool.members[0].interrupt()
            await asyncio.sleep(0.005)
        assert await anext(pool.results()) == 'on'
    assert [type(error) for error in failures] == [looppool.TaskInterrupted]


def count() -> tuple[int, str | None, str, int]:
    here = looppool.current_worker()
    here.state['calls'] = here.state.get('calls', 0) + 1
    return here.number, here.name, here.pool, here.state['calls']


async def test_code_knows_its_worker_and_keeps_values_between_calls(context: str, logs: LogGuard) -> None:
    logs.expect('SIGKILL')
    async with Pool(pool_size=2, name='p', context=context) as pool:
        assert await pool.call_all(count) == [(0, None, 'p', 1), (1, None, 'p', 1)]
        assert await pool.members[1].call(looppool.in_thread(count)) == (1, None, 'p', 2)
        kitty = await pool.spawn('kitty')
        assert await kitty.call(count) == (kitty.number, 'kitty', 'p', 1)
        told = await kitty.call(looppool.current_worker)
        assert (told, told.worker, told.state) == (looppool.CurrentWorker(kitty.number, 'kitty', 'p'), None, {})
        with pytest.raises(looppool.WorkerDied):
            await pool.members[1].call(die)
        assert await pool.members[1].call(count) == (1, None, 'p', 1)
    with pytest.raises(RuntimeError, match='run it in one'):
        looppool.current_worker()


def forks(how: str) -> Any:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if how == 'exit':
        sys.exit(3)
    if how == 'raise':
        raise ValueError
    return 'a second worker'


async def forks_later(how: str) -> Any:
    await asyncio.sleep(0)
    return forks(how)


def yields_forks(how: str) -> Any:
    worker = os.getpid()
    yield forks(how)
    while os.getpid() != worker:
        yield 'without end'


@pytest.mark.parametrize(('how', 'code'), [('return', 0), ('exit', 3), ('raise', 1)])
async def test_what_a_call_forks_is_no_worker(context: str, how: str, code: int) -> None:
    async with Pool(pool_size=1, context=context) as pool:
        assert await pool.call(forks, how) == code
        assert await pool.call(forks_later, how) == code
        assert [item async for item in pool.stream(yields_forks, how)] == [code]
        assert await pool.call(abs, -1) == 1


def done_in_a_call() -> None:
    KEPT[0]._task_done()


KEPT: list[looppool.Worker[Any, Any]] = []


class Kept(looppool.Worker[Any, Any]):
    def _initialise(self) -> None:
        KEPT.append(self)


async def test_a_call_is_no_task_to_be_done() -> None:
    async with Pool(pool_size=1, worker_class=Kept) as pool:
        with pytest.raises(RuntimeError, match='no current task'):
            await pool.call(done_in_a_call)
        assert await pool.call(abs, -1) == 1


# What is left behind


class Freed:
    '''Tells whether one of it is alive in this process.'''

    alive = 0

    def __init__(self) -> None:
        Freed.alive += 1

    def __reduce__(self) -> tuple[type['Freed'], tuple[()]]:
        return Freed, ()

    def __del__(self) -> None:
        Freed.alive -= 1


def without_collector() -> None:
    gc.collect()
    gc.disable()


def alive() -> int:
    return Freed.alive


async def waits_with(_: Freed) -> None:
    await asyncio.Event().wait()


async def fails_with(_: Freed) -> None:
    await asyncio.sleep(0)
    raise ValueError


@pytest.mark.parametrize('how', ['cancelled', 'failed'])
async def test_what_a_coroutine_had_is_freed_when_it_ends(how: str) -> None:
    async with Pool(pool_size=1) as pool:
        await pool.call(without_collector)
        call = asyncio.ensure_future(pool.call(waits_with if how == 'cancelled' else fails_with, Freed()))
        if how == 'cancelled':
            async with asyncio.timeout(10):
                while not await pool.call(alive):
                    pass
            call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(10):
            while await pool.call(alive):
                pass


# What is interrupted


@pytest.mark.parametrize(('function', 'may_be'), [
    (time.sleep, True), (functools.partial(time.sleep, 1), True), (waits_with, False),
    (functools.partial(waits_with, None), False),
])  # fmt: skip
def test_a_coroutine_that_is_being_made_is_not_lost(function: Any, may_be: bool) -> None:
    frame = SimpleNamespace(
        f_code=_Watched.run.__code__, f_globals={'__name__': 'looppool.callee'}, f_locals={'function': function},
        f_back=None,
    )  # fmt: skip
    assert _is_users(frame) == may_be  # type: ignore[arg-type]
