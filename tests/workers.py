'''Workers that suffer what can happen to a worker, each at the point that a message names.'''

import asyncio
import ctypes
import os
import resource
import signal
import socket
import subprocess
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, NoReturn

import psutil

import looppool
from looppool.frames import pack_header
from looppool.kinds import Kind

__all__ = [
    'Casualty',
    'FailsToLoad',
    'Forgiving',
    'Idempotent',
    'IdempotentHandler',
    'Nest',
    'TwoArguments',
    'Unpicklable',
    'nested_list',
]

Order = tuple[Any, ...]
'''The name of a method and its arguments.'''


class TwoArguments(Exception):
    '''Its ``__init__`` takes more than `Exception` remembers: the usual way back from pickle fails.'''

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f'{code}: {text}')
        self.code = code


class Unpicklable(Exception):
    '''Can't travel as itself.'''

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class FailsToLoad:
    '''Can be pickled, but not loaded.'''

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ('not a number',)


class Casualty(looppool.Worker[Order, Any]):
    '''Does what it is told by ``(method, *arguments)``; the task is done when that returns.

    :param on_start: an order for `_initialise`. :param on_stop: one for `_finalise`.
    '''

    def _initialise(self, on_start: Order | None = None, on_stop: Order | None = None) -> Any:
        self._on_stop = on_stop
        self._released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._seen: list[Any] = []
        return on_start and self._obey(on_start)

    @looppool.task_done
    def _process_message(self, message: Order) -> Any:
        return self._obey(message)

    def _finalise(self) -> Any:
        return self._on_stop and self._obey(self._on_stop)

    def _obey(self, order: Order) -> Any:
        return getattr(self, order[0])(*order[1:])

    # What a healthy worker does

    def echo(self, value: Any = None) -> None:
        self._put_nowait(value)

    def who(self, value: Any = None) -> None:
        self._put_nowait((self._number, os.getpid(), value))

    def nothing(self, *_ignored: Any) -> None:
        pass

    def flood(self, count: int, size: int) -> None:
        for _ in range(count):
            self._put_nowait(bytes(size))

    async def flood_patiently(self, count: int, size: int) -> None:
        for _ in range(count):
            await self._put(bytes(size))

    def remember(self, value: Any) -> None:
        self._seen.append(value)

    def recall(self) -> None:
        self._put_nowait((os.getpid(), self._seen))

    def signals_of_a_program(self) -> None:
        '''What ends a program that is started here: signal it, and see.'''
        codes = []
        for signum in (signal.SIGINT, signal.SIGTERM):
            with subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
                assert program.stdin and program.stdout
                program.stdin.write(b'it runs')
                program.stdin.flush()
                program.stdout.read(1)
                program.send_signal(signum)
            codes.append(program.returncode)
        self._put_nowait(codes)

    async def hold(self, name: str) -> None:
        '''Stay open until `release`.'''
        self._put_nowait(('held', name))
        await self._released[name].wait()
        self._put_nowait(('released', name))

    async def hold_until(self, path: str) -> None:
        '''Stay open until there is a file.'''
        self._put_nowait('held')
        while not Path(path).exists():
            await asyncio.sleep(0.005)
        self._put_nowait('until')

    def release(self, name: str) -> None:
        self._released[name].set()

    # Death

    def die(self, signum: int = signal.SIGKILL) -> None:
        _no_core()
        os.kill(os.getpid(), signum)

    def put_and_die(self, count: int) -> None:
        '''Die when what was put has just left.'''
        for number in range(count):
            self._put_nowait(number)
        self._main._channel.flush()
        self.die()

    def die_once(self, flag: str) -> None:
        '''Die at the first run; the second finds the flag.'''
        if not Path(flag).exists():
            Path(flag).touch()
            self.die()
        self._put_nowait('survived')

    def die_if(self, flag: str) -> None:
        if Path(flag).exists():
            self.die()

    def leave(self, code: int) -> NoReturn:
        os._exit(code)

    def say_and_leave(self, text: str, code: int) -> NoReturn:
        os.write(2, text.encode())
        os._exit(code)

    def segfault(self) -> None:
        _no_core()
        os.write(2, b'these are the last words\n')
        ctypes.string_at(0)

    def abort(self) -> NoReturn:
        _no_core()
        os.write(2, b'these are the last words\n')
        os.abort()

    def die_in_a_frame(self) -> None:
        '''Die half-way through writing a result of a million bytes.'''
        self.write(pack_header(1_000_000, Kind.RESULT, 0) + bytes(500_000))
        self.die()

    # Blocking

    def stop_itself(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def calculate(self) -> None:
        '''A call in C that keeps the interpreter for days.'''
        sum(range(10**14))

    def wait_for(self, fifo: str) -> None:
        '''Block the loop until somebody opens `fifo` for writing and closes it.'''
        Path(fifo).read_bytes()

    async def never(self) -> None:
        await asyncio.Event().wait()

    # Errors

    def fail(self, error: BaseException) -> NoReturn:
        raise error

    async def fail_later(self, error: BaseException) -> NoReturn:
        await asyncio.sleep(0)
        raise error

    def fail_with_two_arguments(self) -> NoReturn:
        raise TwoArguments(404, 'gone')

    def fail_unpicklably(self) -> NoReturn:
        raise Unpicklable('I stay here')

    def fail_in_a_group(self) -> NoReturn:
        first = ValueError('first')
        first.add_note('a note on the first')
        group = ExceptionGroup('two at once', [first, TwoArguments(2, 'second')])
        group.add_note('a note on the group')
        raise group

    def fail_if(self, flag: str) -> None:
        if Path(flag).exists():
            raise ValueError('the flag is up')

    def put_lock(self) -> None:
        self._put_nowait(threading.Lock())

    def put_unloadable(self) -> None:
        self._put_nowait(FailsToLoad())

    def put_nested(self, depth: int) -> None:
        self._put_nowait(nested_list(depth))

    def allocate_too_much(self) -> None:
        allowed = psutil.Process().memory_info().vms + (64 << 20)
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, before[1]))
        try:
            bytearray(1 << 30)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    # The link

    def write(self, data: bytes) -> None:
        '''Write to the link, past its protocol.'''
        link = self._main._channel._sock
        link.setblocking(True)
        link.sendall(data)
        link.setblocking(False)

    def close_everything(self) -> None:
        os.closerange(0, 1000)

    def leave_a_program(self) -> None:
        '''Start a program that holds all descriptors of this process and outlives it.'''
        for name in os.listdir('/proc/self/fd'):
            if os.path.exists(f'/proc/self/fd/{name}'):
                os.set_inheritable(int(name), True)
        program = subprocess.Popen(['sleep', '60'], close_fds=False)
        self._put_nowait(program.pid)

    def shut_link(self, *then: Any) -> None:
        '''Half a header, and then no more.'''
        self.write(b'\0\0\0')
        self._main._channel._sock.shutdown(socket.SHUT_WR)
        self._obey(then)

    async def cancel_a_put(self) -> None:
        '''Use up the window of one result, cancel a second one that waits, and put a third.'''
        self._put_nowait('first')
        waiting = asyncio.ensure_future(self._put('cancelled'))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await self._put('third')

    async def cancel_a_put_with_its_credit(self) -> None:
        '''As `cancel_a_put`, but when its credit has come and it has not run on.'''
        self._put_nowait('first')
        waiting = asyncio.ensure_future(self._put('cancelled'))
        main, told = self._main, self._main.on_credit

        def on_credit() -> None:
            told()
            waiting.cancel()

        main.on_credit = on_credit  # type: ignore[method-assign]
        await asyncio.wait([waiting])
        del main.on_credit
        await self._put('third')


@looppool.idempotent
class Idempotent(Casualty):
    '''Its tasks may run twice.'''


class IdempotentHandler(Casualty):
    '''Its tasks may run twice.'''

    @looppool.idempotent
    @looppool.task_done
    def _process_message(self, message: Order) -> Any:
        return self._obey(message)


class Forgiving(Casualty):
    '''Tells of its failed tasks and of its blocked loop, the latter by a file, as it can't put a result meanwhile.'''

    def _initialise(self, report: str = '') -> None:
        super()._initialise()
        self._report = Path(report)

    def _task_failed(self, error: BaseException) -> None:
        self._put_nowait(('failed', repr(error)))

    def _loop_blocked(self, seconds: float, stack: str) -> None:
        draft = self._report.with_suffix('.draft')
        draft.write_text(f'{seconds}\n{stack}')
        draft.rename(self._report)


class Nest(looppool.Worker[Order, Any]):
    '''Hands its tasks to a pool of its own and puts what comes back.

    :param context: of the inner pool.
    '''

    async def _initialise(self, context: str) -> None:
        self._pool = looppool.Pool[Order, Any](pool_size=2, worker_class=Casualty, context=context, name='inner')
        self._pool.process_message = self._on_result
        await self._pool.start()

    @looppool.task_done
    async def _process_message(self, message: Order) -> None:
        await self._pool.put(message)

    @looppool.task_done
    def _on_result(self, result: Any, _result_done: Any) -> None:
        self._put_nowait(result)

    async def _finalise(self) -> None:
        await self._pool.stop()


def nested_list(depth: int) -> list[Any]:
    '''A list in a list in a list.'''
    outer: list[Any] = []
    for _ in range(depth):
        outer = [outer]
    return outer


def _no_core() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
