'''A crash loop: restarts with back-off, then `PoolBroken` with the last cause for everybody who waits.'''

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from workers import Casualty

import looppool

from .observed import ObservedPool, kill, until

WINDOW = 60.0
'''Seconds in which the deaths of a test fall, however slowly processes start.'''


class TimedPool(ObservedPool):
    '''Notes how long after each death the next process was started, in seconds.'''

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.delays: list[float] = []
        self._death = 0.0

    def member_exited(self, *args: Any) -> None:
        self._death = self.asyncio_loop.time()
        super().member_exited(*args)

    def _start_again(self, *args: Any) -> None:
        self.delays.append(self.asyncio_loop.time() - self._death)
        super()._start_again(*args)


@pytest.fixture
def lines(logs: LogGuard) -> dict[str, list[str]]:
    return {
        'deaths': logs.expect('^WARNING.* was killed by SIGKILL'),
        'failed starts': logs.expect('^WARNING.* did not start'),
        'broken': logs.expect("^ERROR.*pool 'pool' is broken"),
    }


async def break_by_broadcast(pool: looppool.Pool[Any, Any]) -> None:
    '''A retained broadcast that kills: every replacement gets it, and dies.'''
    await pool.broadcast(('die',), retain='poison')


async def test_crash_loop_breaks_the_pool_after_its_restarts(context: str, lines: dict[str, list[str]]) -> None:
    pool = TimedPool(context=context, pool_size=1, restart_window=WINDOW)
    await pool.start()
    await break_by_broadcast(pool)
    with pytest.raises(looppool.PoolBroken) as caught:
        await pool.join()
    error = caught.value
    assert (error.pool, error.restarts, error.window) == ('pool', 3, WINDOW)
    assert isinstance(error.cause, looppool.WorkerDied)
    assert error.cause.signal == 'SIGKILL'
    assert error.cause is error.__cause__
    assert 'was killed by SIGKILL' in str(error)
    assert pool.statistics().restarts == 3
    assert len(pool.delays) == 3
    # The first at once; a timer of the loop may be early by its resolution.
    assert pool.delays[1] >= 0.05 - 0.002
    assert pool.delays[2] >= 0.1 - 0.002
    assert (len(lines['deaths']), len(lines['broken'])) == (4, 1)
    assert pool.state == 'broken'


async def test_no_restart_at_all(lines: dict[str, list[str]]) -> None:
    pool = ObservedPool(max_restarts=0)
    await pool.start()
    kill(pool.members[0].pid)
    with pytest.raises(looppool.PoolBroken):
        await pool.join()
    assert pool.statistics().restarts == 0


async def test_replacement_that_can_not_start_is_the_last_cause(
    context: str, lines: dict[str, list[str]], tmp_path: Path
) -> None:
    pool = ObservedPool(
        context=context, options={'on_start': ('fail_if', str(tmp_path / 'flag'))}, restart_window=WINDOW
    )  # fmt: skip
    await pool.start()
    (tmp_path / 'flag').touch()
    kill(pool.members[0].pid)
    with pytest.raises(looppool.PoolBroken) as caught:
        await pool.join()
    cause = caught.value.cause
    assert isinstance(cause, looppool.WorkerStartError)
    assert isinstance(cause.__cause__, ValueError)
    assert 'the flag is up' in str(caught.value)
    assert isinstance(cause.__cause__.__cause__, looppool.RemoteError)


Waiter = Callable[[ObservedPool], Any]


async def _iterate(pool: ObservedPool) -> None:
    async for _ in pool.results():
        pass


WAITERS: dict[str, Waiter] = {
    'put': lambda pool: pool.put(('echo',)),
    'put to a worker': lambda pool: pool.put(('echo',), worker_num=1),
    'broadcast': lambda pool: pool.broadcast(('echo',)),
    'results': _iterate,
    'join': lambda pool: pool.join(),
}


async def test_every_waiter_is_told(context: str, lines: dict[str, list[str]], tmp_path: Path) -> None:
    pool = ObservedPool(context=context, max_tasks=4, max_restarts=0)
    await pool.start()
    for number in range(2):
        for _ in range(2):
            pool.put_nowait(('hold', str(number)), worker_num=number)
    await pool.take(4)
    waiters = {name: asyncio.create_task(wait(pool)) for name, wait in WAITERS.items()}
    await until(lambda: pool.statistics().waiting == 3)
    dead = pool.members[0].pid
    kill(dead)
    for name, waiter in waiters.items():
        await asyncio.wait([waiter])
        error = waiter.exception()
        assert isinstance(error, looppool.PoolBroken), name
        assert isinstance(error.cause, looppool.WorkerDied)
        assert error.cause.pid == dead
    fates = [await pool.failure() for _ in range(4)]
    # The tasks of the worker that died know of their death; the others were taken down with the pool.
    assert sorted((task[1], type(error).__name__) for task, error in fates) == [
        ('0', 'WorkerDied'), ('0', 'WorkerDied'), ('1', 'PoolBroken'), ('1', 'PoolBroken'),
    ]  # fmt: skip
    assert all(error.started is True for _, error in fates)
    assert pool.statistics().in_flight == 0


async def test_what_waited_for_the_replacement_is_told_that_it_had_not_started(
    context: str, lines: dict[str, list[str]]
) -> None:
    pool = ObservedPool(context=context, pool_size=1, restart_window=WINDOW)
    await pool.start()
    await break_by_broadcast(pool)
    pool.put_nowait(('echo', 'behind'))
    await until(lambda: pool.members[0].state == 'restarting')
    pool.put_nowait(('echo', 'later'))
    with pytest.raises(looppool.PoolBroken):
        await pool.join()
    fates = dict([await pool.failure(), await pool.failure()])
    assert set(fates) == {('echo', 'behind'), ('echo', 'later')}
    for error in fates.values():
        assert isinstance(error, looppool.PoolBroken)
        assert error.started is False
        assert isinstance(error.cause, looppool.WorkerDied)


async def test_broken_pool_takes_nothing_and_says_why(lines: dict[str, list[str]]) -> None:
    pool = ObservedPool(max_restarts=0)
    await pool.start()
    kill(pool.members[0].pid)
    with pytest.raises(looppool.PoolBroken):
        await pool.join()
    for attempt in (
        lambda: pool.put_nowait(('echo',)),
        lambda: pool.put(('echo',)),
        lambda: pool.broadcast(('echo',)),
        lambda: pool.join(),
    ):
        with pytest.raises(looppool.PoolBroken, match='was killed by SIGKILL'):
            await attempt()  # type: ignore[misc]
    await pool.stop()
    await pool.kill()
    assert pool.state == pool.statistics().state == 'broken'


async def test_breaking_while_stopping(context: str, lines: dict[str, list[str]]) -> None:
    pool = ObservedPool(context=context, max_restarts=0)
    await pool.start()
    await pool.put(('hold', ''), worker_num=0)
    await pool.put(('hold', ''), worker_num=1)
    await pool.take(2)
    stopping = asyncio.create_task(pool.stop(timeout=None))
    await until(lambda: pool.state == 'stopping')
    kill(pool.members[0].pid)
    await stopping
    errors = [(await pool.failure())[1] for _ in range(2)]
    assert [type(error) for error in errors] == [looppool.WorkerDied, looppool.PoolBroken]
    assert pool.state == 'broken'


async def test_deaths_that_are_far_apart_break_nothing(lines: dict[str, list[str]]) -> None:
    async with ObservedPool(max_restarts=1, restart_window=0.01) as pool:
        for restarts in range(1, 5):
            kill(pool.members[0].pid)
            await pool.replaced(restarts=restarts)  # Each takes longer than the window.
        await pool.works()


async def test_error_of_a_broken_pool_can_be_pickled(lines: dict[str, list[str]]) -> None:
    pool = ObservedPool(max_restarts=0)
    await pool.start()
    kill(pool.members[0].pid)
    with pytest.raises(looppool.PoolBroken) as caught:
        await pool.join()
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert isinstance(copy.cause, looppool.WorkerDied)


class DiesInTheMiddle(Casualty):
    '''Dies in a task, when it has sent a result.'''

    def second(self) -> None:
        self._put_nowait('second')
        self._main._channel.flush()
        self.die()


async def test_results_of_a_broken_pool_are_delivered(context: str, lines: dict[str, list[str]]) -> None:
    pool = looppool.Pool[Any, Any](pool_size=1, worker_class=DiesInTheMiddle, context=context, max_restarts=0)
    pool.process_failure = lambda _task, _error: None
    await pool.start()
    pool.put_nowait(('echo', 'first'))
    pool.put_nowait(('second',))
    pool.put_nowait(('echo', 'third'))
    seen = []
    with pytest.raises(looppool.PoolBroken):
        async for result in pool.results():
            seen.append(result)
    assert seen == ['first', 'second']
