'''pyzmq: two DEALER sockets over ipc, pickle protocol 5 with the arrays in frames of their own, sent without a copy.

What comes lies in the memory of its frame. One worker process.
'''

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from benchmarks.arrays import Exchange, Function, large_arrays, small_arrays, through
from benchmarks.load import Load, Values
from benchmarks.peers.serving import answer_arrays, beside

__all__ = ['large', 'small']

_zmq: Any = import_module('zmq')


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
    with tempfile.TemporaryDirectory() as folder, _dealer() as socket:
        address = f'ipc://{folder}/socket'
        socket.bind(address)

        def send(function: Function, array: Any) -> None:
            _send(socket, (function, array))

        with beside(load, _serve, address):
            yield through(send, lambda _sent: _receive(socket))
            _send(socket, None)


@contextmanager
def _dealer() -> Iterator[Any]:
    with _zmq.Context() as context, context.socket(_zmq.DEALER) as socket:
        yield socket


def _serve(address: str) -> None:
    with _dealer() as socket:
        socket.connect(address)
        answer_arrays(partial(_receive, socket), partial(_send, socket))


def _send(socket: Any, message: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    socket.send_multipart([head, *(buffer.raw() for buffer in buffers)], copy=False)


def _receive(socket: Any) -> Any:
    head, *frames = socket.recv_multipart(copy=False)
    return pickle.loads(head.buffer, buffers=[frame.buffer for frame in frames])
