'''Frames: how a link's bytes are cut into messages.

1. A frame is a header and a body. The header is 13 bytes, little-endian: body length (u32), kind (u8), id (u64).
2. A length over the cap is refused: by `pack` with `MessageTooBig`, by `Parser` with `ProtocolError`.
3. The parser may be fed any split of the stream; it gives every whole frame, in order, exactly once.
4. What came before a broken header is still given; `Parser.error` then says what was broken, and feeding ends.
'''

import struct
from typing import Final

from .errors import MessageTooBig, ProtocolError

__all__ = ['HEADER_SIZE', 'MAX_BODY', 'Frame', 'Parser', 'check_size', 'pack_header']

Frame = tuple[int, int, bytes]
'''kind, id, body.'''

_HEADER: Final = struct.Struct('<IBQ')
HEADER_SIZE: Final = _HEADER.size
MAX_BODY: Final = 2**32 - 1
'''The largest body that the header can state, in bytes.'''

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
        self._need = need
        self._tail += data[start:]
        return frames
