'''A link on a non-blocking socket on an IO loop.

1. Reading never stops, but for want of descriptors. One read takes up to 256 KiB; what it brought is handed to the
   link at once, and then `work` is called to take up tasks or results.
2. `work` gets a deadline. Past it, it returns True to be called again in the next turn of the loop, so that a long
   backlog of short tasks does not block the loop's other users.
3. What is sent while reading or working leaves in one write at its end; what is sent elsewhere, or can wait, leaves in
   one write at the next turn of the loop. A partial write waits for writability.
4. Descriptors have a socket of their own, as reading them makes every read slower; the side that opens it sends its
   other end with the first bytes. They arrive no later than the bytes that are sent after them, in their order. Where
   this process may open no more files, they stay in the socket, and reading waits.
5. Whatever is wrong with the socket or the framing closes the channel, once, and is told to `on_closed`.
'''

import asyncio
import contextlib
import contextvars
import errno
import logging
import os
import socket
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, Protocol

from .errors import ProtocolError
from .frames import WRITE_SIZE
from .lending import Shortage

__all__ = ['SLICE', 'Channel', 'End']

_log: Final = logging.getLogger('looppool')

READ_SIZE: Final = 256 * 1024
_DESCRIPTORS_PAUSE: Final = 0.02
'''Seconds until descriptors are sent, or received, that could not be.'''
_MOST_DESCRIPTORS: Final = 32
'''How many are sent at once. Few, as they are received at once; but a socket takes less than 300 times as many, and the
bytes that say what they are leave behind them.'''
_EXTRA_SIZE: Final = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array('i').itemsize)
# Plain ints: those of the enumeration are slow to combine.
_CLOSE_ON_EXEC: Final = int(getattr(socket, 'MSG_CMSG_CLOEXEC', 0))
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
SLICE: Final = 0.0005
'''For how long `work` may go on before what it sent is written and the loop turns, in seconds. With less, the loop's
turn (some 20 µs) costs too much; with more, the two ends of a busy link wait for each other instead of overlapping.'''


class End(Protocol):
    '''The end of a link, as `protocol.py` has it.'''

    def receive_data(self, data: bytes) -> None: ...
    def data_to_send(self) -> bytes:
        '''The next bytes; fewer than `WRITE_SIZE` are the last ones.'''
    @property
    def urgent(self) -> bool: ...


class Channel:
    '''Moves the bytes of one end of a link. All methods belong to the loop's thread.

    :param sock: one end of a socketpair; the channel owns it from now on.
    :param loop: the asyncio loop to work on.
    :param work: ``work(deadline)`` takes up what was received; it returns whether it wants to be called soon again.
    :param on_closed: called once when the other side is gone (None) or broke the protocol (the error).
    :param descriptors: a socketpair for descriptors, which the channel owns from now on; None: it comes from the other
        side.
    '''

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[float], bool],
        on_closed: Callable[[ProtocolError | None], None],
        descriptors: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        sock.setblocking(False)
        self.end: End
        self._sock = sock
        self._loop = loop
        self._work = work
        self._on_closed = on_closed
        self._buffer = memoryview(bytearray(READ_SIZE))
        self._unsent = memoryview(b'')
        self._descriptors: socket.socket | None = None
        self._to_send: socket.socket | None = None
        if descriptors is not None:
            self._descriptors, self._to_send = descriptors
            self._descriptors.setblocking(False)
        self._first = True
        self._descriptors_out: deque[Any] = deque()
        self._descriptors_in: deque[int] = deque()
        self._waiting = False
        '''Whether there was no descriptor for what has come.'''
        # Whoever happens to wake the channel must not lend its context variables to the work that follows.
        self._context = contextvars.copy_context()
        self._corked = False
        self._flush_scheduled = False
        self._work_scheduled = False
        self._open = True
        self._flushed: asyncio.Future[None] | None = None
        _open_channels.add(self)

    def open(self, end: End) -> None:
        '''Begin to read for `end`.'''
        self.end = end
        self._loop.add_reader(self._sock, self._on_readable)

    # Sending

    def wake(self) -> None:
        '''The link has something to send.'''
        if not self._corked:
            self.wake_later()

    def wake_later(self) -> None:
        '''The link has something to send that can wait for the next turn of the loop, in company perhaps.'''
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_now, context=self._context)

    def _flush_now(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def flush(self) -> None:
        '''Write what the link has to send, or as much of it as the socket takes.'''
        while not self._unsent and self._open:
            data = self.end.data_to_send()
            if data:
                self._write(memoryview(data))
            if len(data) < WRITE_SIZE:
                break

    def send_descriptor(self, segment: Any) -> None:
        '''Send the descriptor of a segment (its ``fd``) ahead of the next bytes.'''
        self._descriptors_out.append(segment)

    def _write(self, data: memoryview) -> None:
        sent = 0
        try:
            if self._descriptors_out and not self._send_descriptors():
                self._unsent = data
                self._loop.call_later(_DESCRIPTORS_PAUSE, self._on_writable)
                return
            if self._to_send is not None:
                sent = self._send_socket(data)
            sent += self._sock.send(data[sent:] if sent else data)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # The other side is gone. What it sent before is still to be read; reading tells when that is over.
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.add_writer(self._sock, self._on_writable)

    def _send_socket(self, data: memoryview) -> int:
        '''Send the other side's end of the socket for descriptors, with the first bytes.'''
        assert self._to_send is not None
        sent = socket.send_fds(self._sock, [data], [self._to_send.fileno()])
        self._to_send.close()
        self._to_send = None
        return sent

    def _send_descriptors(self) -> bool:
        '''Send those that are to be sent; return whether there was room for all of them.'''
        assert self._descriptors is not None
        while self._descriptors_out:
            segments = list(islice(self._descriptors_out, _MOST_DESCRIPTORS))
            try:
                socket.send_fds(self._descriptors, [b'.'], [segment.fd for segment in segments])
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    # The user's processes have too many on their way.
                    return False
                if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                    self._tell_closed(ProtocolError(f'a descriptor could not be sent: {error}'))
                raise
            for _ in segments:
                self._descriptors_out.popleft()
        return True

    def _on_writable(self) -> None:
        if not self._open:
            return
        self._loop.remove_writer(self._sock)
        rest, self._unsent = self._unsent, memoryview(b'')
        self._write(rest)
        self.flush()
        if not self._unsent and self._flushed and not self._flushed.done():
            self._flushed.set_result(None)

    async def drained(self) -> None:
        '''Wait until all that was sent has left.'''
        self.flush()
        while self._unsent and self._open:
            self._flushed = self._loop.create_future()
            await self._flushed

    # Receiving

    def _on_readable(self) -> None:
        self._corked = True
        alive = True
        try:
            alive = self._receive()
        finally:
            # Whatever flies through here, an interrupt perhaps, the link goes on afterwards.
            self._run_work()
            if not alive:
                self.close()

    def _receive(self) -> bool:
        '''Read once; return whether there can be more.'''
        waited, self._waiting = self._waiting, False
        try:
            count = 0 if waited else self._read()
            if count is None:
                return True
            if count or waited:
                self.end.receive_data(bytes(self._buffer[:count]))
                return True
        except Shortage:
            self._wait(waited)
            return True
        except ProtocolError as error:
            self._tell_closed(error)
        else:
            self._tell_closed(None)
        return False

    def _wait(self, waited: bool) -> None:
        '''Read on when there may be descriptors again.'''
        if not waited:
            _log.warning('a large message waits: process %d may open no more files (ulimit -n)', os.getpid())
        self._waiting = True
        self._loop.remove_reader(self._sock)
        self._loop.call_later(_DESCRIPTORS_PAUSE, self._read_on)

    def _read_on(self) -> None:
        if self._open:
            self._loop.add_reader(self._sock, self._on_readable)
            self._on_readable()

    def _read(self) -> int | None:
        '''How many bytes have come: none, if the other side is gone. None if it has nothing to say now.'''
        try:
            if self._first:
                self._receive_socket()
            return self._sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return 0

    def _receive_socket(self) -> None:
        '''Take the socket for descriptors, which comes with the first byte; the byte itself is still to be read.'''
        descriptors = _peek_descriptors(self._sock)
        self._first = False
        if descriptors:
            self._descriptors = socket.socket(fileno=descriptors[0])
            self._descriptors.setblocking(False)

    @contextlib.contextmanager
    def descriptor(self) -> Iterator[int]:
        '''The first descriptor that has come and was not taken. It is the caller's if the block ends well.

        :raises ProtocolError: there is none.
        :raises Shortage: it can't be had now.
        '''
        if not self._descriptors_in and self._descriptors is not None:
            with contextlib.suppress(BlockingIOError):
                self._descriptors_in.extend(_peek_descriptors(self._descriptors))
                self._descriptors.recv(1)
        if not self._descriptors_in:
            raise ProtocolError('a descriptor was to come, but did not')
        yield self._descriptors_in[0]
        self._descriptors_in.popleft()

    @property
    def is_open(self) -> bool:
        return self._open

    def work_soon(self) -> None:
        '''Call `work` in the next turn of the loop.'''
        if not self._work_scheduled:
            self._work_scheduled = True
            self._loop.call_soon(self._work_now, context=self._context)

    def _work_now(self) -> None:
        self._work_scheduled = False
        self._run_work()

    def _run_work(self) -> None:
        self._corked = True
        more = True
        try:
            more = self._work(time.monotonic() + SLICE)
        except Exception:
            more = False
            raise
        finally:
            self._corked = False
            if self.end.urgent:
                self.flush()
            if more:
                self.work_soon()

    # Closing

    def read_to_end(self) -> None:
        '''Take in what is left of a peer that is gone, to EOF or until the socket's buffer is empty; then close.'''
        self._corked = True
        while self._open and (self._waiting or self._readable_now()) and self._receive():
            if self._waiting:
                # Nobody can wait any more.
                break
        self._corked = False
        self.close()

    def _readable_now(self) -> bool:
        try:
            return bool(self._sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _tell_closed(self, error: ProtocolError | None) -> None:
        if self._open:
            self._on_closed(error)

    def close(self) -> None:
        '''Close the socket; nothing is sent or received any more. `work` may still be called for what was received.'''
        if not self._open:
            return
        self._open = False
        self._drop_descriptors()
        _open_channels.discard(self)
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        if self._flushed and not self._flushed.done():
            self._flushed.set_result(None)

    def _drop_descriptors(self) -> None:
        self._descriptors_out.clear()
        while self._descriptors_in:
            os.close(self._descriptors_in.popleft())
        for sock in (self._descriptors, self._to_send):
            if sock is not None:
                sock.close()

    def _forget(self) -> None:
        '''In a forked child: close the descriptor, but leave the loop alone, which shares its epoll with the parent.'''
        self._open = False
        self._drop_descriptors()
        # Not by `close`, which does nothing while uvloop watches the socket.
        with contextlib.suppress(OSError):
            os.close(self._sock.detach())


def _peek_descriptors(sock: socket.socket) -> 'array[int]':
    '''The descriptors that come along with the next byte, which stays. (Those of ``socket.recv_fds`` outlive an exec.)

    :raises Shortage: this process may not open as many now.
    '''
    found = array('i')
    _, extra, flags, _ = sock.recvmsg(1, _EXTRA_SIZE, _CLOSE_ON_EXEC | socket.MSG_PEEK)
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) // found.itemsize * found.itemsize])
    if flags & _TRUNCATED:
        for descriptor in found:
            os.close(descriptor)
        raise Shortage
    return found


_open_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _forget_channels() -> None:
    for channel in list(_open_channels):
        channel._forget()
    _open_channels.clear()


# A fork elsewhere in the parent must not keep links open behind the parent's back.
os.register_at_fork(after_in_child=_forget_channels)
