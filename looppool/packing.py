'''What a pool's messages are on the link: pickled, or what a codec of the user's makes of them.

1. Without a codec, the functions of `codec` are used as they are: nothing stands between.
2. An object of a type that was registered is pickled as was said, wherever in a message, a call or a value it is met.
3. A codec that overrides `Codec.encode` or `Codec.decode` makes the bytes of tasks, results and the items of streams.
   What belongs to calls stays pickled, as functions have to travel.
4. The values of context variables travel ahead of a task or a call, pickled, behind their size: no codec sees them.
'''

import functools
import pickle
import struct
from collections.abc import Callable
from contextvars import ContextVar
from types import FunctionType, NoneType
from typing import Any, Final, Protocol, TypeVar

from .codec import (
    Definition,
    Encoded,
    Inline,
    Reducers,
    Store,
    by_reference,
    decode,
    encode_into,
    encode_with,
    encoder,
    in_order,
)
from .functions import address_of, function_at
from .payload import Body, cut, prefixed
from .plain import plain_sizes
from .variables import adopt, values_of

__all__ = ['Codec', 'Packing', 'unpack_request']

T = TypeVar('T')

_NATIVE: Final = frozenset({
    NoneType, bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset, pickle.PickleBuffer,
    FunctionType,
})  # fmt: skip
'''What pickle never asks anybody about.'''

_SIZE: Final = struct.Struct('<I')

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


class Runs(Protocol):
    '''A context, as far as values are set in it.'''

    def run(self, function: Callable[..., Any], /, *args: Any) -> Any: ...


class Packing:
    '''What both sides of a link do with what goes over it.

    :ivar pack: makes bytes of a task, a result or an item.
    :ivar unpack: the other way.
    :ivar pickle: makes bytes of what belongs to calls; `codec.decode` is the other way.
    :ivar pickle_kept: likewise, of what is sent more than once: nothing of it lies in the store.
    :ivar pack_task: as `pack`, with the values of the variables ahead, if there are any. The other way is
        `unpack_task`; in a worker, `set_values` and `unpack`.
    :ivar pack_request: as `pickle`, likewise, for what is asked of a worker. The other way is `unpack_request`.
    :ivar variables: the context variables whose values are taken along.
    '''

    def __init__(
        self,
        codec: Codec | None = None,
        variables: tuple[ContextVar[Any], ...] = (),
        store: Store | None = None,
    ) -> None:
        self.codec = codec
        self.variables = variables
        self.pickle, self.pickle_kept = (
            encoder(each) if codec is None else functools.partial(_pickle, codec, each)
            for each in (store, by_reference())
        )
        self.pack = self.pickle
        self.unpack: Callable[[Any], Any] = decode
        if codec is not None:
            self._use(codec)
        self.pack_task, self.unpack_task = self.pack, self.unpack
        self.pack_request: Callable[[Any], Encoded] = self._pack_request
        if variables:
            self.pack_task = functools.partial(self._pack_with_values, self.pack)
            self.pack_request = functools.partial(self._pack_with_values, self._pack_request)
            self.unpack_task = self._unpack_without_values

    @property
    def _reducers(self) -> Reducers:
        return _NO_REDUCERS if self.codec is None else self.codec._reducers

    def _use(self, codec: Codec) -> None:
        if type(codec).encode is not Codec.encode or type(codec).decode is not Codec.decode:
            self.pack, self.unpack = functools.partial(_pack, codec), codec.decode

    def _pack_request(self, request: Any) -> Encoded:
        mode, function, args, kwargs = request
        if not callable(function):
            raise TypeError(f'a function is needed to call, not {function!r}')
        address, needs = address_of(function, self._reducers)
        size = 0 if kwargs or address is function else plain_sizes(args)
        if size:
            return (mode, address, args, None), needs, size
        data, more, size = self.pickle((mode, address, args, kwargs))
        return data, in_order((*needs, *more)) if needs and more else needs or more, size

    def _pack_with_values(self, pack: Callable[[Any], Encoded], obj: Any) -> Encoded:
        data, needs, _ = pack(obj)
        values, needs_of_values = self._pack_values()
        data = prefixed(_SIZE.pack(len(values)) + values, data)
        return data, in_order((*needs_of_values, *needs)), len(data)

    def _pack_values(self) -> Inline:
        values = values_of(self.variables)
        if not values:
            return b'', ()
        try:
            body, needs, _ = self.pickle_kept(values)
            if type(body) is not bytes:
                raise TypeError('what is in looppool.shared cannot travel there: pass it along')
            return body, needs
        except Exception as error:
            names = ', '.join(self.variables[place].name for place in values)
            error.add_note(f'while pickling the values of the context variables that travel along: {names}')
            raise

    def _unpack_without_values(self, body: Body) -> Any:
        return self.unpack(_cut_values(body)[1])

    def set_values(self, context: Runs, body: Body) -> Body:
        '''Set the values that travel ahead of a task or a call in its context; return the rest.'''
        values, rest = _cut_values(body)
        if values:
            context.run(adopt, self.variables, decode(values))
        return rest


def _cut_values(body: Body) -> tuple[bytes, Body]:
    head, rest = cut(body, _SIZE.size)
    return cut(rest, *_SIZE.unpack(head))


def unpack_request(data: Body) -> Any:
    '''What is asked: what the call is for, the function, and its arguments.'''
    mode, function, args, kwargs = data if type(data) is tuple else decode(data)
    return mode, function_at(function) if type(function) is tuple else function, args, kwargs or {}


def _pickle(codec: Codec, store: Store | None, obj: Any) -> Encoded:
    return encode_into(store, codec._reducers, obj)


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
    return data, in_order(needs), len(data)
