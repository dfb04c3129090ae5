'''The one process of those peers that are no pool, and what it does.'''

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.load import Load

__all__ = ['answer_arrays', 'beside']


@contextmanager
def beside(load: Load, target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    '''Run ``target(*arguments)`` in a process, which has to be told to end at the end of the block.'''
    context = multiprocessing.get_context(load.context)
    process = context.Process(target=target, args=arguments, daemon=True)  # type: ignore[attr-defined]
    process.start()
    yield
    process.join(10)


def answer_arrays(receive: Callable[[], Any], send: Callable[[Any], None]) -> None:
    '''Send back what functions return for the arrays that come with them, until None comes.'''
    while (task := receive()) is not None:
        function, array = task
        send(function(array))
        del task, array  # not until the next one has come
