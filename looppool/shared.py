'''Memory that all who hold it see, in whatever process: large arrays that several workers read, or fill together.

1. What is made here can be put, called with, returned, broadcast and captured like anything else. A reference travels;
   whoever receives it has the same memory, not a copy.
2. There is no lock. What one writes, the others may see half written: agree on who writes where, and let the end of a
   call or a message say that it is done.
3. The memory is freed when nobody holds it any more: no object in any process, and no message under way.
4. It is anonymous memory of Linux: nothing has a name that could be left behind. Each piece that is made takes a
   descriptor or two in every process that has it, so share one large array and its parts, not thousands of small ones.
'''

import math
import operator
import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar

from .segments import SharedSegment, aligned, shared_piece

if TYPE_CHECKING:
    from numpy import ndarray
    from numpy.typing import DTypeLike

__all__ = ['empty', 'share']

T = TypeVar('T')


def empty(shape: SupportsIndex | Iterable[SupportsIndex], dtype: 'DTypeLike' = float) -> 'ndarray[Any, Any]':
    '''A numpy array in shared memory, full of zeros, as ``numpy.empty(shape, dtype)`` would make it elsewhere.

    Slices of it are shared too, as long as they are contiguous; others are copied when they travel. Any thread may call
    it.

    :raises ImportError: numpy is not installed.
    :raises TypeError: `dtype` has Python objects in it.
    :raises OSError: there is no memory, or no descriptor; or the system has no such memory.
    '''
    import numpy

    kind = numpy.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f'{kind!r} has Python objects in it, which are of this process only')
    lengths = tuple(map(operator.index, shape)) if isinstance(shape, Iterable) else (operator.index(shape),)
    size = kind.itemsize * math.prod(lengths)
    return numpy.ndarray(lengths, kind, SharedSegment.create(size).view(0, size, None))


def share(obj: T) -> T:
    '''A copy of an object whose buffers are in shared memory: a numpy array, or anything that has some.

    What pickle knows as buffers (protocol 5) is shared: arrays, data frames, Arrow tables, also deep inside. The rest
    is copied each time it travels. Of bytes, a bytearray or a memoryview, it gives a memoryview. What is shared is
    not copied again. Any thread may call it.

    :raises TypeError: the object has no buffers.
    :raises OSError: as `empty`.
    :raises Exception: the error of pickling it.
    '''
    if isinstance(obj, (bytes, bytearray, memoryview)):
        return _copied([memoryview(obj).cast('B')])[0]  # type: ignore[return-value]
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(obj, 5, buffer_callback=buffers.append)
    if not buffers:
        what = type(obj).__qualname__
        raise TypeError(f'this {what} has no buffers to share: a numpy array has one if contiguous and of no subclass')
    raws = [buffer.raw() for buffer in buffers]
    return pickle.loads(pickled, buffers=_copied(raws))  # type: ignore[no-any-return]


def _copied(raws: list[memoryview]) -> list[memoryview]:
    '''The same in shared memory.'''
    found = [shared_piece(raw) for raw in raws]
    segment = SharedSegment.create(sum(aligned(raw.nbytes) for raw in raws))
    views, start = [], 0
    for raw, piece in zip(raws, found, strict=True):
        if piece is None:
            view = segment.view(start, raw.nbytes, None)
            view[:] = raw
            start += aligned(raw.nbytes)
        else:
            view = piece[0].view(*piece[1:], None)
        views.append(view)
    return views
