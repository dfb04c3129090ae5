'''A `multiprocessing.Pipe` and one process that runs what comes through it, pickled by protocol 5.

It is the two-way pipe, a socket pair, and the pickle is made by hand: a real pipe each way, and `Connection.send`,
which uses protocol 4, were slower.
'''

import multiprocessing
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.arrays import Exchange, Function, large_arrays, small_arrays, through
from benchmarks.load import Load, Values
from benchmarks.peers.serving import answer_arrays, beside

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
    here, there = multiprocessing.Pipe()

    def send(function: Function, array: Any) -> None:
        _send(here, (function, array))

    with beside(load, _serve, there):
        yield through(send, lambda _sent: _receive(here))
        _send(here, None)


def _serve(connection: Connection) -> None:
    answer_arrays(partial(_receive, connection), partial(_send, connection))


def _send(connection: Connection, message: Any) -> None:
    connection.send_bytes(pickle.dumps(message, protocol=5))


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())
