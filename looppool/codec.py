'''Object ↔ bytes, and exceptions that always can travel.

1. `encode` is plain ``pickle.dumps`` (protocol 5). Only when that fails, or the bytes mention ``__main__``, the slower
   pickler (cloudpickle) runs, which sends by value what the other side can't reach by name.
2. A class or function from the top level of ``__main__`` becomes a *definition*: it travels by value once per link,
   ahead of the first message that needs it, and messages refer to it. Lambdas, closures and local classes have no
   such name and travel inside each message.
3. A definition is known by a key that is unique across processes, so its owner recognises it when it comes back:
   an instance of a script's class that a worker returns is an instance of the script's very class.
4. `decode` is plain ``pickle.loads``; a message may only refer to definitions that arrived before it.
5. `pack_error` never fails: an exception that can't travel as itself travels as `RemoteError`.
'''

import functools
import io
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final, NamedTuple

from .errors import RemoteError
from .frames import MAX_BODY

__all__ = ['Definition', 'Encoded', 'Key', 'decode', 'define', 'encode', 'pack_error', 'unpack_error']

PROTOCOL: Final = 5

Key = tuple[str, int]


class Definition(NamedTuple):
    '''A class or function that travels by value: its key, and its pickled key and value.'''

    key: Key
    body: bytes


Encoded = tuple[bytes, tuple[Definition, ...]]
'''A pickled object and the definitions that it refers to.'''

_dumps: Final = pickle.dumps
decode: Final[Callable[[bytes], Any]] = pickle.loads


def encode(obj: object) -> Encoded:
    '''Pickle `obj`; raise the pickling error (any type) if that can't be done by value either.'''
    try:
        data = _dumps(obj, PROTOCOL)
    except Exception:
        return _dump_with(_value_pickler(), obj)
    # Twice as fast as `in`, which tries to read the needle as an integer first.
    if data.find(b'__main__') < 0:
        return data, ()
    try:
        return _dump_with(_ReferencePickler, obj)
    except Exception:
        return _dump_with(_value_pickler(), obj)


def _dump_with(pickler_class: Any, obj: object) -> Encoded:
    file = io.BytesIO()
    pickler = pickler_class(file)
    pickler.dump(obj)
    return file.getvalue(), tuple(pickler.needs.values())


class _ReferencePickler(pickle.Pickler):
    '''Refers to definitions and leaves the rest to C; fails on what of ``__main__`` is no definition.'''

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, PROTOCOL)
        self.needs: dict[Key, Definition] = {}

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, (type, FunctionType)):
            return NotImplemented
        definition = _definitions.of(obj)
        if definition is not None:
            self.needs[definition.key] = definition
            return _resolve, definition.key
        if obj.__module__ == '__main__':
            raise pickle.PicklingError(f'{obj!r} has to travel by value')
        return NotImplemented


@functools.cache
def _value_pickler() -> Any:
    import cloudpickle

    class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, file: io.BytesIO) -> None:
            super().__init__(file, PROTOCOL)
            self.needs: dict[Key, Definition] = {}

        def reducer_override(self, obj: Any) -> Any:
            definition = _definitions.of(obj) if isinstance(obj, (type, FunctionType)) else None
            if definition is None:
                return super().reducer_override(obj)
            self.needs[definition.key] = definition
            return _resolve, definition.key

    return ValuePickler


class _Definitions:
    '''The definitions that this process has sent or received. They live as long as the process.'''

    def __init__(self) -> None:
        self.by_key: dict[Key, Any] = {}
        self._by_object: dict[int, Definition] = {}
        self._count = 0

    def of(self, obj: type | FunctionType) -> Definition | None:
        '''The definition of a class or function from the top level of ``__main__``, made at first sight.'''
        found = self._by_object.get(id(obj))
        if found is None and _is_top_level_of_main(obj):
            found = self._make(obj)
        return found

    def _make(self, obj: type | FunctionType) -> Definition:
        import cloudpickle

        self._count += 1
        # The pid tells processes apart that were forked with the same table.
        key = (f'{os.getpid()}-{_birth}', self._count)
        definition = Definition(key, _dumps((key, cloudpickle.dumps(obj, PROTOCOL)), PROTOCOL))
        self.add(definition, obj)
        return definition

    def add(self, definition: Definition, obj: Any) -> None:
        self.by_key[definition.key] = obj
        # by_key keeps the object alive, so its id stays its own.
        self._by_object[id(obj)] = definition


_definitions: Final = _Definitions()
_birth: Final = os.urandom(8).hex()


def _is_top_level_of_main(obj: type | FunctionType) -> bool:
    name = obj.__qualname__
    return obj.__module__ == '__main__' and getattr(sys.modules['__main__'], name, None) is obj


def define(body: bytes) -> Key:
    '''Take in a definition that the other side sent; return its key. One that can't be loaded fails when it is used.'''
    key, data = pickle.loads(body)
    if key not in _definitions.by_key:
        try:
            obj = pickle.loads(data)
        except Exception as error:
            obj = _Unloadable(error)
        _definitions.add(Definition(key, body), obj)
    return (key[0], key[1])


class _Unloadable:
    def __init__(self, error: Exception) -> None:
        self.error = error


def _resolve(origin: str, number: int) -> Any:
    found = _definitions.by_key[origin, number]
    if isinstance(found, _Unloadable):
        raise found.error
    return found


# Exceptions


def pack_error(error: BaseException, limit: int = MAX_BODY) -> Encoded:
    '''Pack an exception and its traceback's text: as itself if it can travel within `limit` bytes, else as text.'''
    text = ''.join(traceback.format_exception(error))
    try:
        data, needs = _encode_error(error)
        # Tried here, where the original is at hand: what can't be loaded must not fail at the other side.
        if type(pickle.loads(data)) is not type(error):
            data, needs = b'', ()
    except Exception:
        data, needs = b'', ()
    body = _dumps((data, _type_name(error), _str(error), text), PROTOCOL)
    if len(body) <= limit:
        return body, needs
    return _dumps((b'', _type_name(error), _str(error)[: limit // 16], text[-limit // 16 :]), PROTOCOL), ()


def unpack_error(body: bytes, note: str) -> BaseException:
    '''The packed exception, with its remote traceback as the cause and `note` added.'''
    data, name, message, text = pickle.loads(body)
    remote = RemoteError(name, message, text)
    error: BaseException = remote
    if data:
        try:
            error = pickle.loads(data)
            error.__cause__ = remote
        except Exception as failure:
            remote.add_note(f'it could not be loaded here: {failure!r}')
    error.add_note(note)
    return error


def _encode_error(error: BaseException) -> Encoded:
    if _survives(error):
        return encode(error)
    return _dump_with(_error_pickler(), error)


@functools.cache
def _error_pickler() -> Any:
    class ErrorPickler(_value_pickler()):  # type: ignore[misc]
        '''Rebuilds, without its ``__init__``, each exception whose own way back doesn't work.'''

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, BaseException) and not isinstance(obj, BaseExceptionGroup) and not _survives(obj):
                return _rebuild, (type(obj), obj.args, obj.__dict__)
            return super().reducer_override(obj)

    return ErrorPickler


def _survives(error: BaseException) -> bool:
    try:
        copy = pickle.loads(_dumps(error, PROTOCOL))
    except Exception:
        return False
    return type(copy) is type(error) and _str(copy) == _str(error)


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _type_name(error: BaseException) -> str:
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == 'builtins' else f'{cls.__module__}.{cls.__qualname__}'


def _str(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f'<str() failed: {failure!r}>'
