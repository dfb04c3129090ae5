'''Broadcasts: to every worker, retained for those that come later, and their credit, for every start method.'''

import asyncio
import os
import signal
from typing import Any

import pytest
from conftest import LogGuard
from harness import Number, rest_of

import looppool
from looppool import Pool, Worker, task_done

KILLED = 'was killed by SIGKILL'


class Witness(Worker[Any, Any]):
    '''Tells who got what.'''

    @task_done
    def _process_message(self, message: Any) -> None:
        self._put_nowait((self._number, os.getpid(), message))


class History(Worker[Any, Any]):
    '''Tells, when asked, what it got so far.'''

    def _initialise(self) -> None:
        self._history: list[Any] = []

    @task_done
    def _process_message(self, message: Any) -> None:
        self._history.append(message)
        if message == 'tell':
            self._put_nowait((os.getpid(), self._history))


async def test_a_broadcast_reaches_every_worker_once(context: str) -> None:
    async with Pool(pool_size=3, worker_class=Witness, context=context) as pool:
        pids = [member.pid for member in pool.members]
        await pool.broadcast('reload')
    assert sorted(await rest_of(pool)) == [(number, pid, 'reload') for number, pid in enumerate(pids)]


async def test_a_broadcast_is_nobodys_turn(context: str) -> None:
    async with Pool(pool_size=3, worker_class=Number, context=context) as pool:
        pool.put_nowait('first')
        await pool.broadcast('all')
        pool.put_nowait('second')
    assert sorted(await rest_of(pool)) == [0, 0, 1, 1, 2]


async def test_it_comes_in_order_with_other_tasks(context: str) -> None:
    async with Pool(pool_size=1, worker_class=History, context=context) as pool:
        pool.put_nowait('before')
        await pool.broadcast('to all')
        pool.put_nowait('after')
        pool.put_nowait('tell')
    [(_, history)] = await rest_of(pool)
    assert history == ['before', 'to all', 'after', 'tell']


async def test_a_replacement_first_gets_what_was_retained_oldest_first(context: str, logs: LogGuard) -> None:
    logs.expect(KILLED)
    async with Pool(pool_size=2, worker_class=History, context=context) as pool:
        results = pool.results()
        await pool.broadcast('old table', retain='table')
        await pool.broadcast('rules', retain='rules')
        await pool.broadcast('only once')
        await pool.broadcast('table', retain='table')
        await pool.broadcast('tell')
        assert [history for _, history in [await anext(results), await anext(results)]] == [
            ['old table', 'rules', 'only once', 'table', 'tell']
        ] * 2
        pid = pool.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        # Accepted for the dead one, as nobody has noticed yet: it had not started, and is the replacement's.
        pool.put_nowait('waiting', worker_num=0)
        pool.put_nowait('tell', worker_num=0)
        replacement, history = await anext(results)
        assert history == ['rules', 'table', 'waiting', 'tell']
        assert replacement not in (pid, pool.members[1].pid)


async def test_a_broadcast_while_a_worker_is_replaced_reaches_the_replacement_once(
    context: str, logs: LogGuard
) -> None:
    logs.expect(KILLED)
    async with Pool(pool_size=2, worker_class=History, context=context) as pool:
        results = pool.results()
        pid = pool.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        while pool.members[0].state == 'ready':
            await asyncio.sleep(0)
        assert pool.members[0].state in ('starting', 'restarting')
        await pool.broadcast('once')
        await pool.broadcast('kept', retain='key')
        await pool.broadcast('kept too', retain='other')
        pool.put_nowait('tell', worker_num=0)
        _, history = await anext(results)
        assert sorted(history) == ['kept', 'kept too', 'once', 'tell']
        assert history[-1] == 'tell'
    assert pool.statistics().in_flight == 0 and pool.statistics().credits == 4096


class Held(Worker[str, Any]):
    '''With result credit for one, its tasks are open until the parent has done with their first result.'''

    @task_done
    async def _process_message(self, message: str) -> None:
        await self._put((self._number, message))
        await self._put(None)


async def test_it_waits_for_credit_of_all_and_cancelled_has_put_nothing(context: str) -> None:
    pool = Pool(pool_size=2, worker_class=Held, context=context, max_tasks=2, max_results=2)
    begun: asyncio.Queue[Any] = asyncio.Queue()
    pool.process_message = lambda result, result_done: (
        begun.put_nowait((result, result_done)) if result else result_done()
    )
    async with pool:
        pool.put_nowait('busy', worker_num=1)
        cancelled, waiting = [asyncio.create_task(pool.broadcast(name)) for name in ('cancelled', 'waiting')]
        await asyncio.sleep(0)
        # It holds the credit of worker 0 and waits for that of worker 1.
        with pytest.raises(looppool.Full):
            pool.put_nowait('in between', worker_num=0)
        cancelled.cancel()
        result, result_done = await begun.get()
        assert result == (1, 'busy') and not waiting.done()
        result_done()
        seen = []
        for _ in range(2):
            result, result_done = await begun.get()
            seen.append(result)
            result_done()
        await waiting
        assert sorted(seen) == [(0, 'waiting'), (1, 'waiting')]
    assert begun.empty()
    assert (pool.statistics().done, pool.statistics().credits) == (3, 2)


async def test_a_retained_broadcast_that_was_cancelled_is_not_retained(context: str, logs: LogGuard) -> None:
    logs.expect(KILLED)
    pool = Pool(pool_size=1, worker_class=Held, context=context, max_tasks=1, max_results=1)
    begun: asyncio.Queue[Any] = asyncio.Queue()
    pool.process_message = lambda result, result_done: (
        begun.put_nowait((result, result_done)) if result else result_done()
    )
    async with pool:
        pool.put_nowait('busy')
        cancelled = asyncio.create_task(pool.broadcast('cancelled', retain='key'))
        _, result_done = await begun.get()
        cancelled.cancel()
        result_done()
        await asyncio.wait([cancelled])
        pid = pool.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await pool.put('next')
        (_, message), result_done = await begun.get()
        assert message == 'next'
        result_done()
