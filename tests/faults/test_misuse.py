'''Calls that can't be served: after the end, before the start, from a wrong thread. Each says so at once.'''

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import looppool

from .observed import ObservedPool

Call = Callable[[ObservedPool], Any]
PUTS: dict[str, Call] = {
    'put_nowait': lambda pool: pool.put_nowait(('echo', 1)),
    'put_nowait to a worker': lambda pool: pool.put_nowait(('echo', 1), worker_num=1),
    'put': lambda pool: pool.put(('echo', 1)),
    'broadcast': lambda pool: pool.broadcast(('echo', 1)),
    'retained broadcast': lambda pool: pool.broadcast(('echo', 1), retain='key'),
}
STOPS: dict[str, Call] = {'stop': lambda pool: pool.stop(), 'kill': lambda pool: pool.kill()}


async def outcome_of(call: Call, pool: ObservedPool) -> None:
    outcome = call(pool)
    if outcome is not None:
        # Once: it has to be refused before it waits for anything.
        try:
            outcome.send(None)
        except StopIteration:
            return
        pytest.fail('it waits')


@pytest.mark.parametrize('call', PUTS.values(), ids=PUTS.keys())
async def test_after_stop(call: Call) -> None:
    async with ObservedPool(name='ended') as pool:
        pass
    with pytest.raises(looppool.PoolClosed, match="pool 'ended' has stopped"):
        await outcome_of(call, pool)


@pytest.mark.parametrize('call', PUTS.values(), ids=PUTS.keys())
async def test_while_stopping(call: Call) -> None:
    pool = ObservedPool()
    await pool.start()
    await pool.put(('hold', ''))
    await pool.result()
    stopping = asyncio.create_task(pool.stop())
    while pool.state != 'stopping':
        await asyncio.sleep(0)
    with pytest.raises(looppool.PoolClosed, match='is stopping'):
        await outcome_of(call, pool)
    await pool.kill()
    await stopping


@pytest.mark.parametrize('call', PUTS.values(), ids=PUTS.keys())
async def test_before_start(call: Call) -> None:
    pool = ObservedPool()
    with pytest.raises(looppool.PoolClosed, match=r'await pool\.start\(\) first'):
        await outcome_of(call, pool)


@pytest.mark.parametrize('call', (PUTS | STOPS).values(), ids=(PUTS | STOPS).keys())
async def test_from_another_thread(call: Call) -> None:
    async with ObservedPool() as pool:

        def elsewhere() -> None:
            asyncio.run(outcome_of(call, pool))

        with pytest.raises(RuntimeError, match='add_callback'):
            await asyncio.to_thread(elsewhere)
        await pool.works()


async def test_what_the_error_advises_works() -> None:
    async with ObservedPool() as pool:
        assert pool.ioloop is not None
        thread = threading.Thread(target=pool.ioloop.add_callback, args=(pool.put_nowait, ('echo', 'from a thread')))
        thread.start()
        assert await pool.result() == 'from a thread'
        thread.join()


@pytest.mark.parametrize('number', [-1, 2, True, 1.5, '0'])
async def test_no_such_worker(number: Any) -> None:
    async with ObservedPool() as pool:
        with pytest.raises(ValueError, match='from 0 to 1'):
            pool.put_nowait(('echo',), worker_num=number)
        with pytest.raises(ValueError, match='from 0 to 1'):
            await pool.put(('echo',), worker_num=number)
        await pool.works()


async def test_pool_of_another_loop() -> None:
    pool = ObservedPool()
    with pytest.raises(RuntimeError, match='another IO loop'):
        await asyncio.to_thread(_start_elsewhere, pool)
    assert pool.state == 'new'


def _start_elsewhere(pool: ObservedPool) -> None:
    from tornado.ioloop import IOLoop

    here = IOLoop(make_current=False)
    pool.ioloop = here
    try:
        asyncio.run(pool.start())
    finally:
        here.close()
