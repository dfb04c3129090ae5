'''Parcels that are easy to read and to change, and how they travel.'''

import struct
from typing import Any, NamedTuple

from looppool.protocol import Terms

__all__ = ['Named', 'Segment', 'parcel', 'run']


class Named(NamedTuple):
    '''A parcel whose parts have names; equal to the plain one.'''

    data: bytes
    terms: Terms = Terms()

    @property
    def number(self) -> int | str | None:
        return self.terms.number

    @property
    def retain(self) -> object:
        return self.terms.retain

    @property
    def retries(self) -> int:
        return self.terms.retries

    def having(self, **terms: Any) -> 'Named':
        return Named(self.data, self.terms._replace(**terms))


class Segment:
    '''A segment without memory.'''

    def __init__(self, key: int, capacity: int = 4096, shared: bool = False, wanted: bool = True) -> None:
        self.key = key
        self.capacity = capacity
        self.shared = shared
        self.wanted = wanted
        self.ends: set[Any] = set()

    def view(self, offset: int, size: int, keep: object) -> memoryview:
        return memoryview(bytearray(size))


def parcel(data: bytes, **terms: Any) -> Named:
    '''A parcel with these terms.'''
    return Named(data, Terms(**terms))


def run(*messages: bytes) -> bytes:
    '''The body of the frame that several messages leave in.'''
    return struct.pack(f'<I{len(messages)}I', len(messages), *map(len, messages)) + b''.join(messages)
