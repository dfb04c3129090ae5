'''The status page: what a worker tells without a message.

One shared page per worker, written by the worker with plain stores and read by the parent whenever it likes, also
when the worker's loop is blocked or its process is gone. Every field is an aligned word of eight bytes, which one
machine store writes whole.
'''

import mmap
import os
from typing import Final

__all__ = ['INTERRUPT', 'STEPPING', 'TAKEN_UP', 'StatusPage', 'Words']

_SIZE: Final = mmap.PAGESIZE
_HEARTBEAT: Final = 0
TAKEN_UP: Final = 1
'''The index, in `StatusPage.words`, of the id of the task that was last taken up; stored once a task.'''
STEPPING: Final = 2
'''That of the id of the call whose code runs now, or 0; stored at each step of a call.'''
INTERRUPT: Final = 3
'''That of the id of the call to be interrupted; the parent stores it before it sends the signal.'''

Words = memoryview


class StatusPage:
    '''A mapped status page. The parent makes one with `create`; the worker maps the descriptor that it got.'''

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, _SIZE)
        view = memoryview(self._map)
        self.words = view.cast('Q')
        self._floats = view.cast('d')
        view.release()

    @classmethod
    def create(cls) -> tuple['StatusPage', int]:
        '''A fresh page and a descriptor of it, which the caller closes.'''
        fd = _anonymous_file()
        try:
            os.ftruncate(fd, _SIZE)
            return cls(fd), fd
        except BaseException:
            os.close(fd)
            raise

    @property
    def heartbeat(self) -> float:
        '''When the worker's loop last turned (`time.monotonic`, the same clock in every process); 0.0 before.'''
        return self._floats[_HEARTBEAT]

    @heartbeat.setter
    def heartbeat(self, now: float) -> None:
        self._floats[_HEARTBEAT] = now

    @property
    def taken_up(self) -> int:
        '''The id of the last task that the worker took up; 0 before the first.'''
        return self.words[TAKEN_UP]

    @property
    def stepping(self) -> int:
        '''The id of the call whose code the worker runs now; 0 for anything else.'''
        return self.words[STEPPING]

    @property
    def interrupt(self) -> int:
        '''What is to be interrupted; 0 once it is.'''
        return self.words[INTERRUPT]

    @interrupt.setter
    def interrupt(self, ident: int) -> None:
        self.words[INTERRUPT] = ident

    def close(self) -> None:
        '''Unmap the page.'''
        self.words.release()
        self._floats.release()
        self._map.close()


def _anonymous_file() -> int:
    if hasattr(os, 'memfd_create'):
        return os.memfd_create('looppool-status')
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
