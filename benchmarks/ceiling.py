'''The bare ceiling: what two asyncio loops and one socketpair can do when nothing is promised.

Rules:

1. A message is pickled (protocol 5) and unpickled each way, with a four byte length before it.
2. A read is dispatched as a whole; what answers it leaves in one write at the end.
3. No ids, no credits, no errors, no handlers: those are what a pool adds, and what the ratio shows.
'''

import asyncio
import os
import pickle
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from benchmarks.load import WINDOW, Load, Values, percentiles

__all__ = ['Link', 'latency', 'throughput', 'throughput_overlapping']

_LENGTH = struct.Struct('<I')
_READ_SIZE = 256 << 10
'''Bytes of one read: what asyncio's own transports read at most, and what a looppool link does.'''

_OVERLAPPING_READ_SIZE = 32 << 10
'''Less than a window of messages, so that one end works on a part of it while the other end works on the rest.'''

Batch = list[Any]


class Link:
    '''One end of the socketpair on a running asyncio loop.

    Args:
        sock: this end; it is made non-blocking.
        answer: takes the messages of one read and returns the messages to send back.
        read_size: bytes taken at most by one read.
    '''

    def __init__(self, sock: socket.socket, answer: Callable[[Batch], Batch], read_size: int) -> None:
        sock.setblocking(False)
        self.closed = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._answer = answer
        self._read_size = read_size
        self._rest = b''
        self._unsent = b''
        self._loop.add_reader(sock.fileno(), self._readable)

    def send(self, messages: Batch) -> None:
        '''Send *messages* in one write; what the socket does not take waits for writability.'''
        parts = []
        dumps, length = pickle.dumps, _LENGTH.pack
        for message in messages:
            body = dumps(message, 5)
            parts.append(length(len(body)))
            parts.append(body)
        if self._unsent:
            self._unsent += b''.join(parts)
        else:
            self._write(b''.join(parts))

    def close(self) -> None:
        '''Leave the loop and close the socket; safe to repeat.'''
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self.closed.set_result(None)

    def _readable(self) -> None:
        data = self._sock.recv(self._read_size)
        if not data:
            self.close()
            return
        answers = self._answer(self._parse(self._rest + data if self._rest else data))
        if answers:
            self.send(answers)

    def _parse(self, data: bytes) -> Batch:
        messages = []
        loads, unpack_length = pickle.loads, _LENGTH.unpack_from
        start, end = 0, len(data)
        while end - start >= 4:
            body = start + 4
            stop = body + unpack_length(data, start)[0]
            if stop > end:
                break
            messages.append(loads(data[body:stop]))
            start = stop
        self._rest = data[start:]
        return messages

    def _write(self, data: bytes) -> None:
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        self._unsent = data[sent:]
        if self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._write(self._unsent)


def _echo(messages: Batch) -> Batch:
    return messages


async def _serve(sock: socket.socket, read_size: int) -> None:
    await Link(sock, _echo, read_size).closed


@contextmanager
def _echo_process(read_size: int) -> Iterator[socket.socket]:
    """Fork a process that echoes; yield the parent's end of its socketpair."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        asyncio.run(_serve(theirs, read_size))
        os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class _Feed:
    """The parent's side: puts *count* messages, *window* of them in flight, and notes when each read was answered."""

    def __init__(self, sock: socket.socket, count: int, window: int, read_size: int) -> None:
        self.arrivals: list[float] = []
        self._count = count
        self._put = min(count, window)
        self._received = 0
        self._finished = asyncio.get_running_loop().create_future()
        self._link = Link(sock, self._answer, read_size)

    async def run(self) -> list[float]:
        '''Return the times of the start and of each answered read.'''
        self.arrivals.append(time.perf_counter())
        self._link.send(list(range(self._put)))
        await self._finished
        self._link.close()
        return self.arrivals

    def _answer(self, messages: Batch) -> Batch:
        self.arrivals.append(time.perf_counter())
        self._received += len(messages)
        if self._received == self._count:
            self._finished.set_result(None)
        first = self._put
        self._put = min(self._count, first + len(messages))
        return list(range(first, self._put))


async def _fed(sock: socket.socket, count: int, window: int, read_size: int) -> list[float]:
    return await _Feed(sock.dup(), count, window, read_size).run()


def throughput(load: Load) -> Values:
    '''Measure the messages echoed a second with `WINDOW` of them in flight.'''
    return _throughput(load, _READ_SIZE)


def throughput_overlapping(load: Load) -> Values:
    '''Measure the same with reads so small that both ends work at the same time.'''
    return _throughput(load, _OVERLAPPING_READ_SIZE)


def latency(load: Load) -> Values:
    '''Measure the round trip of one message at a time, in seconds.'''
    with _echo_process(_READ_SIZE) as sock:
        times = asyncio.run(_fed(sock, load.messages + load.warm_up, 1, _READ_SIZE))
    return percentiles([after - before for before, after in pairwise(times)], load)


def _throughput(load: Load, read_size: int) -> Values:
    with _echo_process(read_size) as sock:
        asyncio.run(_fed(sock, load.warm_up, WINDOW, read_size))
        times = asyncio.run(_fed(sock, load.messages, WINDOW, read_size))
    return {'rate': load.messages / (times[-1] - times[0])}
