'''Functions in requests: what stands for one that the other side has as well.

1. A function at the top level of a module is said by the names of both; one of ``__main__`` by the key of its
   definition. That is what pickle comes to as well, in five times the steps.
2. Anything else that can be called is pickled with its request.
'''

import importlib
import sys
from types import FunctionType
from typing import Any

from .codec import Definition, Reducers, definition_of, resolve

__all__ = ['address_of', 'function_at']


def address_of(function: Any, reducers: Reducers) -> tuple[Any, tuple[Definition, ...]]:
    '''What stands for `function`, or itself; and the definitions that have to be there first.'''
    if type(function) is not FunctionType:
        return function, ()
    home, name = function.__module__, function.__qualname__
    if home == '__main__':
        definition = definition_of(function, reducers)
        return (function, ()) if definition is None else (definition.key, (*definition.needs, definition))
    module = sys.modules.get(home)
    if module is None or module.__dict__.get(name) is not function:
        return function, ()
    return (home, name), ()


def function_at(address: tuple[str, Any]) -> Any:
    '''The function that `address` stands for.

    :raises ImportError: there is no such module here.
    :raises AttributeError: the module has no such function.
    '''
    first, second = address
    if type(second) is int:
        return resolve(first, second)
    return getattr(sys.modules.get(first) or importlib.import_module(first), second)
