'''Messages that need no pickle of their own: numbers and short texts.

1. Nothing can change them, and pickling them can't fail. So they wait as they are until they leave, and those that
   leave together are pickled together, in a fraction of the time.
2. Each counts about the bytes of its pickle, and never fewer: the same at both ends of a link.
3. A request counts its arguments: what names the function travels once for all that leave together.
'''

from collections.abc import Iterable
from types import NoneType
from typing import Any, Final

__all__ = ['PLAIN', 'plain_size', 'plain_sizes', 'size_of']

_BASE: Final = 24
'''What each counts, in bytes, beside its text.'''
_INT_END: Final = 1 << 63
_MOST: Final = 400
'''Bytes of a text, and of all arguments of a request: with more, a pickle of its own is no great matter.'''
_NUMBERS: Final = frozenset({int, float, bool, NoneType})
PLAIN: Final = _NUMBERS | {str}
'''The types of what travels as it is, if it is small.'''


def plain_size(message: Any) -> int:
    '''The bytes that a message counts which travels as it is; 0: it is to be pickled.'''
    kind = type(message)
    if kind is int:
        return _BASE if -_INT_END <= message < _INT_END else 0
    if kind is str:
        size = len(message) if message.isascii() else 4 * len(message)
        return _BASE + size if size <= _MOST else 0
    return _BASE if kind in _NUMBERS else 0


def size_of(body: Any) -> int:
    '''The bytes that a message counts, as it travels: plain or pickled.'''
    kind = type(body)
    if kind in _NUMBERS:
        return _BASE
    return plain_size(body) if kind is str else len(body)


def plain_sizes(messages: Iterable[Any]) -> int:
    '''The bytes that several count together, and what holds them; 0: one of them is to be pickled.'''
    total = _BASE
    for message in messages:
        size = plain_size(message)
        total += size
        if not size or total > _MOST:
            return 0
    return total
