'''Parcels that are easy to read and to change, and how they travel.'''

import pickle
from typing import Any, NamedTuple

from looppool.plain import size_of
from looppool.protocol import Terms

__all__ = ['Named', 'Segment', 'parcel', 'run']


class Named(NamedTuple):
    '''A parcel whose parts have names; equal to the plain one.'''

    data: Any
    terms: Terms
    size: int
    call: Any = None

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
        return Named(self.data, self.terms._replace(**terms), self.size, self.call)


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


def parcel(data: Any, *, call: Any = None, **terms: Any) -> Named:
    '''A parcel with these terms.'''
    return Named(data, Terms(**terms), size_of(data), call)


def run(*messages: object) -> bytes:
    '''The body of the frame that several messages leave in.'''
    return pickle.dumps(list(messages), 5)
