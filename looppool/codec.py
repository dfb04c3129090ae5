'''Object ↔ bytes, and exceptions that always can travel.

1. `encode` is plain ``pickle.dumps`` (protocol 5). Only when that fails, or the bytes mention ``__main__``, the slower
   pickler (cloudpickle) runs, which sends by value what the other side can't reach by name.
2. A class or function from the top level of ``__main__`` becomes a *definition*: it travels by value once per link,
   ahead of the first message that needs it, and messages refer to it. Lambdas, closures and local classes have no
   such name and travel inside each message. So does a context variable that is no global of a module: it is one and
   the same for all that refer to it.
   A definition may need others, which travel ahead of it; the functions of all share one set of globals there.
3. A definition is known by a key that is unique across processes, so its owner recognises it when it comes back:
   an instance of a script's class that a worker returns is an instance of the script's very class.
4. `decode` is plain ``pickle.loads``; a message may only refer to definitions that arrived before it. What is large
   goes to a `Store`, and a `Payload` says where it is. Of what is kept, such as a definition, only what is shared: the
   rest would stay in the store.
5. What pickle does with a type may be replaced (`Reducers`), in every pickler here.
6. `pack_error` never fails: an exception that can't travel as itself travels as `RemoteError`.
'''

import contextlib
import copyreg
import functools
import io
import os
import pickle
import struct
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import FunctionType
from typing import Any, Final, NamedTuple, Protocol

from .errors import ProtocolError, RemoteError
from .frames import MAX_BODY, check_size
from .payload import LEAST, Body, Payload, Piece, cut, pickled, prefixed
from .plain import PLAIN, plain_size
from .variables import home_of, reduce_variable

__all__ = [
    'Buffers',
    'Definition',
    'Encoded',
    'Inline',
    'Key',
    'Reducers',
    'Store',
    'by_reference',
    'cancelled_elsewhere',
    'check_encoded',
    'decode',
    'define',
    'definition_of',
    'definitions',
    'encode',
    'encode_into',
    'encode_with',
    'encoder',
    'forget_bodies',
    'in_order',
    'pack_error',
    'refer_with',
    'resolve',
    'sized',
    'unpack_error',
]

PROTOCOL: Final = 5

Key = tuple[str, int]


class Definition(NamedTuple):
    '''A class, a function or a context variable that travels by value.'''

    key: Key
    body: bytes | Payload
    '''What travels: its key and the keys of `needs`, pickled, behind their size; and its value.'''
    needs: tuple['Definition', ...] = ()
    '''The definitions that it refers to, and those that they refer to, in the order to send them.'''


Needs = tuple[Definition, ...]
Inline = tuple[bytes, Needs]
Encoded = tuple[Body, Needs, int]
'''An object on its way, the definitions that it needs, in the order to send them, and the bytes that it counts.'''

Reducers = Mapping[type, Callable[[Any], tuple[Any, ...]]]
'''How to pickle the objects of exactly these types, as ``copyreg.dispatch_table`` says it.'''

Buffers = list[tuple[memoryview, Piece | None]]
'''What travels apart from a pickle, and where it lies if it is shared already.'''
Pickled = tuple[bytes, Needs, Buffers]
Take = Callable[[pickle.PickleBuffer], bool]


class Store(Protocol):
    '''Where the large parts of messages are put.'''

    def take(self, buffers: Buffers, buffer: pickle.PickleBuffer) -> bool:
        '''Add a buffer to those that travel apart from the pickle. Whether it is not worth it: it stays there.'''
    def put(self, pickled: bytes, buffers: Buffers) -> Payload | None:
        '''What to send instead of the pickle and its buffers. None if there is no memory.'''


_references: Store | None = None


def refer_with(store: Store) -> None:
    '''Set the store that takes nothing but what is shared already.'''
    global _references
    _references = store


def by_reference() -> Store | None:
    '''The store for what is kept; None where nothing is shared.'''
    return _references


_dumps: Final = pickle.dumps
_loads: Final = pickle.loads


def decode(body: Body) -> Any:
    '''The object again.'''
    if type(body) is bytes:
        return _loads(body)
    return body.load() if type(body) is Payload else body


def encode(obj: object) -> Inline:
    '''Pickle `obj`; raise the pickling error (any type) if that can't be done by value either.'''
    try:
        data = _dumps(obj, PROTOCOL)
    except Exception:
        return _dump_with(_value_pickler(), obj, {})[:2]
    # Twice as fast as `in`, which tries to read the needle as an integer first.
    if data.find(b'__main__') < 0:
        return data, ()
    return _dump_by_reference(obj, {})[:2]


def encoder(store: Store | None) -> Callable[[Any], Encoded]:
    '''A function that does what `encode` does, and puts what is large into the store. It belongs to one thread.

    What needs no pickle of its own it leaves as it is.
    '''
    buffers: Buffers = []
    take = None if store is None else functools.partial(store.take, buffers)

    def encode_into_store(obj: Any) -> Encoded:
        if type(obj) in PLAIN:
            size = plain_size(obj)
            if size:
                return obj, (), size
        parts: Pickled
        if buffers:
            # An object that is being pickled has something else encoded.
            return encoder(store)(obj)
        try:
            data = _dumps(obj, PROTOCOL, buffer_callback=take)
            if data.find(b'__main__') < 0:
                if len(data) < LEAST and not buffers:
                    return data, (), len(data)
                parts = data, (), buffers.copy()
            else:
                parts = _dump_by_reference(obj, {}, store)
        except Exception:
            parts = _dump_with(_value_pickler(), obj, {}, store)
        finally:
            if buffers:
                buffers.clear()
        return _placed(store, *parts) or sized(encode(obj))

    return encode_into_store


def sized(encoded: Inline) -> Encoded:
    '''With what it counts.'''
    return *encoded, len(encoded[0])


def encode_with(reducers: Reducers, obj: object) -> Inline:
    '''As `encode`, but pickle what has one of the types in `reducers` as is said there.'''
    return _dump_as_said(reducers, obj)[:2]


def encode_into(store: Store | None, reducers: Reducers, obj: object) -> Encoded:
    '''As `encode_with`, and put what is large into the store.'''
    return _placed(store, *_dump_as_said(reducers, obj, store)) or sized(encode_with(reducers, obj))


def _dump_as_said(reducers: Reducers, obj: object, store: Store | None = None) -> Pickled:
    try:
        parts = _dump_with(_PlainPickler, obj, reducers, store)
    except Exception:
        return _dump_with(_value_pickler(), obj, reducers, store)
    return _dump_by_reference(obj, reducers, store) if parts[0].find(b'__main__') >= 0 else parts


def _placed(store: Store | None, data: bytes, needs: Needs, buffers: Buffers) -> Encoded | None:
    '''None if there is no memory for what is large.'''
    if store is None or (len(data) < LEAST and not buffers):
        return data, needs, len(data)
    payload = store.put(data, buffers)
    return None if payload is None else (payload, needs, len(payload))


def _dump_by_reference(obj: object, reducers: Reducers, store: Store | None = None) -> Pickled:
    try:
        return _dump_with(_ReferencePickler, obj, reducers, store)
    except Exception:
        return _dump_with(_value_pickler(), obj, reducers, store)


def check_encoded(encoded: Encoded, limit: int) -> None:
    '''Raise `MessageTooBig` if an encoded object, or a definition that it needs, takes more than `limit` bytes.'''
    data, needs, size = encoded
    # A plain one may count more than it takes.
    check_size(size if size <= limit else len(pickled(data)), limit)
    for definition in needs:
        check_size(len(definition.body), limit)


def _dump_with(pickler_class: Any, obj: object, reducers: Reducers, store: Store | None = None) -> Pickled:
    file = io.BytesIO()
    buffers: Buffers = []
    pickler = pickler_class(file, reducers, None if store is None else functools.partial(store.take, buffers))
    pickler.dump(obj)
    return file.getvalue(), in_order(pickler.needs.values()), buffers


class _PlainPickler(pickle.Pickler):
    '''Does what ``pickle.dumps`` does, but for the types in `reducers`.'''

    def __init__(self, file: io.BytesIO, reducers: Reducers, take: Take | None) -> None:
        if reducers:
            self.dispatch_table = {**copyreg.dispatch_table, **reducers}
        super().__init__(file, PROTOCOL, buffer_callback=take)
        self.reducers = reducers
        self.needs: dict[Key, Definition] = {}


class _ReferencePickler(_PlainPickler):
    '''Refers to definitions and leaves the rest to C; fails on what of ``__main__`` is no definition.'''

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _NAMED):
            return NotImplemented
        definition = _definitions.of(obj, self.reducers)
        if definition is not None:
            self.needs[definition.key] = definition
            return resolve, definition.key
        if obj.__module__ == '__main__':
            raise pickle.PicklingError(f'{obj!r} has to travel by value')
        return NotImplemented


@functools.cache
def _value_pickler() -> Any:
    import cloudpickle

    class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
        '''Refers to definitions; sends the rest of ``__main__`` by value, also what cloudpickle leaves to its name.'''

        def __init__(self, file: io.BytesIO, reducers: Reducers, take: Take | None) -> None:
            if reducers:
                # Before the rest: the pickler reads it once, when it is made.
                self.dispatch_table = {**cloudpickle.Pickler.dispatch_table, **reducers}
            super().__init__(file, PROTOCOL, buffer_callback=take)
            self.reducers = reducers
            self.needs: dict[Key, Definition] = {}
            self._defines = _definitions.under_way
            if self._defines:
                self.globals_ref[id(vars(sys.modules['__main__']))] = _Namespace(origin=_origin())

        def reducer_override(self, obj: Any) -> Any:
            definition = _definitions.of(obj, self.reducers) if isinstance(obj, _NAMED) else None
            if definition is not None:
                self.needs[definition.key] = definition
                return resolve, definition.key
            if isinstance(obj, ContextVar):
                return reduce_variable(obj)
            if isinstance(obj, memoryview):
                return _reduce_view(obj)
            rebuild = _REBUILT.get(type(obj))
            if rebuild is not None and obj.__module__ == '__main__':
                return rebuild(obj)
            reduced = super().reducer_override(obj)
            if self._defines and isinstance(obj, FunctionType) and isinstance(reduced, tuple):
                return (*reduced[:5], _set_function_state)
            return reduced

    return ValuePickler


def _reduce_view(view: memoryview) -> tuple[Any, ...]:
    flat, shape = view, view.shape or ()
    if not view.c_contiguous:
        # A buffer travels as it lies in memory, and is put together again row by row.
        flat = memoryview(view.tobytes() if view.readonly else bytearray(view.tobytes()))
    try:
        _view(flat, view.format, shape)
    except (TypeError, ValueError) as error:
        what = f'a memoryview of shape {shape} and format {view.format!r}'
        raise pickle.PicklingError(f'{what} cannot travel ({error}): send what it is a view of') from None
    return _view, (pickle.PickleBuffer(flat), view.format, shape)


def _view(buffer: Any, code: str, shape: tuple[int, ...]) -> memoryview:
    if shape == (0,):
        # No view without elements can be cast.
        return memoryview(bytearray(_LARGEST_ITEM)).cast(code)[:0]  # type: ignore[call-overload, no-any-return]
    return memoryview(buffer).cast('B').cast(code, shape)  # type: ignore[call-overload, no-any-return]


_LARGEST_ITEM: Final = 16
'''Bytes: a multiple of the size of whatever a memoryview can be cast to.'''


class _Namespace(dict[str, str]):
    '''Stands for the globals of a script, which its definitions share wherever they are loaded.'''

    def __reduce__(self) -> tuple[Any, ...]:
        return _namespace, (self['origin'],)


@functools.cache
def _namespace(origin: str) -> dict[str, Any]:
    return {'__name__': '__main__', '__package__': None}


def _set_function_state(function: FunctionType, state: tuple[Any, dict[str, Any]]) -> None:
    '''Let a function of a definition find its globals, without turning back what they have become here.'''
    from cloudpickle.cloudpickle import _function_setstate

    known, slots = function.__globals__, state[1]
    slots['__globals__'] = {
        name: value
        for name, value in slots['__globals__'].items()
        if name not in known or isinstance(value, _NAMED)
    }
    _function_setstate(function, state)


def _remember(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


_REBUILT: Final[dict[type, Callable[[Any], tuple[Any, ...]]]] = {
    functools._lru_cache_wrapper: lambda obj: (_remember, (obj.__wrapped__, obj.cache_parameters())),
    typing.NewType: lambda obj: (typing.NewType, (obj.__name__, obj.__supertype__)),
    typing.ParamSpec: lambda obj: (typing.ParamSpec, (obj.__name__,)),
    typing.TypeVarTuple: lambda obj: (typing.TypeVarTuple, (obj.__name__,)),
}
'''What pickles as a mere name, and how to make it anew.'''
if sys.version_info >= (3, 12):
    _REBUILT[typing.TypeAliasType] = lambda obj: (typing.TypeAliasType, (obj.__name__, obj.__value__))

_SIZE: Final = struct.Struct('<I')
_NAMED: Final = (type, FunctionType, ContextVar, *_REBUILT)
'''The types of what is found by its name.'''


class _Definitions:
    '''The definitions that this process has sent or received. They live as long as the process.'''

    def __init__(self) -> None:
        self.by_key: dict[Key, tuple[Definition, Any]] = {}
        self._by_object: dict[int, Definition] = {}
        self.under_way: set[int] = set()
        self._count = 0

    def of(self, obj: Any, reducers: Reducers) -> Definition | None:
        '''The definition of a class or function from the top level of ``__main__``, or of a context variable that no
        module has, made at first sight.

        None also for one that is just being made: where definitions need each other, the inner one has the outer one
        by value.
        '''
        found = self._by_object.get(id(obj))
        if found is None and _is_to_be_defined(obj) and id(obj) not in self.under_way:
            found = self._make(obj, reducers)
        return found

    def _make(self, obj: Any, reducers: Reducers) -> Definition:
        self.under_way.add(id(obj))
        try:
            parts = _dump_with(_value_pickler(), obj, reducers, _references)
        finally:
            self.under_way.discard(id(obj))
        data, needs, buffers = parts
        value = _references.put(data, buffers) if _references is not None and buffers else data
        self._count += 1
        key = (_origin(), self._count)
        head = _dumps((key, [need.key for need in needs]), PROTOCOL)
        return self.add(Definition(key, prefixed(_SIZE.pack(len(head)) + head, value), needs), obj)

    def forget_bodies(self) -> None:
        own = _origin()
        # A variable stays what it is, also for workers that run already.
        self._by_object = {
            at: made
            for at, made in self._by_object.items()
            if made.key[0] != own or isinstance(self.by_key[made.key][1], ContextVar)
        }

    def add(self, definition: Definition, obj: Any) -> Definition:
        # by_key keeps the object alive, so its id stays its own.
        self.by_key[definition.key] = definition, obj
        self._by_object[id(obj)] = definition
        return definition


_definitions: Final = _Definitions()
_birth: Final = os.urandom(8).hex()


def definitions(keys: Iterable[Key]) -> tuple[Definition, ...]:
    '''The definitions with these keys and all that they need, in the order to send them.'''
    return in_order(_definitions.by_key[key][0] for key in keys)


def definition_of(obj: Any, reducers: Reducers) -> Definition | None:
    '''The definition of a class or function of ``__main__``; None if it is not at the top level there.'''
    return _definitions.of(obj, reducers)


def forget_bodies() -> None:
    '''Make the definitions of this process anew when they are next needed: a notebook's cells may have changed them.'''
    _definitions.forget_bodies()


def _origin() -> str:
    # The pid tells processes apart that were forked with the same table.
    return f'{os.getpid()}-{_birth}'


def _is_to_be_defined(obj: Any) -> bool:
    if isinstance(obj, ContextVar):
        return home_of(obj) is None
    name = getattr(obj, '__qualname__', obj.__name__)
    return obj.__module__ == '__main__' and getattr(sys.modules['__main__'], name, None) is obj


def in_order(definitions: Iterable[Definition]) -> tuple[Definition, ...]:
    '''The definitions and all that they need, each once, behind what it needs.'''
    ordered: dict[Key, Definition] = {}
    for definition in definitions:
        for need in (*definition.needs, definition):
            ordered[need.key] = need
    return tuple(ordered.values())


def define(body: bytes | Payload) -> Key:
    '''Take in a definition that the other side sent; return its key. One that can't be loaded fails when it is used.

    :raises ProtocolError: `body` is no definition, or one that it needs has not come.
    '''
    with _understood(body):
        size, rest = cut(body, _SIZE.size)
        head, value = cut(rest, *_SIZE.unpack(size))
        (origin, number), keys = pickle.loads(head)
        key = (str(origin), int(number))
        needs = tuple(_definitions.by_key[need][0] for need in keys)
    if key not in _definitions.by_key:
        try:
            obj = decode(value)
        except Exception as error:
            obj = _Unloadable(error)
        _definitions.add(Definition(key, body, needs), obj)
    return key


@contextlib.contextmanager
def _understood(body: bytes | Payload) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ProtocolError(f'a body of {len(body):,} bytes is not what it has to be: {error!r}') from error


class _Unloadable:
    def __init__(self, error: Exception) -> None:
        self.error = error


def resolve(origin: str, number: int) -> Any:
    '''The class or function of a definition that has come; what loading it has raised.'''
    _, found = _definitions.by_key[origin, number]
    if isinstance(found, _Unloadable):
        raise found.error
    return found


# Exceptions


def pack_error(error: BaseException, limit: int = MAX_BODY) -> Inline:
    '''Pack an exception and its traceback's text: as itself if it can travel within `limit` bytes, else as text.'''
    text = _format(error)
    try:
        data, needs = _encode_error(error)
        # Tried here, where the original is at hand: what can't be loaded must not fail at the other side.
        if type(pickle.loads(data)) is not type(error) or any(len(need.body) > limit for need in needs):
            data, needs = b'', ()
    except BaseException:
        data, needs = b'', ()
    body = _dumps((data, _type_name(error), _str(error), text), PROTOCOL)
    if len(body) <= limit:
        return body, needs
    return _dumps((b'', _type_name(error), _str(error)[: limit // 16], text[-limit // 16 :]), PROTOCOL), ()


def unpack_error(body: bytes, note: str | None = None) -> BaseException:
    '''The packed exception, with its remote traceback as the cause and `note` added.'''
    with _understood(body):
        data, name, message, text = pickle.loads(body)
    remote = RemoteError(name, message, text)
    if data:
        try:
            error: BaseException = pickle.loads(data)
            error.__cause__ = remote
            if note:
                error.add_note(note)
            return error
        except Exception as failure:
            remote.add_note(f'it could not be loaded here: {type(failure).__name__}')
    if note:
        remote.add_note(note)
    return remote


def cancelled_elsewhere(error: BaseException) -> RemoteError:
    '''What a CancelledError of a worker is to somebody who was not cancelled and did not cancel.'''
    remote = RemoteError('asyncio.CancelledError', 'the function was cancelled in its worker')
    remote.__cause__ = error.__cause__
    return remote


def _encode_error(error: BaseException) -> Inline:
    if _survives(error):
        return encode(error)
    data, needs, _ = _dump_with(_error_pickler(), error, {})
    return data, needs


@functools.cache
def _error_pickler() -> Any:
    class ErrorPickler(_value_pickler()):  # type: ignore[misc]
        '''Rebuilds, without its ``__init__``, each exception whose own way back doesn't work.'''

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException) and not isinstance(obj, BaseExceptionGroup) and not _survives(obj):
                return _rebuild, (type(obj), obj.args, obj.__getstate__())
            return super().reducer_override(obj)

    return ErrorPickler


def _survives(error: BaseException) -> bool:
    try:
        copy = pickle.loads(_dumps(error, PROTOCOL))
    except BaseException:
        return False
    return type(copy) is type(error) and _str(copy) == _str(error)


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: Any) -> BaseException:
    error = cls.__new__(cls, *args)
    builtin = next(base for base in cls.__mro__ if base.__module__ == 'builtins')
    # Sets the fields in C, such as those of OSError.
    builtin.__init__(error, *args)  # type: ignore[misc]
    error.args = args
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    for name, value in {**(attributes or {}), **(slots or {})}.items():
        object.__setattr__(error, name, value)
    return error


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == 'builtins' else f'{cls.__module__}.{cls.__qualname__}'


def _format(error: BaseException) -> str:
    try:
        return ''.join(traceback.format_exception(error))
    except BaseException:
        # It can't be asked for itself: its frames at least.
        return ''.join([*traceback.format_tb(error.__traceback__), f'{_type_name(error)}: {_str(error)}\n'])


def _str(error: BaseException) -> str:
    try:
        # Joined, it is a plain str, whatever __str__ has returned.
        return ''.join([str(error)])
    except BaseException as failure:
        return f'<str() failed with {type(failure).__name__}>'
