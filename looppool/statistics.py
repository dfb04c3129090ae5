'''What a pool tells of itself, as frozen values.'''

import dataclasses

__all__ = ['MemberStatistics', 'PoolStatistics']


@dataclasses.dataclass(frozen=True, slots=True)
class MemberStatistics:
    '''One worker, at one moment.

    :ivar number: its number.
    :ivar state: ``'new'``, ``'starting'``, ``'ready'``, ``'stopping'``, ``'restarting'`` or ``'stopped'``.
    :ivar pid: of its process; None where there is none.
    :ivar restarts: how often it was replaced.
    :ivar in_flight: tasks accepted for it that have not ended.
    :ivar done: tasks that ended well.
    :ivar failed: tasks that ended with an error.
    :ivar results: results taken up.
    :ivar results_pending: results that have come from it and are not done.
    :ivar credits: how many more tasks it would be sent now.
    :ivar bytes: pickled bytes of the tasks in flight.
    :ivar heartbeat: seconds since its loop last turned; None before it has.
    '''

    number: int
    state: str
    pid: int | None
    restarts: int
    in_flight: int
    done: int
    failed: int
    results: int
    results_pending: int
    credits: int
    bytes: int
    heartbeat: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStatistics:
    '''A pool and its workers, at one moment. The numbers are sums over the workers.

    :ivar name: the pool's name.
    :ivar state: ``'new'``, ``'starting'``, ``'running'``, ``'stopping'``, ``'stopped'`` or ``'broken'``.
    :ivar waiting: how many wait in ``put`` or ``broadcast`` for credit.
    :ivar members: one entry a worker, in the order of their numbers.
    '''

    name: str
    state: str
    waiting: int
    members: tuple[MemberStatistics, ...]
    restarts: int
    in_flight: int
    done: int
    failed: int
    results: int
    results_pending: int
    credits: int
    bytes: int
