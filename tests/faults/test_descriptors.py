'''Descriptors that run out, are closed behind looppool's back, or are held by programs that a worker leaves behind.'''

import asyncio
import os
import signal

import pytest
from conftest import LogGuard
from harness import descriptors_left

import looppool

from .observed import ObservedPool, Watch, kill, until


async def warm_up(context: str) -> None:
    '''Start the fork server, and whatever else stays open.'''
    async with ObservedPool(context=context, pool_size=1):
        pass


async def test_no_descriptors_left_at_start(context: str) -> None:
    await warm_up(context)
    pool = ObservedPool(context=context, pool_size=1)
    with descriptors_left(0):
        with pytest.raises(looppool.WorkerStartError, match='Too many open files'):
            await pool.start()
    assert pool.members[0].pid is None


@pytest.mark.parametrize('count', range(1, 12))
async def test_descriptors_that_run_out_in_the_middle_of_a_start(context: str, count: int) -> None:
    '''It starts or it says why not; either way, the leak check finds nothing.'''
    await warm_up(context)
    pool = ObservedPool(context=context, pool_size=1)
    with descriptors_left(count):
        try:
            await pool.start()
        except looppool.WorkerStartError:
            assert pool.members[0].pid is None
        else:
            await pool.stop()


async def test_no_descriptors_left_for_a_replacement(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    logs.expect('Too many open files')
    pool = ObservedPool(context=context)
    await pool.start()
    await pool.put(('hold', ''), worker_num=1)
    await pool.result()
    with descriptors_left(1):
        kill(pool.members[0].pid)
        pool.put_nowait(('echo',), worker_num=0)
        with pytest.raises(looppool.PoolBroken) as caught:
            await pool.join()
    assert isinstance(caught.value.cause, looppool.WorkerStartError)
    assert 'Too many open files' in str(caught.value)
    assert {type(error) for _, error in [await pool.failure(), await pool.failure()]} == {looppool.PoolBroken}


async def test_descriptors_that_come_back_in_time(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    failed = logs.expect('Too many open files')
    async with ObservedPool(context=context) as pool:
        with descriptors_left(1):
            kill(pool.members[0].pid)
            await until(lambda: pool.members[0].restarts >= 2)
        await pool.replaced(restarts=2)
        await pool.works()
    assert failed


async def test_worker_that_closes_all_its_descriptors(context: str, logs: LogGuard) -> None:
    logs.expect('worker 0')
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('close_everything',), worker_num=0)
        _, error = await pool.failure()
        assert isinstance(error, looppool.WorkerDied)
        await pool.replaced()
        await pool.works()


async def test_dead_worker_whose_descriptors_live_on(context: str, logs: LogGuard) -> None:
    '''A program that it started has inherited its link and its stderr.'''
    logs.expect('was killed by SIGKILL')
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('leave_a_program',), worker_num=0)
        program = await pool.result()
        try:
            pool.put_nowait(('put_and_die', 10), worker_num=0)
            assert await pool.take(10) == list(range(10))
            assert isinstance((await pool.failure())[1], looppool.WorkerDied)
            await pool.replaced()
            await pool.works()
        finally:
            await end(program)


async def test_stopped_worker_whose_descriptors_live_on(context: str) -> None:
    pool = ObservedPool(context=context)
    await pool.start()
    pool.put_nowait(('leave_a_program',), worker_num=0)
    program = await pool.result()
    try:
        async with asyncio.timeout(4):  # Less than stop_timeout.
            await pool.stop()
    finally:
        await end(program)


async def end(pid: int) -> None:
    with Watch([pid]) as watch:
        assert watch.alive()
        os.kill(pid, signal.SIGKILL)
        await watch.gone()


async def test_two_pools_do_not_hold_each_other(context: str) -> None:
    async with ObservedPool(context=context, name='first') as first:
        async with ObservedPool(context=context, name='second') as second:
            with Watch([member.pid for member in first.members]) as watch:
                await first.stop()
                assert not watch.alive()
            await second.works()
            await second.put(('hold', ''))
            await second.result()
            await second.kill()
            assert isinstance((await second.failure())[1], looppool.PoolClosed)
