'''What may be said on a link, and when.'''

from enum import IntEnum
from typing import Final

__all__ = ['LEGAL', 'Kind', 'State']


class Kind(IntEnum):
    '''What a frame is. The pool sends the first group, the worker the last, both the middle one.'''

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
    DEFINE = 16
    ITEM = 17
    '''id: that of the call.'''
    MORE = 18
    '''id: that of the call; body: how many items were taken, and their bytes.'''
    END = 19
    '''id: that of the call: no more items come.'''
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
    Kind.ABORT: (State.READY, State.STOPPING, State.ENDED),
    Kind.ITEM: (State.READY, State.STOPPING, State.ENDED),
    Kind.MORE: (State.READY, State.STOPPING, State.ENDED),
    Kind.END: (State.READY, State.STOPPING, State.ENDED),
    Kind.PILL: (State.READY,),
    Kind.DEFINE: (State.STARTING, State.READY, State.STOPPING),
    Kind.READY: (State.STARTING,),
    Kind.START_FAILED: (State.STARTING,),
    Kind.RESULT: (State.STARTING, State.READY, State.STOPPING),
    Kind.DONE: (State.READY, State.STOPPING),
    Kind.FAILED: (State.READY, State.STOPPING),
    Kind.VALUE: (State.READY, State.STOPPING),
    Kind.BYE: (State.STOPPING,),
}
