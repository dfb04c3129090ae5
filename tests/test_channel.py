'''Two channels on a socketpair and real loops: what is sent arrives, closing is told once, nobody is starved.'''

import asyncio
import errno
import os
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from harness import descriptors_left, on_each_loop

from looppool.channel import READ_SIZE, Channel
from looppool.errors import ProtocolError
from looppool.lending import Shortage

pytestmark = on_each_loop

Pair = tuple[socket.socket, socket.socket]


class Side:
    '''One end of a link: sends what it is told to, keeps what it gets, and takes `!` for a broken protocol.'''

    def __init__(self, sock: socket.socket, descriptors: Pair | None = None) -> None:
        self.received = bytearray()
        self.closed: list[ProtocolError | None] = []
        self.changed = asyncio.Event()
        self._out: list[bytes] = []
        self.channel = Channel(sock, asyncio.get_running_loop(), self.work, self.on_closed, descriptors)
        self.channel.open(self)

    def send(self, data: bytes) -> None:
        if not self._out:
            self.channel.wake()
        self._out.append(data)

    def data_to_send(self) -> bytes:
        data = b''.join(self._out)
        self._out.clear()
        return data

    @property
    def urgent(self) -> bool:
        return bool(self._out)

    def receive_data(self, data: bytes) -> None:
        if b'!' in data:
            raise ProtocolError('it shouts')
        self.received += data
        self.changed.set()

    def work(self, deadline: float) -> bool:
        return False

    def on_closed(self, error: ProtocolError | None) -> None:
        self.closed.append(error)
        self.changed.set()

    async def until_received(self, size: int) -> bytes:
        while len(self.received) < size:
            self.changed.clear()
            await self.changed.wait()
        return bytes(self.received)

    async def until_closed(self) -> list[ProtocolError | None]:
        while not self.closed:
            self.changed.clear()
            await self.changed.wait()
        return self.closed


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def packets() -> Iterator[tuple[socket.socket, socket.socket]]:
    '''Sockets that keep the bounds of each write.'''
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    ours.close()
    theirs.close()



async def packet(sock: socket.socket) -> bytes:
    sock.setblocking(False)
    return await asyncio.get_running_loop().sock_recv(sock, 100)


def readable(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def pattern(size: int, seed: int) -> bytes:
    '''Bytes in which a piece that is lost, doubled or out of order shows; without `!`.'''
    return b''.join(b'%d:%d ' % (seed, number) for number in range(size // 8 + 1))[:size]


# Sending and receiving


async def test_bytes_arrive_both_ways(pair: Pair) -> None:
    left, right = map(Side, pair)
    left.send(b'to the right')
    right.send(b'to the left')
    assert await right.until_received(12) == b'to the right'
    assert await left.until_received(11) == b'to the left'
    left.channel.close()
    right.channel.close()


async def test_large_bodies_cross_in_order(pair: Pair) -> None:
    left, right = map(Side, pair)
    to_right = [pattern(3_000_000, 1), b'small', pattern(2_000_000, 2)]
    to_left = [pattern(5_000_000, 3)]
    for data in to_right:
        left.send(data)
        await asyncio.sleep(0)  # Each in a write of its own.
    for data in to_left:
        right.send(data)
    assert await right.until_received(sum(map(len, to_right))) == b''.join(to_right)
    assert await left.until_received(sum(map(len, to_left))) == b''.join(to_left)
    left.channel.close()
    right.channel.close()


# Descriptors


def files(count: int) -> list[Any]:
    '''Files that can be told apart.'''
    made = [tempfile.TemporaryFile() for _ in range(count)]
    return [SimpleNamespace(fd=file.fileno(), file=file) for file in made]


def take(side: Side) -> int:
    with side.channel.descriptor() as fd:
        return fd


def inodes(descriptors: list[int]) -> list[int]:
    return [os.fstat(fd).st_ino for fd in descriptors]


async def test_descriptors_are_there_when_the_bytes_are_that_were_sent_after_them(pair: Pair) -> None:
    left, right = Side(pair[0], socket.socketpair()), Side(pair[1])
    sent = files(600)
    for index, file in enumerate(sent):
        left.channel.send_descriptor(file)
        left.send(b'x' * 1000)
        if index % 7 == 0:
            await asyncio.sleep(0)

    for count in range(1, 601):
        await right.until_received(1000 * count)
        taken = take(right)
        assert inodes([taken]) == inodes([sent[count - 1].fd])
        assert not os.get_inheritable(taken)
        os.close(taken)

    with pytest.raises(ProtocolError, match='a descriptor was to come'):
        take(right)
    left.channel.close()
    right.channel.close()
    for file in sent:
        file.file.close()


async def test_descriptors_that_find_no_room_are_sent_later(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = Side(pair[0], socket.socketpair()), Side(pair[1])
    left.send(b'first')
    await right.until_received(5)
    [file] = files(1)
    send_fds, refusals = socket.send_fds, [BlockingIOError(), OSError(errno.ETOOMANYREFS, 'too many')]

    def refuse(*args: Any) -> int:
        if refusals:
            raise refusals.pop()
        return send_fds(*args)

    monkeypatch.setattr(socket, 'send_fds', refuse)
    left.channel.send_descriptor(file)
    left.send(b'second')
    assert await right.until_received(11) == b'firstsecond'
    taken = take(right)
    assert inodes([taken]) == inodes([file.fd])
    os.close(taken)
    left.channel.close()
    right.channel.close()
    file.file.close()


async def test_a_descriptor_that_is_none_breaks_the_link(pair: Pair) -> None:
    left, right = Side(pair[0], socket.socketpair()), Side(pair[1])
    left.send(b'first')
    await right.until_received(5)
    left.channel.send_descriptor(SimpleNamespace(fd=-1))
    left.send(b'second')
    [error] = await left.until_closed()
    assert 'could not be sent' in str(error)
    left.channel.close()
    right.channel.close()


async def three_descriptors_sent(pair: Pair) -> tuple[Side, Side, Any]:
    left, right = Side(pair[0], socket.socketpair()), Side(pair[1])
    sent = files(3)
    for file in sent:
        left.channel.send_descriptor(file)
    left.send(b'data')
    await right.until_received(4)
    return left, right, sent


async def test_descriptors_that_nobody_takes_are_closed(pair: Pair) -> None:
    left, right, sent = await three_descriptors_sent(pair)
    left.channel.close()
    right.channel.close()
    for file in sent:
        file.file.close()


async def test_where_no_more_descriptors_may_be_open_they_wait(pair: Pair) -> None:
    left, right, sent = await three_descriptors_sent(pair)
    with descriptors_left(0), pytest.raises(Shortage):
        take(right)
    with pytest.raises(KeyError), right.channel.descriptor():
        raise KeyError
    taken = [take(right) for _ in sent]
    assert inodes(taken) == inodes([file.fd for file in sent])
    for fd in taken:
        os.close(fd)
    left.channel.close()
    right.channel.close()
    for file in sent:
        file.file.close()


async def test_what_is_sent_in_one_turn_leaves_in_one_write(packets: Pair) -> None:
    ours, theirs = packets
    side = Side(ours)
    for data in (b'a', b'b', b'c'):
        side.send(data)
    await asyncio.sleep(0)
    assert await packet(theirs) == b'abc'
    side.channel.close()


async def test_what_is_sent_while_reading_and_working_leaves_in_one_write(packets: Pair) -> None:
    ours, theirs = packets

    class Answering(Side):
        def receive_data(self, data: bytes) -> None:
            super().receive_data(data)
            self.send(b'read ')

        def work(self, deadline: float) -> bool:
            self.send(b'worked ')
            self.send(b'more')
            return False

    side = Answering(ours)
    theirs.send(b'question')
    await side.until_received(8)
    assert await packet(theirs) == b'read worked more'
    side.channel.close()


async def test_what_can_wait_leaves_with_the_rest_of_the_next_turn(packets: Pair) -> None:
    ours, theirs = packets

    class Patient(Side):
        urgent = False

        def work(self, deadline: float) -> bool:
            self._out.append(b'can wait ')
            self.channel.wake_later()
            return False

    side = Patient(ours)
    side.channel.work_soon()
    await asyncio.sleep(0)
    assert not readable(theirs)
    side.send(b'in company')
    assert await packet(theirs) == b'can wait in company'
    side.channel.close()


async def test_drained_waits_until_all_has_left(pair: Pair) -> None:
    ours, theirs = pair
    side = Side(ours)
    sent = pattern(1_000_000, 4)
    side.send(sent)
    draining = asyncio.create_task(side.channel.drained())
    received = bytearray()
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    while len(received) < len(sent):
        # A socket does not hold as much as this.
        assert not (draining.done() and len(received) < len(sent) // 4)
        received += await loop.sock_recv(theirs, 10_000)
    await draining
    assert received == sent
    await side.channel.drained()
    side.channel.close()


async def test_drained_ends_when_the_channel_is_closed(pair: Pair) -> None:
    side = Side(pair[0])
    side.send(pattern(1_000_000, 5))
    draining = asyncio.create_task(side.channel.drained())
    await asyncio.sleep(0)
    assert not draining.done()
    side.channel.close()
    await draining


# Closing


async def test_the_end_of_the_peer_is_told_once(pair: Pair) -> None:
    ours, theirs = pair
    side = Side(ours)
    theirs.send(b'the last')
    theirs.close()
    assert await side.until_closed() == [None]
    assert side.received == b'the last'
    side.send(b'to nobody')
    side.channel.work_soon()
    await asyncio.sleep(0)
    side.channel.read_to_end()
    side.channel.close()
    assert side.closed == [None]


async def test_writing_to_a_peer_that_is_gone_still_reads_what_it_said(pair: Pair) -> None:
    ours, theirs = pair
    side = Side(ours)
    theirs.send(b'last words')
    theirs.close()
    side.send(b'too late')
    side.channel.flush()
    assert await side.until_closed() == [None]
    assert side.received == b'last words'


async def test_a_broken_protocol_closes_this_channel_and_is_told_once(pair: Pair) -> None:
    left, right = map(Side, pair)
    left.send(b'hey!')
    [error] = await right.until_closed()
    assert str(error) == 'it shouts'
    # The other side sees the end of the link, and no more.
    assert await left.until_closed() == [None]
    right.channel.read_to_end()
    assert len(right.closed) == 1


async def test_close_is_not_told_to_the_one_who_closes(pair: Pair) -> None:
    left, right = map(Side, pair)
    left.channel.close()
    left.channel.close()
    assert await right.until_closed() == [None]
    assert left.closed == []


async def test_read_to_end_takes_in_all_that_a_dead_peer_wrote(pair: Pair) -> None:
    ours, theirs = pair
    side = Side(ours)
    sent = pattern(100_000, 6)
    theirs.sendall(sent)
    theirs.close()
    side.channel.read_to_end()
    assert side.received == sent
    assert ours.fileno() == -1


async def test_read_to_end_does_not_wait_for_an_end_that_does_not_come(pair: Pair) -> None:
    # A process that the dead one started may hold its socket open.
    ours, theirs = pair
    side = Side(ours)
    theirs.send(b'all there is')
    side.channel.read_to_end()
    assert side.received == b'all there is'
    assert theirs.recv(1) == b''


async def test_read_to_end_reads_more_than_one_read_takes(pair: Pair) -> None:
    ours, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * READ_SIZE)
    side = Side(ours)
    theirs.setblocking(False)
    sent = bytearray()
    while True:
        try:
            piece = pattern(10_000, len(sent))
            sent += piece[: theirs.send(piece)]
        except BlockingIOError:
            break
    side.channel.read_to_end()
    assert side.received == sent and len(sent) > 20_000


async def test_a_fork_elsewhere_does_not_keep_the_link_open(pair: Pair) -> None:
    ours, theirs = pair
    side = Side(ours)
    wait, go_on = os.pipe()
    child = os.fork()
    if not child:
        theirs.close()
        os.close(go_on)
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    side.channel.close()
    assert theirs.recv(1) == b''
    # It still lives: that was not its end.
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(go_on)
    os.waitpid(child, 0)


# Working


async def test_work_that_never_has_enough_yields_to_the_loop(pair: Pair) -> None:
    class Busy(Side):
        turns = 0

        def work(self, deadline: float) -> bool:
            assert 0 < deadline - time.monotonic() < 1
            self.turns += 1
            return True

    left, right = Busy(pair[0]), Side(pair[1])
    left.channel.work_soon()
    for turn in range(1, 4):
        await asyncio.sleep(0)
        assert left.turns == turn
    # And it still sends and receives.
    right.send(b'question')
    assert await left.until_received(8) == b'question'
    left.send(b'answer')
    assert await right.until_received(6) == b'answer'
    left.channel.close()
    right.channel.close()


async def test_work_soon_is_once_a_turn(pair: Pair) -> None:
    class Counting(Side):
        turns = 0

        def work(self, deadline: float) -> bool:
            self.turns += 1
            return False

    side = Counting(pair[0])
    for _ in range(3):
        side.channel.work_soon()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert side.turns == 1
    side.channel.close()


async def test_what_was_received_is_worked_off_after_the_close(pair: Pair) -> None:
    ours, theirs = pair

    class Slow(Side):
        taken: list[int]

        def work(self, deadline: float) -> bool:
            if self.received:
                self.taken.append(self.received.pop(0))
            return bool(self.received)

    side = Slow(ours)
    side.taken = []
    theirs.send(b'abc')
    theirs.close()
    assert await side.until_closed() == [None]
    for _ in range(3):
        await asyncio.sleep(0)
    assert bytes(side.taken) == b'abc'


async def test_an_error_of_work_is_not_the_end_of_the_channel(pair: Pair) -> None:
    class Failing(Side):
        def work(self, deadline: float) -> bool:
            raise LookupError('no work')

    left, right = Side(pair[0]), Failing(pair[1])
    errors: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(str(context['exception'])))
    left.send(b'one')
    await right.until_received(3)
    left.send(b' two')
    assert await right.until_received(7) == b'one two'
    right.send(b'answer')
    assert await left.until_received(6) == b'answer'
    assert errors == ['no work', 'no work']
    left.channel.close()
    right.channel.close()
