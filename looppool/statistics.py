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
    :ivar name: its name, if it was spawned with one.
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
    name: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStatistics:
    '''A pool and its workers, at one moment. The numbers are sums over all workers, those that have left included.

    :ivar name: the pool's name.
    :ivar state: ``'new'``, ``'starting'``, ``'running'``, ``'stopping'``, ``'stopped'`` or ``'broken'``.
    :ivar waiting: how many wait in ``put`` or ``broadcast`` for credit.
    :ivar size: how many workers it has, those with names not counted.
    :ivar members: one entry a worker, in the order of their numbers.
    :ivar named: one entry for each worker with a name.
    '''

    name: str
    state: str
    waiting: int
    size: int
    members: tuple[MemberStatistics, ...]
    named: tuple[MemberStatistics, ...]
    restarts: int
    in_flight: int
    done: int
    failed: int
    results: int
    results_pending: int
    credits: int
    bytes: int
