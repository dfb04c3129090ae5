'''A parent that the tests kill and signal: it runs a pool, tells the pids of all its processes, and waits for its fate.

Usage: parent.py CONTEXT ENDING WORK [RELEASE [GO]]; the first three are names from the tables below. The first line of
output is a JSON object with ``workers`` and ``servers`` (pids). A worker says ``busy`` and the like when it has come
that far. The file RELEASE, when it is there, ends the tasks that wait for it; GO, a parent that ends of itself.
'''

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import Any

from tornado.ioloop import IOLoop

import looppool
from looppool import process

Orders = tuple[str, ...]

ON_UVLOOP = os.environ.get('TEST_LOOP') == 'uvloop'
'''Whether the loops of parent and workers are uvloop's.'''


def say(text: object) -> None:
    '''Write a line in one piece: several processes write to the same pipe.'''
    os.write(1, f'{text}\n'.encode())


class Sufferer(looppool.Worker[Orders, Any]):
    '''Does what it is told, in `_initialise` too.'''

    def _initialise(self, order: Orders = ()) -> Any:
        return order and self._process_message(order)

    def _process_message(self, message: Orders) -> Any:
        return getattr(self, message[0])(*message[1:])

    def busy(self) -> None:
        say('busy')
        sum(range(10**14))

    def stopped(self) -> None:
        say('stopped')
        os.kill(os.getpid(), signal.SIGSTOP)

    async def held(self, release: str = '/no/such/file') -> None:
        say('held')
        while not os.path.exists(release):
            await asyncio.sleep(0.005)
        self._put_nowait('released')
        self._task_done()


def put_nothing(pool: looppool.Pool[Any, Any]) -> None:
    pass


def put_busy(pool: looppool.Pool[Any, Any]) -> None:
    pool.put_nowait(('busy',), worker_num=0)


def put_stopped(pool: looppool.Pool[Any, Any]) -> None:
    pool.put_nowait(('stopped',), worker_num=0)


def put_held(pool: looppool.Pool[Any, Any]) -> None:
    for _ in pool.members:
        pool.put_nowait(('held', *sys.argv[4:5]))


def lend_descriptors(pool: looppool.Pool[Any, Any]) -> None:
    '''Start a program that inherits, and so holds, every descriptor of this process, and outlives it.'''
    for name in os.listdir('/proc/self/fd'):
        if int(name) > 2 and os.path.exists(f'/proc/self/fd/{name}'):
            os.set_inheritable(int(name), True)
    sleeper = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    say(sleeper.pid)


WORK = {
    'idle': [put_nothing],
    'busy': [put_busy],
    'stopped': [put_stopped],
    'held': [put_held],
    'lent': [lend_descriptors],
    'lent and busy': [lend_descriptors, put_busy],
}


def new_pool() -> looppool.Pool[Any, Any]:
    pool: looppool.Pool[Any, Any] = looppool.Pool(
        pool_size=2, worker_class=Sufferer, context=sys.argv[1], uvloop=ON_UVLOOP
    )
    pool.process_message = looppool.task_done(lambda result, _result_done: say(result))
    return pool


def set_to_work(pool: looppool.Pool[Any, Any]) -> None:
    pids = {'workers': [member.pid for member in pool.members], 'servers': [*process.fork_server_pids()]}
    say(json.dumps(pids))
    for put in WORK[sys.argv[3]]:
        put(pool)


async def wait() -> None:
    '''As a program that knows nothing of signals: Ctrl-C raises KeyboardInterrupt in its main.'''
    async with new_pool() as pool:
        set_to_work(pool)
        await asyncio.Event().wait()


async def wait_to_be_stopped() -> None:
    '''As a service does.'''
    async with new_pool() as pool:
        pool.stop_on_signals()
        set_to_work(pool)
        telling = asyncio.create_task(tell_when_stopping(pool))
        signum = await pool.join()
        await telling
        say(f'stopped by {signum}')
        sys.exit(128 + signum if signum else 0)


async def tell_when_stopping(pool: looppool.Pool[Any, Any]) -> None:
    while pool.state == 'running':
        await asyncio.sleep(0.005)
    say('stopping')


async def interrupted_while_starting() -> None:
    pool = looppool.Pool[Any, Any](
        pool_size=2, worker_class=Sufferer, context=sys.argv[1], options={'order': ('held',)}
    )
    say(json.dumps({'workers': [], 'servers': []}))
    await pool.start()


async def leave_without_a_stop() -> None:
    pool = new_pool()
    await pool.start()
    set_to_work(pool)
    while not os.path.exists(sys.argv[5]):
        await asyncio.sleep(0.005)


async def wait_with_nested_pools() -> None:
    from workers import Nest

    options = {'context': sys.argv[1]}
    async with looppool.Pool[Any, Any](pool_size=2, worker_class=Nest, context=sys.argv[1], options=options) as pool:
        set_to_work(pool)
        await asyncio.Event().wait()


def run_tornado_loop() -> None:
    '''As older Tornado programs do; the pool is never stopped.'''
    loop = IOLoop.current()
    pool = new_pool()
    loop.run_sync(pool.start)
    set_to_work(pool)
    loop.start()


ENDINGS = {
    'wait': lambda: asyncio.run(wait()),
    'join': lambda: asyncio.run(wait_to_be_stopped()),
    'starting': lambda: asyncio.run(interrupted_while_starting()),
    'leave': lambda: asyncio.run(leave_without_a_stop()),
    'nested': lambda: asyncio.run(wait_with_nested_pools()),
    'tornado': run_tornado_loop,
}

if ON_UVLOOP:
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
try:
    ENDINGS[sys.argv[2]]()
except KeyboardInterrupt:
    sys.exit(130)
