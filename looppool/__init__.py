'''looppool: a pool of worker processes, each with its own Tornado IO loop.'''

from . import shared
from .errors import (
    Full,
    LoopPoolError,
    MessageTooBig,
    PoolBroken,
    PoolClosed,
    ProtocolError,
    RemoteError,
    StreamClosed,
    TaskInterrupted,
    WorkerDied,
    WorkerStartError,
)
from .events import PoolEvent
from .exchange import Exchange
from .here import CurrentWorker, current_worker
from .lease import Lease
from .member import Member
from .objects import RemoteObject
from .packing import Codec
from .peer import Peer, find_worker, wait_for_worker
from .pool import Pool
from .statistics import MemberStatistics, PoolStatistics
from .streams import OpenStream
from .verbs import in_thread
from .worker import Worker, idempotent, task_done

__all__ = [
    'Codec',
    'CurrentWorker',
    'Exchange',
    'Full',
    'Lease',
    'LoopPoolError',
    'Member',
    'MemberStatistics',
    'MessageTooBig',
    'OpenStream',
    'Peer',
    'Pool',
    'PoolBroken',
    'PoolClosed',
    'PoolEvent',
    'PoolStatistics',
    'ProtocolError',
    'RemoteError',
    'RemoteObject',
    'StreamClosed',
    'TaskInterrupted',
    'Worker',
    'WorkerDied',
    'WorkerStartError',
    'current_worker',
    'find_worker',
    'idempotent',
    'in_thread',
    'shared',
    'task_done',
    'wait_for_worker',
]
