'''Shared memory in which large messages travel: where it comes from, and who may use it when.

1. A segment is an anonymous file in memory. All of it exists before anybody writes there: where memory is full, it is
   not created, and the message stays on the link. It is sealed, so that nobody can take its pages away.
2. A sender's `SegmentStore` cuts segments into blocks of few sizes and keeps those that are free, mapped and touched. A
   block is free again when nothing here keeps it: no message that may have to be sent again, no receiver that uses it.
3. A receiver maps a segment once. Its objects lie there; when the last one is collected, the block is given back.
4. What lies in a `SharedSegment` is found by the address of its buffer, and sent by reference. It ends with the last
   process that uses it.
5. A forked child gives nothing back: it is the parent's. It has what is shared, if anybody there holds it.
'''

import asyncio
import bisect
import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import pickle
import resource
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final

from .channel import Channel
from .codec import Buffers, refer_with
from .errors import ProtocolError
from .lending import Shortage
from .payload import LEAST, Payload, Piece

__all__ = ['SegmentStore', 'SharedSegment', 'Sharing', 'aligned', 'most_segments', 'open_store', 'shared_piece']

_POSSIBLE: Final = hasattr(os, 'memfd_create')
# From 3.13 on a mapping need not have a descriptor of its own.
_UNTRACKED: Final[dict[str, Any]] = {'trackfd': False} if sys.version_info >= (3, 13) else {}
_SLAB: Final = 4 << 20
'''Bytes of a segment that is cut into several blocks.'''
_LARGEST_CUT: Final = 1 << 20
'''Larger blocks have a segment of their own.'''
_ALIGNED: Final = 64
_MAP_FIXED: Final = 0x10
'''Of Linux, which the module mmap does not name.'''
_LEAST_IN_HALVES: Final = 8 << 20
'''From how many bytes on a buffer is copied by two threads: a thread takes some 100 µs to start.'''
_AGE: Final = 5.0
'''For how long a free segment is kept, in seconds, at least; at most twice as long.'''


class _Segment:
    '''Shared memory, mapped when it is first looked at.'''

    shared = False
    wanted = False
    fd = -1

    def __init__(self, key: int, capacity: int, fd: int) -> None:
        self.key = key
        self.capacity = capacity
        self.fd = fd
        self.ends: weakref.WeakSet[Any] = weakref.WeakSet()
        _alive.add(self)

    @functools.cached_property
    def mapping(self) -> mmap.mmap:
        if self.fd < 0:
            raise OSError(errno.EBADF, 'the segment belongs to the process that this one was forked from')
        return _mapped(self.fd, self.capacity)

    def _copied(self, offset: int, size: int) -> memoryview:
        '''A part of it as it is now.'''
        return memoryview(bytearray(memoryview(self.mapping)[offset : offset + size]))

    def map_soon(self) -> None:
        '''Map it now, if nothing is in the way but memory: who loads what is there gets that error.

        :raises Shortage: the descriptor that it takes can't be had now; the segment's own is its maker's again.
        '''
        try:
            self.mapping  # noqa: B018
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self.fd = -1
                raise Shortage from error

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def _forget(self) -> None:
        '''In a forked child: let go of it. Who has a view of it there writes where nobody else reads.'''
        if self.fd < 0:
            return
        if 'mapping' in vars(self):
            try:
                self.mapping.close()
            except BufferError:
                _make_private(self.mapping, self.fd)
        os.close(self.fd)
        self.fd = -1


class _ReceivedSegment(_Segment):
    '''One that another process's store has cut into blocks.'''

    def __init__(self, key: int, capacity: int, fd: int) -> None:
        super().__init__(key, capacity, fd)
        self._scarce = len(_alive) + len(_tracked) > 4 * most_segments()

    def view(self, offset: int, size: int, keep: object) -> memoryview:
        '''A part of it; whatever is made of the view keeps `keep`. A copy, if descriptors are scarce.'''
        if self._scarce:
            return self._copied(offset, size)
        exporter = _exporter(self.capacity).from_buffer(self.mapping)
        exporter.keep = keep
        return memoryview(exporter).cast('B')[offset : offset + size]


class _OwnSegment(_Segment):
    '''One that a store here has cut into blocks of one size.'''

    wanted = True

    def __init__(self, capacity: int, block: int) -> None:
        super().__init__(*_create(capacity))
        self.block = block
        self.hollow: list[int] = []
        '''Free blocks that have no memory now.'''
        self.rested: set[int] = set()
        '''Those that were free some seconds ago.'''
        self.free = list(range(capacity - block, -1, -block))
        # Touched now, where it may fail and need not be waited for page by page.
        self.mapping = _mapped(self.fd, capacity, getattr(mmap, 'MAP_POPULATE', 0))

    @property
    def idle(self) -> bool:
        return (len(self.free) + len(self.hollow)) * self.block == self.capacity

    def hollow_out(self) -> None:
        '''Free the memory of blocks that nobody has used since the last time.'''
        for offset in self.rested.intersection(self.free):
            self.mapping.madvise(mmap.MADV_REMOVE, offset, self.block)
            self.free.remove(offset)
            self.hollow.append(offset)
        self.rested = set(self.free)

    def fill_in(self) -> None:
        '''Get the memory of a block back.

        :raises OSError: there is none.
        '''
        os.posix_fallocate(self.fd, self.hollow[-1], self.block)
        self.free.append(self.hollow.pop())

    def view(self, offset: int, size: int, _keep: object) -> memoryview:
        '''What was sent, copied: the block will be written again.'''
        return self._copied(offset, size)


def _nothing() -> None:
    return None


class SharedSegment(_Segment):
    '''One whose users write where and when they like, in all processes that have it.'''

    shared = True

    def __init__(self, key: int, capacity: int, fd: int) -> None:
        super().__init__(key, capacity, fd)
        self._exporter: Callable[[], Any] = _nothing
        '''Gives what all views of it keep, as long as there is one.'''
        _shared[key] = self

    @classmethod
    def create(cls, size: int) -> 'SharedSegment':
        '''A new one, of at least so many bytes.

        :raises OSError: there is no memory, or no descriptor; or the system has no such memory.
        '''
        if not _POSSIBLE:
            raise OSError(errno.ENOTSUP, 'shared memory needs a system with memfd_create, such as Linux')
        return cls(*_create(_pages(size)))

    @property
    def wanted(self) -> bool:  # type: ignore[override]
        return self._exporter() is not None

    def view(self, offset: int, size: int, _keep: object) -> memoryview:
        '''A part of it; whatever is made of the view keeps the segment.'''
        with _ranges_lock:
            exporter = self._exporter()
            if exporter is None:
                exporter = _exporter(self.capacity).from_buffer(self.mapping)
                exporter.keep = self
                self._exporter = weakref.ref(exporter)
                _add_range(exporter, self)
        return memoryview(exporter).cast('B')[offset : offset + size]

    def keep_range(self) -> bool:
        '''In a forked child: have it found by its address again. Whether anybody there uses it.'''
        exporter = self._exporter()
        if exporter is not None:
            _add_range(exporter, self)
        return exporter is not None


def _add_range(exporter: Any, segment: SharedSegment) -> None:
    '''The segment is used from now on, until its exporter is collected: perhaps with it, in one circle.'''
    address = ctypes.addressof(exporter)
    if address not in _ranges:
        bisect.insort(_starts, address)
    let_go = functools.partial(_let_go, address, segment.key, segment.ends)
    _ranges[address] = address + segment.capacity, weakref.ref(segment), weakref.ref(exporter, let_go)


def _let_go(address: int, key: int, ends: 'weakref.WeakSet[Any]', exporter: object) -> None:
    '''Nobody here uses a shared segment any more: in whatever thread, tell the ends that have said it.'''
    with _ranges_lock:
        if address not in _ranges or _ranges[address][2] is not exporter:
            # It is used again already.
            return
        del _ranges[address]
        _starts.remove(address)
    for end in list(ends):
        end.memory.call_soon(_forget_unused, end, key)


def _forget_unused(end: Any, key: int) -> None:
    segment = _shared.get(key)
    if segment is None or not segment.wanted:
        end.forget(key)


def most_segments() -> int:
    '''How many segments may be sent in here, and how many received, to leave half of the descriptors that there may be.

    Each takes two.
    '''
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (limit if limit != resource.RLIM_INFINITY else 1 << 16) // 8


def _make_private(mapping: mmap.mmap, fd: int) -> None:
    '''Map the same again in the same place, so that what is written there stays in this process.'''
    map_at = ctypes.pythonapi.mmap
    map_at.restype = ctypes.c_void_p
    map_at.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping))
    map_at(address, len(mapping), mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED, fd, 0)


@functools.lru_cache(64)
def _exporter(capacity: int) -> Any:
    '''A class whose objects are what memory views keep, and can keep something themselves.'''
    return ctypes.c_ubyte * capacity


def _create(capacity: int) -> tuple[int, int, int]:
    fd = os.memfd_create('looppool', os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, capacity)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return int.from_bytes(os.urandom(8)), capacity, fd


def _mapped(fd: int, capacity: int, flags: int = 0) -> mmap.mmap:
    if _UNTRACKED:
        return mmap.mmap(fd, capacity, mmap.MAP_SHARED | flags, **_UNTRACKED)
    mapping = mmap.mmap(fd, capacity, mmap.MAP_SHARED | flags)
    _tracked.add(mapping)
    return mapping


def _pages(size: int) -> int:
    return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE


_alive: Final[weakref.WeakSet[_Segment]] = weakref.WeakSet()
_tracked: Final[weakref.WeakSet[mmap.mmap]] = weakref.WeakSet()
'''The mappings that have a descriptor of their own. Views keep them when the segment is forgotten.'''
_shared: Final[weakref.WeakValueDictionary[int, SharedSegment]] = weakref.WeakValueDictionary()
'''Those of this process, by key.'''
_ranges: Final[dict[int, tuple[int, weakref.ref[SharedSegment], weakref.ref[Any]]]] = {}
'''Those that somebody here uses, by address: to which one they reach, and what is there as long as they are used.'''
_starts: Final[list[int]] = []
'''The addresses in order.'''
_ranges_lock = threading.RLock()
'''Reentrant, as the collector may run at any time.'''


class _PyBuffer(ctypes.Structure):
    '''``Py_buffer``, part of Python's stable ABI.'''

    _fields_ = (
        ('buf', ctypes.c_void_p), ('obj', ctypes.py_object), ('len', ctypes.c_ssize_t), ('itemsize', ctypes.c_ssize_t),
        ('readonly', ctypes.c_int), ('ndim', ctypes.c_int), ('format', ctypes.c_void_p), ('shape', ctypes.c_void_p),
        ('strides', ctypes.c_void_p), ('suboffsets', ctypes.c_void_p), ('internal', ctypes.c_void_p),
    )  # fmt: skip


def _address(raw: memoryview) -> int:
    '''Where a buffer is, which ctypes itself tells of writable ones only.'''
    buffer = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(raw), ctypes.byref(buffer), 0)
    try:
        return buffer.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))


def shared_piece(raw: memoryview) -> Piece | None:
    '''Where a buffer lies in a shared segment; None if it does not.'''
    if not _ranges:
        return None
    address = _address(raw)
    with _ranges_lock:
        index = bisect.bisect(_starts, address) - 1
        if index < 0:
            return None
        start = _starts[index]
        end, found, _ = _ranges[start]
        segment = found() if address < end else None
    return None if segment is None else (segment, address - start, raw.nbytes)


# The sender

_NOTHING: Final = memoryview(b'')


def _copy(raw: memoryview, mapping: mmap.mmap, start: int) -> None:
    '''Copy a buffer; a large one by two threads, as one does not use all that memory can do.'''
    here = size = raw.nbytes
    with contextlib.ExitStack() as ends:
        if size >= _LEAST_IN_HALVES:
            half = size // 2
            to, source = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping, start)), _address(raw)
            other = threading.Thread(target=ctypes.memmove, args=(to + half, source + half, size - half), daemon=True)
            # No more threads may be started, perhaps.
            with contextlib.suppress(RuntimeError):
                other.start()
                ends.callback(other.join)
                here = half
        mapping[start : start + here] = raw[:here]


class _Block:
    '''Keeps a part of a segment from being used again.'''

    __slots__ = ('_store', 'offset', 'segment')

    def __init__(self, segment: _OwnSegment, offset: int, store: 'SegmentStore') -> None:
        self.segment = segment
        self.offset = offset
        self._store = store

    def fill(self, buffers: Buffers) -> Buffers:
        '''Copy what is not shared; return where all of it lies now.'''
        start, placed = self.offset, Buffers()
        for raw, piece in buffers:
            if piece is None:
                size = raw.nbytes
                _copy(raw, self.segment.mapping, start)
                placed.append((_NOTHING, (self.segment, start, size)))
                start += aligned(size)
            else:
                placed.append((raw, piece))
        return placed

    def __del__(self) -> None:
        self._store.take_back(self.segment, self.offset)


class SegmentStore:
    '''The segments in which one pool, or one worker, sends. All methods belong to the loop's thread.

    :param limit: how many bytes of free segments are kept, if there are several.
    :param most: how many segments there may be: each takes descriptors, here and where it is received.
    '''

    def __init__(self, limit: int, most: int) -> None:
        self._limit = limit
        self._most = most
        self._open: dict[int, list[_OwnSegment]] = {}
        '''Those with free blocks, by the size of these.'''
        self._idle: dict[_OwnSegment, float] = {}
        '''Those that are free as a whole, and since when.'''
        self._returned: deque[tuple[_OwnSegment, int]] = deque()
        self._closed = False
        self._all: set[_OwnSegment] = set()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, buffers: Buffers, buffer: pickle.PickleBuffer) -> bool:
        '''Add a buffer to those that travel apart from the pickle. Whether it is not worth it: it stays there.'''
        return _stays(buffers, buffer, LEAST)

    def put(self, pickled: bytes, buffers: Buffers) -> Payload | None:
        '''What to send instead of the pickle and its buffers. None if there is no memory.'''
        spilled = len(pickled) >= LEAST
        if spilled:
            buffers.insert(0, (memoryview(pickled), None))
        size = sum(aligned(raw.nbytes) for raw, piece in buffers if piece is None)
        block = None
        if size:
            block = self._allocate(size)
            if block is None:
                return None
            buffers = block.fill(buffers)
        pieces = [piece for _, piece in buffers if piece is not None]
        # The piece of what is shared does not keep it: its buffer does.
        return Payload(b'' if spilled else pickled, pieces, (block, buffers), spilled=spilled)

    def close(self) -> None:
        '''Keep no free memory; what is under way still ends well.'''
        self._closed = True
        for segment in list(self._all):
            self._retire(segment)
        self._returned.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take_back(self, segment: _OwnSegment, offset: int) -> None:
        '''A block is free. Called by any thread, at any time.'''
        if not self._closed:
            self._returned.append((segment, offset))

    def _allocate(self, size: int) -> _Block | None:
        self._take_in()
        block = _size_class(size)
        segments = self._open.setdefault(block, [])
        if not segments:
            if len(self._all) >= self._most:
                return None
            try:
                capacity = _SLAB - _SLAB % block if block <= _LARGEST_CUT else block
                segments.append(_OwnSegment(capacity, block))
            except OSError:
                return None
            self._all.add(segments[0])
        self._see_to_age()
        segment = segments[-1]
        if not segment.free:
            try:
                segment.fill_in()
            except OSError:
                return None
        self._idle.pop(segment, None)
        offset = segment.free.pop()
        if not segment.free and not segment.hollow:
            segments.pop()
        return _Block(segment, offset, self)

    def _take_in(self) -> None:
        '''See to the blocks that were returned, by whatever thread.'''
        while self._returned:
            segment, offset = self._returned.popleft()
            if not segment.free and not segment.hollow:
                self._open.setdefault(segment.block, []).append(segment)
            segment.free.append(offset)
            if segment.idle:
                self._idle[segment] = time.monotonic()
        free = sum(segment.capacity for segment in self._idle)
        for segment in list(self._idle):
            if free <= self._limit or len(self._idle) == 1:
                break
            free -= segment.capacity
            self._retire(segment)

    def _retire(self, segment: _OwnSegment) -> None:
        self._all.discard(segment)
        self._idle.pop(segment, None)
        if segment.free or segment.hollow:
            self._open[segment.block].remove(segment)
        segment.wanted = False
        for end in list(segment.ends):
            end.forget(segment.key)

    def _see_to_age(self) -> None:
        if self._timer is None and self._all and not self._closed:
            with contextlib.suppress(RuntimeError):
                self._timer = asyncio.get_running_loop().call_later(_AGE, self._on_age)

    def _on_age(self) -> None:
        self._timer = None
        self._take_in()
        for segment, since in list(self._idle.items()):
            if time.monotonic() - since >= _AGE:
                self._retire(segment)
        for segment in self._all - self._idle.keys():
            segment.hollow_out()
        self._see_to_age()


class _References:
    '''A store that takes nothing but what is shared already: for what is kept.'''

    def take(self, buffers: Buffers, buffer: pickle.PickleBuffer) -> bool:
        '''As `SegmentStore.take`.'''
        return _stays(buffers, buffer, sys.maxsize)

    def put(self, pickled: bytes, buffers: Buffers) -> Payload | None:
        '''What to send instead of the pickle and its buffers. None if that is the same.'''
        pieces = [piece for _, piece in buffers if piece is not None]
        return Payload(pickled, pieces, buffers, spilled=False) if pieces else None


refer_with(_References())


def _stays(buffers: Buffers, buffer: pickle.PickleBuffer, least: int) -> bool:
    '''Whether a buffer stays in the pickle, as it is smaller than `least` and not shared; else it is added.'''
    try:
        raw = buffer.raw()
    except BufferError:
        return True
    piece = shared_piece(raw)
    if raw.nbytes < least and piece is None:
        return True
    buffers.append((raw, piece))
    return False


def open_store(limit: int, most: int) -> SegmentStore | None:
    '''A store; None where the system does not have what it takes: all messages stay on the link.'''
    return SegmentStore(limit, most) if _POSSIBLE else None


def aligned(size: int) -> int:
    '''So many bytes, or some more, so that what follows lies as processors like it.'''
    return -(-size // _ALIGNED) * _ALIGNED


def _size_class(size: int) -> int:
    '''The size of a block for so many bytes: a power of two, or one and a half of one, or closer if it is large.'''
    power = max(LEAST, 1 << (size - 1).bit_length())
    if power > _SLAB:
        step = power // 16
        return -(-size // step) * step
    return power * 3 // 4 if size <= power * 3 // 4 and power > LEAST else power


# The link


class _Hold:
    '''Gives a payload back when it is collected.'''

    __slots__ = ('_sharing', '_use')

    def __init__(self, sharing: 'Sharing', use: int) -> None:
        self._sharing = sharing
        self._use = use

    def __del__(self) -> None:
        self._sharing.give_back(self._use)


class Sharing:
    '''The memory of one link: the `protocol.Memory` of its end.

    :param end: the end of the link.
    '''

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: Channel, end: Any) -> None:
        self._loop = loop
        self._thread = get_ident()
        self._channel = weakref.ref(channel)
        self._end = weakref.ref(end)
        self._disowned = False
        _sharings.add(self)

    def say(self, segment: Any) -> None:
        '''Send the segment's descriptor ahead of what is sent next.'''
        channel = self._channel()
        assert channel is not None
        channel.send_descriptor(segment)

    def attach(self, key: int, capacity: int, *, shared: bool) -> Any:
        '''The segment whose descriptor has come.'''
        channel = self._channel()
        assert channel is not None
        with channel.descriptor() as fd:
            if os.fstat(fd).st_size < capacity:
                raise ProtocolError(f'a segment of {capacity:,} bytes is smaller than that')
            found = _shared.get(key) if shared else None
            if found is not None:
                os.close(fd)
                return found
            segment = (SharedSegment if shared else _ReceivedSegment)(key, capacity, fd)
            segment.map_soon()
            return segment

    def hold(self, use: int) -> object:
        '''What gives back the payload with that number when it is collected, wherever.'''
        return _Hold(self, use)

    def give_back(self, use: int) -> None:
        '''Called by any thread, at any time.'''
        channel, end = self._channel(), self._end()
        if channel is not None and end is not None and channel.is_open and not self._disowned:
            end.returned.append(use)
            if get_ident() == self._thread:
                channel.wake()
            else:
                self.call_soon(channel.wake_later)

    def call_soon(self, callback: Any, *args: Any) -> None:
        '''Have the loop call back, whatever thread this is. Without a loop there is nobody to tell.'''
        with contextlib.suppress(RuntimeError):
            if get_ident() == self._thread:
                self._loop.call_soon(callback, *args)
            else:
                self._loop.call_soon_threadsafe(callback, *args)

    def disown(self) -> None:
        '''In a forked child: what is collected here is the parent's to give back.'''
        self._disowned = True


_sharings: Final[weakref.WeakSet[Sharing]] = weakref.WeakSet()


def _forget() -> None:
    global _ranges_lock
    # Another thread may have had it.
    _ranges_lock = threading.RLock()
    _ranges.clear()
    _starts.clear()
    for sharing in list(_sharings):
        sharing.disown()
    for segment in list(_alive):
        segment.ends.clear()
        if not isinstance(segment, SharedSegment) or not segment.keep_range():
            _shared.pop(segment.key, None)
            segment._forget()


os.register_at_fork(after_in_child=_forget)
