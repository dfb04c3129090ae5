'''What a pool's messages are on the link: pickled, or what a codec of the user's makes of them.

1. Without a codec, the functions of `codec` are used as they are: nothing stands between.
2. An object of a type that was registered is pickled as was said, wherever in a message, a call or a value it is met.
3. A codec that overrides `Codec.encode` or `Codec.decode` makes the bytes of tasks, results and the items of streams.
   What belongs to calls stays pickled, as functions have to travel.
'''

import functools
import pickle
from collections.abc import Callable
from contextvars import ContextVar
from types import FunctionType, NoneType
from typing import Any, Final, TypeVar

from .codec import Definition, Encoded, Reducers, decode, encode, encode_with, in_order

__all__ = ['Codec', 'Packing']

T = TypeVar('T')

_NATIVE: Final = frozenset({
    NoneType, bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset, pickle.PickleBuffer,
    FunctionType,
})  # fmt: skip
'''What pickle never asks anybody about.'''

_NO_REDUCERS: Final[Reducers] = {}

_needs: Final[ContextVar[list[Definition] | None]] = ContextVar('looppool_needs', default=None)
'''Collects the definitions that the message needs that is being packed.'''


class Codec:
    '''How what travels between a pool and its workers becomes bytes: ``Pool(codec=...)``.

    As it is, it pickles; `register` says how single types travel. A subclass that overrides `encode` and `decode`
    replaces pickle for tasks, results and the items of streams. It goes to every worker, as it is when the pool is
    started, so it has to be picklable itself; it may be defined anywhere, also in a script or a notebook.
    '''

    _reducers = _NO_REDUCERS

    def register(self, cls: type[T], encode: Callable[[T], Any], decode: Callable[[Any], T]) -> None:
        '''Let objects of a type travel as ``encode(obj)``, and become ``decode(...)`` of that.

        It counts wherever pickle meets such an object, however deep in a task, a result, an item, the arguments of a
        call or its value. Register before the pool is started; the last one of a type counts.

        :param cls: exactly this type: what derives from it is another one.
        :param encode: returns something that can be pickled, such as bytes or a tuple.
        :param decode: makes an equal object of it. As a function it travels itself.
        :raises TypeError: `cls` is no class, or one that pickle asks nobody about, such as dict; or a function is none.
        '''
        if not isinstance(cls, type) or cls in _NATIVE or issubclass(cls, type):
            raise TypeError(f'cls has to be a class whose objects pickle does not know by itself, not {cls!r}')
        for name, function in (('encode', encode), ('decode', decode)):
            if not callable(function):
                raise TypeError(f'{name} has to be a function, not {function!r}')
        self._reducers = {**self._reducers, cls: functools.partial(_reduce, encode, decode)}

    def encode(self, obj: Any) -> bytes:
        '''The bytes of a task, a result or an item; what it raises, who puts or sends it gets.'''
        data, needs = encode_with(self._reducers, obj)
        found = _needs.get()
        if found is not None:
            found.extend(needs)
        return data

    def decode(self, data: bytes) -> Any:
        '''The object again, on the other side.

        What it raises in a worker ends the task, with that error; in the parent, it is logged if it was a result. Of an
        item, the receiver gets it.
        '''
        return decode(data)


def _reduce(encode: Callable[[Any], Any], decode: Callable[[Any], Any], obj: Any) -> tuple[Any, ...]:
    return decode, (encode(obj),)


class Packing:
    '''What both sides of a link do with what goes over it.

    :ivar pack: makes bytes of a task, a result or an item.
    :ivar unpack: the other way.
    :ivar pickle: makes bytes of what belongs to calls; `codec.decode` is the other way.
    '''

    def __init__(self, codec: Codec | None = None) -> None:
        self.codec = codec
        self.pickle: Callable[[Any], Encoded] = encode
        self.pack: Callable[[Any], Encoded] = encode
        self.unpack: Callable[[bytes], Any] = decode
        if codec is None:
            return
        self.pack = self.pickle = functools.partial(_pickle, codec)
        if type(codec).encode is not Codec.encode:
            self.pack = functools.partial(_pack, codec)
        if type(codec).decode is not Codec.decode:
            self.unpack = codec.decode


def _pickle(codec: Codec, obj: Any) -> Encoded:
    return encode_with(codec._reducers, obj)


def _pack(codec: Codec, obj: Any) -> Encoded:
    needs: list[Definition] = []
    token = _needs.set(needs)
    try:
        data = codec.encode(obj)
    finally:
        _needs.reset(token)
    if type(data) is not bytes:
        what = type(codec).__qualname__
        raise TypeError(f'{what}.encode returned {type(data).__qualname__}: let it return bytes, as .encode() of a str')
    return data, in_order(needs)
