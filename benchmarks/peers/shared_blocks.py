'''`multiprocessing.shared_memory` by hand: blocks made before, arrays copied in, names of blocks through a pipe.

One worker process, which attaches each block once. An array that the function returns stays where it is, and is copied
out, into an array made before, by the caller.
'''

import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

from benchmarks.arrays import Exchange, Function, blank, large_arrays, small_arrays, through
from benchmarks.load import ARRAYS_IN_FLIGHT, Load, Values
from benchmarks.peers.serving import beside

__all__ = ['large', 'small']

_numpy: Any = import_module('numpy')


def large(load: Load) -> Values:
    '''Measure the speed at which single arrays are copied in, and looked at or copied out.'''
    with _serving(load, 1) as exchange:
        return large_arrays(exchange, load)


def small(load: Load) -> Values:
    '''Measure the arrays copied in and looked at a second.'''
    with _serving(load, ARRAYS_IN_FLIGHT) as exchange:
        return small_arrays(exchange, load)


@contextmanager
def _serving(load: Load, count: int) -> Iterator[Exchange]:
    here, there = multiprocessing.Pipe()
    with ExitStack() as stack, beside(load, _serve, there):
        blocks = [stack.enter_context(_block(load.payload)) for _ in range(count)]
        yield _exchange(here, blocks, load.payload)
        here.send(None)


@contextmanager
def _block(size: int) -> Iterator[SharedMemory]:
    block = SharedMemory(create=True, size=size)
    yield block
    block.close()
    block.unlink()


def _exchange(connection: Connection, blocks: list[SharedMemory], size: int) -> Exchange:
    turns = cycle(blocks)
    out = blank(size)

    def send(function: Function, array: Any) -> SharedMemory:
        block = next(turns)
        _numpy.copyto(_array_in(block, size), array)
        connection.send((function, block.name, size))
        return block

    def receive(block: SharedMemory) -> Any:
        answer = connection.recv()
        if answer is not None:
            return answer
        _numpy.copyto(out, _array_in(block, size))
        return out

    return through(send, receive)


def _serve(connection: Connection) -> None:
    blocks: dict[str, SharedMemory] = {}
    while (task := connection.recv()) is not None:
        function, name, size = task
        if name not in blocks:
            blocks[name] = SharedMemory(name)
        array = _array_in(blocks[name], size)
        answer = function(array)
        connection.send(None if answer is array else answer)
        del array, answer  # a block can't be closed while they are there
    for block in blocks.values():
        block.close()


def _array_in(block: SharedMemory, size: int) -> Any:
    return _numpy.frombuffer(block.buf, dtype=_numpy.int64, count=size // 8)
