'''The state of the memory that the two ends of a link share, without any I/O.

1. A payload has a number on its link, from when it is sent until its receiver has let go of all of it. So long its
   sender keeps it.
2. A segment is said once, ahead of the first payload in it. It is forgotten when it is not wanted any more, and all
   payloads in it were given back; it may be said again.
'''

import struct
from collections import deque
from typing import Final, Protocol

from .errors import ProtocolError
from .frames import LARGE
from .kinds import Kind
from .payload import COPY, OWN, Payload, Segment

__all__ = ['MOST_IDS', 'OWN_BODY', 'Lending', 'Memory', 'Shortage', 'unpacked_ids']

OWN_BODY: Final = 64 * 1024
'''What the link's own frames may take in any case, in bytes: lists of ids, errors, runs of several messages.'''
MOST_IDS: Final = OWN_BODY // 8
_SEGMENT: Final = struct.Struct('<Q?')


class Shortage(Exception):
    '''What has come can't be taken in yet: this process may open no more files. Nothing is lost.'''


class Memory(Protocol):
    '''What an `_End` needs of the link to share memory with the other side.'''

    def say(self, segment: Segment) -> None:
        '''Send the segment's descriptor ahead of what is sent next.'''
    def attach(self, key: int, capacity: int, *, shared: bool) -> Segment:
        '''The segment whose descriptor has come. May raise `Shortage`.'''
    def hold(self, use: int) -> object:
        '''What gives back the payload with that number when it is collected, wherever.'''


class _NoMemory:
    def say(self, segment: Segment) -> None:
        raise NotImplementedError

    def attach(self, key: int, capacity: int, *, shared: bool) -> Segment:
        raise ProtocolError('shared memory came where there is none')

    def hold(self, use: int) -> object:
        raise NotImplementedError


class Lending:
    '''What an end of a link knows of shared memory.

    :ivar memory: how to get at it; set by whoever has the link.
    :ivar lent: the payloads that were sent and not given back, by their numbers.
    '''

    def __init__(self) -> None:
        self.memory: Memory = _NoMemory()
        self.lent: dict[int, Payload] = {}
        self._uses = 0
        self._said: dict[int, int] = {}
        '''How many of them lie in each segment that the other side has, by key.'''
        self._segments: dict[int, Segment] = {}
        '''Those that the other side has said.'''
        self.returned: deque[int] = deque()
        '''The numbers of the payloads that are not used here any more. Any thread may add to it.'''
        self._of_memory = {
            Kind.SEGMENT: self._on_segment,
            Kind.FORGET: self._on_forget,
            Kind.GIVE_BACK: self._on_give_back,
        }

    def _send(self, kind: int, ident: int = 0, body: bytes = b'') -> None:
        raise NotImplementedError

    def _append(self, kind: int, ident: int, body: bytes) -> None:
        raise NotImplementedError

    def _receive_payload(self, body: bytes) -> Payload:
        return Payload.referred(body, self._segments, self.memory.hold)

    def _send_large(self, kind: int, ident: int, payload: Payload, *, again: bool = False) -> None:
        '''Send where a message lies; with `again`, it may have to be sent another time.'''
        for segment in payload.segments:
            if segment.key not in self._said:
                self._said[segment.key] = 0
                segment.ends.add(self)
                self.memory.say(segment)
                self._send(Kind.SEGMENT, segment.key, _SEGMENT.pack(segment.capacity, segment.shared))
            self._said[segment.key] += 1
        self._uses += 1
        self.lent[self._uses] = payload
        mode = COPY if again and payload.mode == OWN else payload.mode
        self._send(kind | LARGE, ident, payload.reference(self._uses, mode))

    def forget(self, key: int) -> None:
        '''A segment is not wanted any more: say so, unless the other side has messages in it.'''
        if self._said.get(key) == 0:
            del self._said[key]
            self._send(Kind.FORGET, key)

    def let_go(self) -> None:
        '''The other side is gone, and uses nothing any more. What came from it stays with those who hold it.'''
        self.lent.clear()
        self._segments.clear()

    def _give_back(self) -> None:
        '''Send what was returned, behind whatever else leaves now.'''
        while self.returned:
            uses: list[int] = []
            while self.returned and len(uses) < MOST_IDS:
                uses.append(self.returned.popleft())
            self._append(Kind.GIVE_BACK, 0, struct.pack(f'<{len(uses)}Q', *uses))

    def _on_segment(self, key: int, body: bytes) -> None:
        if len(body) != _SEGMENT.size or key in self._segments:
            raise ProtocolError(f'segment {key} came without its size, or twice')
        capacity, shared = _SEGMENT.unpack(body)
        self._segments[key] = self.memory.attach(key, capacity, shared=shared)

    def _on_forget(self, key: int, _body: bytes) -> None:
        if self._segments.pop(key, None) is None:
            raise ProtocolError(f'segment {key} was to be forgotten, but was never said')

    def _on_give_back(self, _ident: int, body: bytes) -> None:
        for use in unpacked_ids(body):
            payload = self.lent.pop(use, None)
            if payload is None:
                raise ProtocolError(f'payload {use} was given back, but it was not lent')
            for segment in payload.segments:
                self._said[segment.key] -= 1
                if not segment.wanted:
                    self.forget(segment.key)


def unpacked_ids(body: bytes) -> tuple[int, ...]:
    if len(body) % 8:
        raise ProtocolError(f'a list of ids takes {len(body)} bytes, no multiple of 8')
    return struct.unpack(f'<{len(body) // 8}Q', body)
