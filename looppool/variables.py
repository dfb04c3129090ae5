'''Context variables: how the other side finds the same one, and how the values of some are taken along.

1. One that is a global of an importable module is found there, by name.
2. Any other, such as one of a script, is made anew on the other side, once (see `codec`: it is a definition), so that
   all that refers to it refers to the same one there.
3. One that is not set here is not set there either.
'''

import sys
from collections.abc import Iterator, Sequence
from contextvars import Context, ContextVar
from importlib import import_module
from typing import Any, Final

__all__ = ['Values', 'adopt', 'home_of', 'reduce_variable', 'values_of']

Variables = Sequence[ContextVar[Any]]
Values = dict[int, Any]
'''The values of those that are set, by their places among the variables.'''

_UNSET: Final = object()
_homes: Final[dict[ContextVar[Any], tuple[str, str]]] = {}
'''What `home_of` has found: it looks through all modules.'''


def values_of(variables: Variables) -> Values:
    '''The values that the variables have now.'''
    found = ((place, variable.get(_UNSET)) for place, variable in enumerate(variables))
    return {place: value for place, value in found if value is not _UNSET}


def adopt(variables: Variables, values: Values) -> None:
    '''Set the variables in the current context.'''
    for place, value in values.items():
        variables[place].set(value)


def home_of(variable: ContextVar[Any]) -> tuple[str, str] | None:
    '''The names of an importable module, and of its global that is `variable`; None if there is none.'''
    if variable not in _homes:
        for home in _find(variable):
            _homes[variable] = home
            break
    return _homes.get(variable)


def _find(variable: ContextVar[Any]) -> Iterator[tuple[str, str]]:
    for name, module in list(sys.modules.items()):
        names = getattr(module, '__dict__', {})
        if name != '__main__' and names.get('__spec__'):
            yield from ((name, attribute) for attribute, value in list(names.items()) if value is variable)


def reduce_variable(variable: ContextVar[Any]) -> tuple[Any, ...]:
    '''How to pickle it: by the name of its home, or to be made anew.'''
    home = home_of(variable)
    if home is not None:
        return _global, home
    try:
        # Nothing else tells a variable's default.
        return _make, (variable.name, Context().run(variable.get))
    except LookupError:
        return ContextVar, (variable.name,)


def _global(module: str, attribute: str) -> Any:
    return getattr(import_module(module), attribute)


def _make(name: str, default: Any) -> ContextVar[Any]:
    return ContextVar(name, default=default)
