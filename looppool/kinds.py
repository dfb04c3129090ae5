'''What may be said on a link, and when.'''

from enum import IntEnum
from typing import Final

__all__ = ['ASKED', 'LEGAL', 'RELAYED', 'Kind', 'State']

RELAYED: Final = 1 << 62
ASKED: Final = 1 << 63
'''Bits of ids; see `Kind`.'''


class Kind(IntEnum):
    '''What a frame is. The pool sends the first group, the worker the last, both the middle one.

    Ids with the bit `RELAYED` are a row of their own, of the calls handed on to the worker; those with the bit `ASKED`
    are the worker's, of what it asks of the pool.
    '''

    CONFIGURE = 1
    '''How to set up the process, before anything of the user is imported.'''
    START = 2
    '''The worker's class and options.'''
    TASK = 3
    '''id: that of the task. In a run it is that of the first one, and the others follow on it.'''
    CREDIT = 4
    '''id: how many results are done; body: how many bytes they took.'''
    PILL = 5
    CANCEL = 6
    '''End every task and call.'''
    CALL = 7
    '''As TASK, of calls; the ids of both are one row.'''
    ABORT = 8
    '''id: the call that its caller has no use for any more.'''
    RELAY = 9
    '''As CALL, made by another worker: it is begun at once.'''
    ANSWER = 10
    '''As VALUE, to what the worker asked.'''
    REFUSAL = 11
    '''As FAILED, of what the worker asked.'''
    DEFINE = 16
    ITEM = 17
    '''id: that of the call.'''
    MORE = 18
    '''id: that of the call; body: how many items were taken, and their bytes.'''
    END = 19
    '''id: that of the call: no more items come.'''
    SEGMENT = 20
    '''id: the key of a segment that messages will refer to; body: its size in bytes. Its descriptor comes along.'''
    FORGET = 21
    '''id: the key of a segment that no message will refer to any more, until it is said anew.'''
    GIVE_BACK = 22
    '''body: the numbers of the payloads that their receiver has let go of.'''
    READY = 32
    START_FAILED = 33
    RESULT = 34
    DONE = 35
    '''id: that of the task that is done; or 0, and the body has the ids of several.'''
    FAILED = 36
    '''id: that of the task or call; body: the error.'''
    BYE = 37
    '''The worker has finalised and sends nothing more.'''
    VALUE = 38
    '''id: that of the call; body: what it returned.'''
    ASK = 39
    '''body: the length of a head (u32), what the pool is to do, and what with.'''


class State(IntEnum):
    '''How far a link has come; `LEGAL` says what may be received in which state.'''

    NEW = 0
    STARTING = 1
    READY = 2
    STOPPING = 3
    ENDED = 4


LEGAL: Final[dict[Kind, tuple[State, ...]]] = {
    Kind.CONFIGURE: (State.NEW,),
    Kind.START: (State.STARTING,),
    Kind.TASK: (State.READY,),
    Kind.CALL: (State.READY,),
    # These may cross the worker's BYE.
    Kind.CREDIT: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.CANCEL: (State.READY, State.STOPPING, State.ENDED),
    Kind.ABORT: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.RELAY: (State.READY, State.STOPPING, State.ENDED),
    Kind.ANSWER: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.REFUSAL: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.ITEM: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.MORE: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.END: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.PILL: (State.READY,),
    Kind.DEFINE: (State.STARTING, State.READY, State.STOPPING),
    Kind.SEGMENT: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.FORGET: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.GIVE_BACK: (State.STARTING, State.READY, State.STOPPING, State.ENDED),
    Kind.READY: (State.STARTING,),
    Kind.START_FAILED: (State.STARTING,),
    Kind.RESULT: (State.STARTING, State.READY, State.STOPPING),
    Kind.DONE: (State.READY, State.STOPPING),
    Kind.FAILED: (State.READY, State.STOPPING),
    Kind.VALUE: (State.READY, State.STOPPING),
    Kind.ASK: (State.STARTING, State.READY, State.STOPPING),
    Kind.BYE: (State.STOPPING,),
}
