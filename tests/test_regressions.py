'''What once went wrong, each in the shape in which it was met.'''

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import pytest
from conftest import LogGuard

import looppool


class Echo(looppool.Worker[Any, Any]):
    @looppool.task_done
    def _process_message(self, message: Any) -> None:
        self._put_nowait(message)


class Forking(looppool.Worker[Any, Any]):
    @looppool.task_done
    def _process_message(self, message: str) -> None:
        if message == 'exit in a fork':
            pid = os.fork()
            if not pid:
                sys.exit(3)
            self._put_nowait(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        elif message == 'return in a fork':
            pid = os.fork()
            if pid:
                self._put_nowait(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        else:
            child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))
            child.start()
            child.terminate()
            child.join()
            self._put_nowait(child.exitcode)


class Gathering(looppool.Worker[Any, Any]):
    @looppool.task_done
    async def _process_message(self, message: Any) -> None:
        async def leave() -> None:
            sys.exit(message)

        await asyncio.gather(leave(), asyncio.sleep(0))


class Subscribing(looppool.Worker[Any, Any]):
    async def _initialise(self) -> None:
        self._subscription = asyncio.create_task(self._publish())

    async def _publish(self) -> None:
        while True:
            await self._put('news')

    def _finalise(self) -> None:
        self._subscription.cancel()


class Strange(looppool.Worker[Any, Any]):
    @looppool.task_done
    def _process_message(self, message: Any) -> None:
        raise SyntaxError('template', ('page.html', 1, 1, 5))


async def results(pool: looppool.Pool[Any, Any], count: int) -> list[Any]:
    taken: list[Any] = []
    async for result in pool.results():
        taken.append(result)
        if len(taken) == count:
            break
    return taken


async def test_stop_takes_a_timedelta_and_refuses_what_is_no_time() -> None:
    async with looppool.Pool(pool_size=1, worker_class=Echo) as pool:
        with pytest.raises(ValueError, match='timeout'):
            await pool.stop('5')  # type: ignore[arg-type]
        await pool.stop(timedelta(seconds=5))
    assert pool.state == 'stopped'


async def test_a_stop_whose_task_was_cancelled_with_all_others_can_be_called_again() -> None:
    pool = looppool.Pool(pool_size=1, worker_class=Echo)
    await pool.start()
    stopping = asyncio.create_task(pool.stop())
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait([stopping])
    await pool.stop()
    assert pool.state == 'stopped'


@pytest.mark.parametrize('decorated', [True, False])
def test_an_interrupt_in_a_handler_costs_nothing_where_the_loop_goes_on(decorated: bool) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    seen: list[int] = []

    def handler(result: int, result_done: Callable[[], None]) -> None:
        seen.append(result)
        if not decorated:
            result_done()
        if len(seen) == 1:
            raise KeyboardInterrupt

    async def main() -> None:
        await pool.start()
        for number in range(20):
            await pool.put(number)
        await pool.stop()

    pool = looppool.Pool(pool_size=1, worker_class=Echo, max_tasks=4, max_results=4)
    pool.process_message = looppool.task_done(handler) if decorated else handler
    running = loop.create_task(main())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(running)
    loop.run_until_complete(running)
    loop.close()
    asyncio.set_event_loop(None)
    assert seen == list(range(20))


async def test_subscriptions_do_not_hold_up_a_stop_without_limit(context: str) -> None:
    pool = looppool.Pool(pool_size=2, worker_class=Subscribing, context=context, stop_timeout=None)
    heard = asyncio.Event()

    @looppool.task_done
    async def process_message(result: str, result_done: Callable[[], None]) -> None:
        heard.set()
        await asyncio.sleep(0)

    pool.process_message = process_message
    await pool.start()
    await heard.wait()
    await pool.stop()


async def test_result_done_in_a_thread_says_what_to_do() -> None:
    told: asyncio.Queue[BaseException] = asyncio.Queue()

    async def process_message(result: int, result_done: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(result_done)
        except RuntimeError as error:
            told.put_nowait(error)
            result_done()

    async with looppool.Pool(pool_size=1, worker_class=Echo) as pool:
        pool.process_message = process_message
        pool.put_nowait(1)
        assert 'add_callback' in str(await told.get())


async def test_the_working_directory_may_go(context: str, tmp_path: Any, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    home = os.getcwd()
    folder = tmp_path / 'release'
    folder.mkdir()
    os.chdir(folder)
    try:
        async with looppool.Pool(pool_size=1, worker_class=Echo, context=context) as pool:
            folder.rmdir()
            os.kill(pool.members[0].pid, signal.SIGKILL)
            await pool.put('still here', worker_num=0)
            assert await results(pool, 1) == ['still here']
    finally:
        os.chdir(home)


@pytest.mark.parametrize(
    ('message', 'answer'), [('exit in a fork', 3), ('return in a fork', 0), ('terminate', -signal.SIGTERM)]
)
async def test_what_a_worker_forks_is_no_worker_and_can_be_terminated(
    context: str, message: str, answer: int
) -> None:
    async with looppool.Pool(pool_size=1, worker_class=Forking, context=context) as pool:
        pool.put_nowait(message)
        assert await results(pool, 1) == [answer]


async def test_sys_exit_in_an_asyncio_task_of_a_handler_is_the_error_of_its_task(context: str) -> None:
    failures: list[BaseException] = []
    async with looppool.Pool(pool_size=1, worker_class=Gathering, context=context) as pool:
        pool.process_failure = lambda task, error: failures.append(error)
        pid = pool.members[0].pid
        await pool.put(7)
        await pool.put(8)
        await pool.stop()
        assert pool.statistics().restarts == 0
    assert [(type(error), error.args) for error in failures] == [(SystemExit, (7,)), (SystemExit, (8,))]
    assert not psutil.pid_exists(pid)


async def test_a_fork_of_the_parent_neither_uses_nor_harms_the_pool() -> None:
    async with looppool.Pool(pool_size=1, worker_class=Echo) as pool:
        child = os.fork()
        if not child:
            try:
                pool.put_nowait('from the child')
            except looppool.PoolClosed:
                pool.members[0].dismiss('in the child')
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        pool.put_nowait('from the parent')
        assert await results(pool, 1) == ['from the parent']
        assert pool.statistics().restarts == 0


async def test_one_signal_stops_two_pools() -> None:
    first, second = (looppool.Pool(pool_size=1, worker_class=Echo, name=name) for name in ('first', 'second'))
    for pool in (first, second):
        await pool.start()
        pool.stop_on_signals(signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert [await pool.join() for pool in (first, second)] == [signal.SIGUSR1] * 2
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    with pytest.raises(looppool.PoolClosed):
        first.stop_on_signals()


async def test_an_exception_that_can_not_even_be_formatted_leaves_the_worker_alive() -> None:
    failures: list[BaseException] = []
    async with looppool.Pool(pool_size=1, worker_class=Strange) as pool:
        pool.process_failure = lambda task, error: failures.append(error)
        pool.put_nowait(None)
        await pool.stop()
        assert pool.statistics().restarts == 0
    assert len(failures) == 1


async def test_a_handler_that_stops_the_pool_through_wait_for_does_not_wait_for_itself() -> None:
    async def process_message(result: int, result_done: Callable[[], None]) -> None:
        await asyncio.wait_for(pool.stop(timeout=None), 30)
        result_done()

    pool = looppool.Pool(pool_size=1, worker_class=Echo)
    pool.process_message = process_message
    await pool.start()
    pool.put_nowait(1)
    assert await pool.join() is None
