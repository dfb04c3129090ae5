'''Frames: how a link's bytes are cut into messages.

1. A frame is a header and a body. The header is 13 bytes, little-endian: body length (u32), kind (u8), id (u64).
2. A length over the cap is refused: by `pack` with `MessageTooBig`, by `Parser` with `ProtocolError`.
3. The parser may be fed any split of the stream; it gives every whole frame, in order, exactly once.
4. What came before a broken header is still given; `Parser.error` then says what was broken, and feeding ends.
5. A frame whose kind has the bit `RUN` is a run of several messages: a list of them, pickled. One with the bit `LARGE`
   says where a message lies (see `payload`). One with both is a plain message that is alone (see `plain`), pickled.
'''

import io
import pickle
import struct
from typing import Any, Final

from .errors import MessageTooBig, ProtocolError

__all__ = [
    'ALONE',
    'HEADER_SIZE',
    'LARGE',
    'MAX_BODY',
    'MOST_IN_RUN',
    'RUN',
    'WRITE_SIZE',
    'Frame',
    'Parser',
    'check_size',
    'cut_run',
    'load_alone',
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
_MOST_AT_ONCE: Final = 128
'''How many messages are pickled together: more bring little.'''
MOST_IN_RUN: Final = 450
'''Bytes of a message that leaves with others. A larger one has a frame of its own: a run would only copy it.'''
RUN: Final = 0x80
'''The bit of a kind that says that the body is a run.'''
LARGE: Final = 0x40
'''The bit of a kind that says that the body refers to shared memory.'''
ALONE: Final = RUN | LARGE
'''The bits of a kind that say that the body is the pickle of a plain message.'''

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


def pack_runs(kind: int, ident: int, messages: list[Any], limit: int, *, row: bool) -> list[bytes]:
    '''Pack messages into frames, runs of at most `limit` bytes where there are several.

    :param messages: small ones (`MOST_IN_RUN`): pickled, or such that need no pickle of their own (see `plain`), or
        tuples of these.
    :param row: whether the id is that of the first message only, and the others follow on it.
    :returns: the parts, to be joined.
    '''
    parts: list[bytes] = []
    for start in range(0, len(messages), _MOST_AT_ONCE):
        parts += _pack_run(kind, ident + start * row, messages[start : start + _MOST_AT_ONCE], limit, row)
    return parts


def _pack_run(kind: int, ident: int, messages: list[Any], limit: int, row: bool) -> list[bytes]:
    if len(messages) > 1:
        body = pickle.dumps(messages, 5)
        if len(body) > limit:
            half = len(messages) // 2
            first = _pack_run(kind, ident, messages[:half], limit, row)
            return first + _pack_run(kind, ident + half * row, messages[half:], limit, row)
        kind |= RUN
    elif type(messages[0]) is bytes:
        body = messages[0]
    else:
        kind, body = kind | ALONE, pickle.dumps(messages[0], 5)
    return [pack_header(len(body), kind, ident), body]


def cut_run(body: bytes) -> list[Any]:
    '''The messages of a run; ProtocolError if it is none.'''
    file = io.BytesIO(body)
    try:
        messages = _Unpickler(file).load()
    except Exception as error:
        raise ProtocolError(f'a run of messages is not what it has to be: {error!r}') from None
    if type(messages) is not list or file.tell() != len(body):
        raise ProtocolError(f'a run of messages is of {type(messages)}, or goes on behind its end')
    return messages


def load_alone(body: bytes) -> list[Any]:
    '''The plain message of a frame, as a run of one.'''
    try:
        return [pickle.loads(body)]
    except Exception as error:
        raise ProtocolError(f'a message is not what it has to be: {error!r}') from None


class _Unpickler(pickle.Unpickler):
    '''Runs no code that a pickle names.'''

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f'it names {module}.{name}')
