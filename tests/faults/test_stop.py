'''`stop` and `kill` at every bad moment: defined errors, all workers reaped, nothing lost that was accepted.'''

import asyncio
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from harness import on_each_loop
from workers import Casualty

import looppool

from .observed import ObservedPool, Watch, kill, until


def assert_stopped(pool: looppool.Pool[Any, Any]) -> None:
    assert pool.state == 'stopped'
    assert [(member.state, member.pid) for member in pool.members] == [('stopped', None)] * len(pool.members)
    assert pool.statistics().in_flight == 0


@on_each_loop
async def test_stop_while_starting(context: str) -> None:
    pool = ObservedPool(context=context, options={'on_start': ('never',)})
    starting = asyncio.create_task(pool.start())
    await until(lambda: all(member.pid for member in pool.members))
    await pool.stop()
    with pytest.raises(looppool.PoolClosed, match='was stopped while it started'):
        await starting
    assert_stopped(pool)


async def test_stop_at_once_after_start_was_called(context: str) -> None:
    pool = ObservedPool(context=context)
    starting = asyncio.create_task(pool.start())
    await asyncio.sleep(0)
    await pool.stop()
    with pytest.raises(looppool.PoolClosed):
        await starting
    assert_stopped(pool)


async def test_cancelled_start_leaves_nothing(context: str) -> None:
    pool = ObservedPool(context=context, options={'on_start': ('never',)})
    starting = asyncio.create_task(pool.start())
    await until(lambda: all(member.pid for member in pool.members))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert_stopped(pool)


async def test_stop_before_start() -> None:
    pool = ObservedPool()
    await pool.stop()
    with pytest.raises(looppool.PoolClosed):
        await pool.start()
    assert await pool.join() is None


async def test_start_twice() -> None:
    async with ObservedPool() as pool:
        with pytest.raises(looppool.PoolClosed, match='only once'):
            await pool.start()
        await pool.works()


async def test_stop_twice(context: str) -> None:
    pool = ObservedPool(context=context)
    await pool.start()
    await pool.put(('echo', 'done'))
    await asyncio.gather(pool.stop(), pool.stop())
    await pool.stop()
    assert await pool.result() == 'done'
    assert_stopped(pool)


@on_each_loop
async def test_stop_ends_every_accepted_task(context: str) -> None:
    pool = ObservedPool(context=context, max_tasks=200)
    await pool.start()
    for number in range(200):
        pool.put_nowait(('echo', number))
    await pool.stop()
    assert sorted(await pool.take(200)) == list(range(200))
    assert pool.statistics().done == 200
    assert_stopped(pool)


@pytest.mark.parametrize('count', range(16))
async def test_start_put_stop_gives_all_results(count: int) -> None:
    pool = ObservedPool(pool_size=4)
    await pool.start()
    for number in range(count):
        await pool.put(('echo', number))
    await pool.stop()
    assert sorted(await pool.take(count)) == list(range(count))


@on_each_loop
async def test_results_put_after_stop_was_called_are_delivered(context: str) -> None:
    pool = ObservedPool(context=context)
    await pool.start()
    await pool.put(('hold', 'on'), worker_num=0)
    await pool.result()
    pool.put_nowait(('release', 'on'), worker_num=0)
    stopping = asyncio.create_task(pool.stop())
    assert await pool.result() == ('released', 'on')
    await stopping
    assert_stopped(pool)


async def test_results_put_by_finalise_are_delivered_before_stop_returns(context: str) -> None:
    class Slow(ObservedPool):
        @looppool.task_done
        def process_message(self, result: Any, _result_done: Callable[[], None]) -> None:
            for _ in range(2_000):  # Longer than a turn of the loop may take.
                pass
            self.arrived.put_nowait(result)

    pool = Slow(context=context, pool_size=1, options={'on_stop': ('flood', 1_000, 1)})
    await pool.start()
    await pool.stop()
    assert pool.arrived.qsize() == 1_000


async def test_results_put_by_finalise_reach_the_iterator(context: str) -> None:
    pool = looppool.Pool[Any, Any](
        pool_size=1, worker_class=Casualty, context=context, options={'on_stop': ('flood', 4_000, 1)}
    )
    await pool.start()
    await pool.stop()
    assert len([result async for result in pool.results()]) == 4_000


@pytest.mark.parametrize('handler', ['plain', 'coroutine'])
async def test_stop_from_a_result_handler(context: str, handler: str) -> None:
    pool = ObservedPool(context=context)
    stopped = asyncio.Event()

    async def stop() -> None:
        await pool.stop()
        stopped.set()

    @looppool.task_done
    async def coroutine(_result: Any, _result_done: Callable[[], None]) -> None:
        await stop()

    def plain(_result: Any, result_done: Callable[[], None]) -> None:
        result_done()
        plain.task = asyncio.ensure_future(stop())  # type: ignore[attr-defined]

    pool.process_message = {'plain': plain, 'coroutine': coroutine}[handler]
    await pool.start()
    for number in range(4):
        pool.put_nowait(('echo', number))
    async with asyncio.timeout(4):  # Less than stop_timeout: nobody waits for himself.
        await stopped.wait()
    assert_stopped(pool)
    assert pool.statistics().results == 4


async def test_stop_from_a_failure_handler(context: str) -> None:
    pool = ObservedPool(context=context)
    stopped = asyncio.Event()

    async def on_failure(_task: Any, _error: BaseException) -> None:
        await pool.stop()
        stopped.set()

    pool.process_failure = on_failure
    await pool.start()
    pool.put_nowait(('fail', ValueError('stop')))
    async with asyncio.timeout(4):
        await stopped.wait()
    assert_stopped(pool)


async def test_stop_from_the_iterator_of_results(context: str) -> None:
    pool = looppool.Pool[Any, Any](pool_size=2, worker_class=Casualty, context=context)
    await pool.start()
    for number in range(10):
        pool.put_nowait(('echo', number))
    seen: list[Any] = []
    async for result in pool.results():
        if not seen:
            await pool.stop()
        seen.append(result)
    assert sorted(seen) == list(range(10))
    assert_stopped(pool)


async def test_stop_while_full(context: str) -> None:
    pool = ObservedPool(context=context, pool_size=1, max_tasks=2)
    await pool.start()
    for _ in range(2):
        pool.put_nowait(('hold', 'on'))
    with pytest.raises(queue.Full):
        pool.put_nowait(('echo',))
    waiting = [asyncio.create_task(pool.put(('echo',))) for _ in range(2)]
    waiting.append(asyncio.create_task(pool.broadcast(('echo',))))
    await until(lambda: pool.statistics().waiting == 3)
    stopping = asyncio.create_task(pool.stop(timeout=0.2))
    for refused in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(refused, looppool.PoolClosed)
    await stopping
    for _ in range(2):
        assert isinstance((await pool.failure())[1], asyncio.CancelledError)
    assert pool.failed.empty()
    assert_stopped(pool)


async def test_stop_cancels_what_does_not_end(context: str) -> None:
    pool = ObservedPool(context=context)
    await pool.start()
    await pool.put(('hold', 'for ever'))
    assert await pool.result() == ('held', 'for ever')
    await pool.stop(timeout=0.1)
    task, error = await pool.failure()
    assert task == ('hold', 'for ever')
    assert isinstance(error, asyncio.CancelledError)
    assert_stopped(pool)


@pytest.mark.parametrize('verb', ['calculate', 'stop_itself'])
async def test_stop_kills_what_can_not_be_cancelled(context: str, verb: str) -> None:
    pool = ObservedPool(context=context, pool_size=1)
    await pool.start()
    pool.put_nowait((verb,))
    pool.put_nowait(('echo',))
    await until(lambda: pool.link(0).page.taken_up == 1)
    await pool.stop(timeout=0.1)
    (first, died), (second, not_started) = [await pool.failure() for _ in range(2)]
    assert (first, second) == ((verb,), ('echo',))
    assert isinstance(died, looppool.PoolClosed)
    assert isinstance(not_started, looppool.PoolClosed)
    assert died.started is True
    assert not_started.started is False
    assert_stopped(pool)


@pytest.mark.parametrize('verb', ['never', 'calculate', 'stop_itself'])
async def test_finalise_that_never_ends_is_killed(context: str, verb: str) -> None:
    pool = ObservedPool(context=context, options={'on_stop': (verb,)})
    await pool.start()
    await pool.put(('echo', 1))
    await pool.stop(timeout=0.2)
    assert await pool.result() == 1
    assert pool.failed.empty()
    assert_stopped(pool)


async def test_finalise_that_freezes_is_noticed_without_a_limit(context: str, logs: LogGuard) -> None:
    logs.expect('its loop has not turned')
    pool = ObservedPool(context=context, options={'on_stop': ('stop_itself',)}, heartbeat_timeout=0.5)
    await pool.start()
    await pool.stop(timeout=None)
    assert_stopped(pool)


@pytest.mark.parametrize(('order', 'warnings'), [
    (('fail', ValueError('in finalise')), 0),
    (('leave', 5), 2),
    (('die',), 2),
])  # fmt: skip
async def test_finalise_that_fails_hinders_nothing(context: str, order: Any, warnings: int, logs: LogGuard) -> None:
    lines = logs.expect(r'exited with code 5\.|was killed by SIGKILL\.')
    pool = ObservedPool(context=context, options={'on_stop': order})
    await pool.start()
    for number in range(10):
        pool.put_nowait(('echo', number))
    await pool.stop()
    assert sorted(await pool.take(10)) == list(range(10))
    assert pool.failed.empty()
    assert_stopped(pool)
    assert len(lines) == warnings


async def test_worker_that_dies_while_stopping_is_replaced_for_what_it_owed(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    pool = ObservedPool(context=context, concurrency=1)
    await pool.start()
    pool.put_nowait(('die',), worker_num=0)
    for number in range(10):
        pool.put_nowait(('echo', number), worker_num=0)
    await pool.stop()
    assert await pool.take(10) == list(range(10))
    assert (await pool.failure())[0] == ('die',)
    assert_stopped(pool)


async def test_kill_ends_all_at_once(context: str) -> None:
    pool = ObservedPool(context=context, concurrency=1)
    await pool.start()
    with Watch([member.pid for member in pool.members]) as watch:
        pool.put_nowait(('hold', ''), worker_num=0)
        pool.put_nowait(('echo', 'behind'), worker_num=0)
        await pool.result()
        await pool.kill()
        assert not watch.alive()
    fates: dict[Any, Any] = dict([await pool.failure(), await pool.failure()])
    assert all(isinstance(error, looppool.PoolClosed) for error in fates.values())
    assert fates['hold', ''].started is True
    assert fates['echo', 'behind'].started is False
    assert_stopped(pool)


async def test_kill_while_stopping(context: str) -> None:
    pool = ObservedPool(context=context)
    await pool.start()
    await pool.put(('hold', ''))
    await pool.result()
    stopping = asyncio.create_task(pool.stop(timeout=None))
    await until(lambda: pool.state == 'stopping')
    await pool.kill()
    await stopping
    assert isinstance((await pool.failure())[1], looppool.PoolClosed)
    assert_stopped(pool)


async def test_leaving_on_an_exception_kills(context: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with ObservedPool(context=context) as pool:
            await pool.put(('hold', ''))
            await pool.result()
            raise ZeroDivisionError
    assert isinstance((await pool.failure())[1], looppool.PoolClosed)
    assert_stopped(pool)


async def test_stop_while_a_worker_is_restarting(context: str, logs: LogGuard, tmp_path: Path) -> None:
    logs.expect('did not start')
    logs.expect('was killed by SIGKILL')
    options = {'on_start': ('fail_if', str(tmp_path / 'flag'))}
    pool = ObservedPool(context=context, options=options, max_restarts=50)
    await pool.start()
    (tmp_path / 'flag').touch()
    kill(pool.members[0].pid)
    await until(lambda: pool.members[0].restarts >= 3)
    pool.put_nowait(('echo', 'accepted'), worker_num=0)
    await pool.stop(timeout=0.3)
    task, error = await pool.failure()
    assert (task, error.started) == (('echo', 'accepted'), False)
    assert isinstance(error, looppool.PoolClosed)
    assert_stopped(pool)
