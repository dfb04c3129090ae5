'''Where code runs: the worker of this process.'''

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ['CurrentWorker', 'current_worker', 'set_current_worker']


@dataclasses.dataclass(frozen=True)
class CurrentWorker:
    '''The worker that runs this code. Elsewhere, as the value of a call, it has its first three fields only.

    :ivar number: its number in its pool; below 0 if it has a name.
    :ivar name: its name, or None.
    :ivar pool: the name of its pool.
    :ivar worker: the instance of its `Worker` class; None elsewhere.
    :ivar state: a dict for what calls want to keep in this process; a replacement begins with an empty one.
    '''

    number: int
    name: str | None
    pool: str
    worker: 'Worker[Any, Any] | None' = dataclasses.field(repr=False, default=None)
    state: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return CurrentWorker, (self.number, self.name, self.pool)


_current: CurrentWorker | None = None


def current_worker() -> CurrentWorker:
    '''The worker that runs this code; from any thread of its process.

    :raises RuntimeError: this is no worker process.
    '''
    if _current is None:
        raise RuntimeError('this code does not run in a worker: use pool.call(...) to run it in one')
    return _current


def set_current_worker(worker: CurrentWorker) -> None:
    '''Called once, by the worker's main.'''
    global _current
    _current = worker
