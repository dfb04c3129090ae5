'''A `multiprocessing.Pipe` and one process that runs what comes through it, pickled by protocol 5.

It is the two-way pipe, a socket pair, and the pickle is made by hand: a real pipe each way, and `Connection.send`,
which uses protocol 4, were slower.
'''

import multiprocessing
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.arrays import Exchange, Function, large_arrays, small_arrays, through
from benchmarks.load import Load, Values

__all__ = ['large', 'small']


def large(load: Load) -> Values:
    '''Measure the speed at which single arrays are sent.'''
    with _serving(load) as exchange:
        return large_arrays(exchange, load)


def small(load: Load) -> Values:
    '''Measure the arrays sent a second.'''
    with _serving(load) as exchange:
        return small_arrays(exchange, load)


@contextmanager
def _serving(load: Load) -> Iterator[Exchange]:
    context = multiprocessing.get_context(load.context)
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)  # type: ignore[attr-defined]
    process.start()

    def send(function: Function, array: Any) -> None:
        _send(here, (function, array))

    yield through(send, lambda _sent: _receive(here))
    _send(here, None)
    process.join(10)


def _serve(connection: Connection) -> None:
    while (task := _receive(connection)) is not None:
        function, array = task
        _send(connection, function(array))
        del task, array  # not until the next one has come


def _send(connection: Connection, message: Any) -> None:
    connection.send_bytes(pickle.dumps(message, protocol=5))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())
