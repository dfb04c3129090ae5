'''Large messages: what of them lies in shared memory, and what travels on the link.

1. A `Payload` takes the place of a message's bytes. Its pieces are parts of segments; only where they are travels.
2. It says its whole size, so that windows and caps count it like any message.
3. What keeps a payload keeps its memory: the sender may write there again when its receiver has let go of all of it.
'''

import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, Self

from .errors import ProtocolError

__all__ = [
    'COPY', 'LEAST', 'OWN', 'Body', 'Payload', 'Piece', 'Segment', 'cut', 'for_several', 'pickled', 'prefixed',
]  # fmt: skip

LEAST: Final = 64 * 1024
'''From how many bytes on something leaves by a segment.'''

OWN: Final = 0
'''Its one receiver may write there.'''
_READ_ONLY: Final = 1
'''Several receive it.'''
COPY: Final = 2
'''It may have to be sent again as it was: the receiver makes a copy.'''

_FIXED: Final = struct.Struct('<QBBI')
_PIECE: Final = struct.Struct('<QQQ')
_LEAST_PIECE: Final = _FIXED.size + _PIECE.size
'''How many bytes a piece counts at least, so that what travels is never more than the whole message.'''


class Segment(Protocol):
    '''Shared memory, as one process knows it.'''

    key: int
    '''The same in all processes.'''
    capacity: int
    '''In bytes.'''
    shared: bool
    '''Whether its users write there while others have it.'''

    @property
    def wanted(self) -> bool:
        '''Whether it is likely to be sent again. An end that has said it is told when that changes: `forget`.'''
    @property
    def ends(self) -> Any:
        '''The set of the ends to tell.'''
    def view(self, offset: int, size: int, keep: object) -> memoryview:
        '''A part of it. Whatever is made of the view keeps `keep`.'''


Piece = tuple[Segment, int, int]
'''A part of a segment: from where on, and how many bytes.'''


class Payload:
    '''A message that lies in segments, in part or as a whole.

    :param inline: what travels on the link: the pickle, behind whatever was put ahead of it.
    :param pieces: the buffers; with `spilled`, the pickle is the first of them.
    :param keep: what holds the pieces' memory.
    :param mode: `OWN`, `COPY`, or read-only: what the receiver may do there.
    '''

    __slots__ = ('_keep', '_size', '_spilled', 'inline', 'mode', 'pieces', 'segments')

    def __init__(self, inline: bytes, pieces: Sequence[Piece], keep: object, *, spilled: bool, mode: int = OWN) -> None:
        self.inline = inline
        self.pieces = pieces
        self.mode = mode
        self._keep = keep
        self._spilled = spilled
        self.segments = {segment for segment, _, _ in pieces}
        self._size = len(inline)
        for _, _, size in pieces:
            self._size += max(size, _LEAST_PIECE)

    def __len__(self) -> int:
        return self._size

    def with_inline(self, inline: bytes) -> 'Payload':
        '''The same with something else inline.'''
        return Payload(inline, self.pieces, self._keep, spilled=self._spilled, mode=self.mode)

    def load(self) -> Any:
        '''The object. What has buffers of the payload keeps its memory.'''
        views = [self._view(*piece) for piece in self.pieces]
        return pickle.loads(views.pop(0) if self._spilled else self.inline, buffers=views)

    def _view(self, segment: Segment, offset: int, size: int) -> Any:
        view = segment.view(offset, size, self._keep)
        if self.mode == OWN or segment.shared:
            return view
        return bytearray(view) if self.mode == COPY else view.toreadonly()

    # On the link

    def reference(self, use: int, mode: int) -> bytes:
        '''What travels. `use` is the number by which the receiver gives it back.'''
        pieces = [_PIECE.pack(segment.key, offset, size) for segment, offset, size in self.pieces]
        return b''.join((_FIXED.pack(use, mode, self._spilled, len(pieces)), *pieces, self.inline))

    @classmethod
    def referred(cls, body: bytes, segments: dict[int, Segment], hold: Callable[[int], object]) -> Self:
        '''What a `reference` stands for.

        :param segments: those that the other side has said, by key.
        :param hold: makes, from the number of the use, what gives it back when it is collected.
        :raises ProtocolError: it is none, or refers to what is not there.
        '''
        try:
            use, mode, spilled, count = _FIXED.unpack_from(body)
            end = _FIXED.size + count * _PIECE.size
            packed = _PIECE.iter_unpack(body[_FIXED.size : end])
            pieces = [_checked(segments[key], offset, size) for key, offset, size in packed]
            if len(pieces) != count or spilled > bool(count) or mode > COPY:
                raise ValueError('it is cut')
        except (KeyError, ValueError, struct.error) as error:
            raise ProtocolError(f'a reference to shared memory is not what it has to be: {error!r}') from None
        return cls(body[end:], pieces, hold(use), spilled=bool(spilled), mode=mode)


def _checked(segment: Segment, offset: int, size: int) -> Piece:
    if offset + size > segment.capacity:
        raise ValueError(f'{offset} + {size} is beyond the end')
    return segment, offset, size


PlainRequest = tuple[int, tuple[str, str | int], tuple[Any, ...], None]
'''What is asked of a worker, in plain: what the call is for, the function's address, its arguments, and no keywords.'''
Body = bytes | Payload | int | float | str | PlainRequest | None
'''A message on its way: its pickle, or where it lies, or itself where it needs no pickle of its own (see `plain`).'''


def pickled(body: Any) -> Any:
    '''A body that is no plain one.'''
    return body if type(body) is bytes or type(body) is Payload else pickle.dumps(body, 5)


def for_several(body: Any) -> Any:
    '''A body that several get: none of them may write there.'''
    if type(body) is Payload:
        body.mode = _READ_ONLY
    return body


def prefixed(prefix: bytes, body: Any) -> Any:
    '''A body with `prefix` ahead of it.'''
    body = pickled(body)
    return prefix + body if type(body) is bytes else body.with_inline(prefix + body.inline)


def cut(body: Any, end: int) -> tuple[bytes, Any]:
    '''The first `end` bytes of a body that has something ahead of it, and the rest.'''
    if type(body) is bytes:
        return body[:end], body[end:]
    return body.inline[:end], body.with_inline(body.inline[end:])
