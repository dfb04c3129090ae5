'''Frames: how a link's bytes are cut into messages.

1. A frame is a header and a body. The header is 13 bytes, little-endian: body length (u32), kind (u8), id (u64).
2. A length over the cap is refused: by `pack` with `MessageTooBig`, by `Parser` with `ProtocolError`.
3. The parser may be fed any split of the stream; it gives every whole frame, in order, exactly once.
4. What came before a broken header is still given; `Parser.error` then says what was broken, and feeding ends.
5. A frame whose kind has the bit `RUN` is a run of several messages: their number and their sizes (u32 each), then the
   messages. One with the bit `LARGE` says where a message lies (see `payload`).
'''

import struct
from itertools import accumulate, pairwise
from typing import Final

from .errors import MessageTooBig, ProtocolError

__all__ = [
    'HEADER_SIZE',
    'LARGE',
    'MAX_BODY',
    'RUN',
    'WRITE_SIZE',
    'Frame',
    'Parser',
    'check_size',
    'cut_run',
    'pack_header',
    'pack_runs',
]

Frame = tuple[int, int, bytes]
'''kind, id, body.'''

_HEADER: Final = struct.Struct('<IBQ')
HEADER_SIZE: Final = _HEADER.size
MAX_BODY: Final = 2**32 - 1
'''The largest body that the header can state, in bytes.'''

WRITE_SIZE: Final = 1 << 20
'''About how much is written at once, in bytes: what waits to be written is in memory once.'''
_COUNT: Final = struct.Struct('<I')
RUN: Final = 0x80
'''The bit of a kind that says that the body is a run.'''
LARGE: Final = 0x40
'''The bit of a kind that says that the body refers to shared memory.'''

pack_header: Final = _HEADER.pack
'''``pack_header(length, kind, id)`` gives the header's bytes.'''


def check_size(size: int, limit: int) -> None:
    '''Raise `MessageTooBig` for a body of `size` bytes where `limit` is the cap.'''
    if size > limit:
        raise MessageTooBig(size, limit)


class Parser:
    '''Cuts a byte stream into frames, however it was split.

    :param max_body: the cap on a body, in bytes; a header over it is an error before anything is buffered.
    '''

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self.max_body = max_body
        self.error: ProtocolError | None = None
        self._tail = bytearray()
        self._need = HEADER_SIZE

    def feed(self, data: bytes) -> list[Frame]:
        '''Take the next bytes of the stream; return the frames that they complete.'''
        if self.error:
            return []
        if self._tail:
            self._tail += data
            if len(self._tail) < self._need:
                return []
            data = bytes(self._tail)
            self._tail.clear()
        return self._cut(data)

    def _cut(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        add = frames.append
        unpack, header, cap = _HEADER.unpack_from, HEADER_SIZE, self.max_body
        start, end = 0, len(data)
        need = header
        while end - start >= header:
            length, kind, ident = unpack(data, start)
            if length > cap:
                self.error = ProtocolError(f'a frame of kind {kind} claims {length:,} bytes, over the cap of {cap:,}')
                return frames
            stop = start + header + length
            if stop > end:
                need = header + length
                break
            add((kind, ident, data[start + header : stop]))
            start = stop
        if start < end:
            self._need = need
            self._tail += data[start:]
        return frames


def pack_runs(kind: int, ident: int, messages: list[bytes], limit: int, *, row: bool) -> list[bytes]:
    '''Pack messages into frames, runs of at most `limit` bytes where there are several.

    :param row: whether the id is that of the first message only, and the others follow on it.
    :returns: the parts, to be joined.
    '''
    if len(messages) == 1 or sum(map(len, messages)) + _COUNT.size * (len(messages) + 1) <= limit:
        return _pack_run(kind, ident, messages)
    parts: list[bytes] = []
    start, total = 0, _COUNT.size
    for index, message in enumerate(messages):
        size = _COUNT.size + len(message)
        if index > start and total + size > limit:
            parts += _pack_run(kind, ident + start * row, messages[start:index])
            start, total = index, _COUNT.size
        total += size
    return parts + _pack_run(kind, ident + start * row, messages[start:])


def _pack_run(kind: int, ident: int, messages: list[bytes]) -> list[bytes]:
    if len(messages) == 1:
        return [pack_header(len(messages[0]), kind, ident), *messages]
    sizes = list(map(len, messages))
    head = struct.pack(f'<I{len(sizes)}I', len(sizes), *sizes)
    return [b''.join((pack_header(len(head) + sum(sizes), kind | RUN, ident), head, *messages))]


def cut_run(body: bytes) -> list[bytes]:
    '''The messages of a run; ProtocolError if it is none.'''
    try:
        (count,) = _COUNT.unpack_from(body)
        sizes = struct.unpack_from(f'<{count}I', body, _COUNT.size)
    except struct.error as error:
        raise ProtocolError(f'a run of messages is cut: {error}') from None
    bounds = list(accumulate(sizes, initial=(count + 1) * _COUNT.size))
    if bounds[-1] != len(body):
        raise ProtocolError(f'a run of messages takes {len(body)} bytes, but says {bounds[-1]}')
    return [body[start:end] for start, end in pairwise(bounds)]
