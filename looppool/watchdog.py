'''Tells, while it is blocked, that a loop is blocked, and by what. The successor of Tornado 4's
``set_blocking_log_threshold``.

A thread looks at the heartbeat that the loop stores. A signal would not do: it interrupts system calls of the
application, and Python runs its handler only between bytecodes, just as it runs this thread. Code in C that never
releases the GIL is therefore reported when it has ended.
'''

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

__all__ = ['Watchdog']

_log: Final = logging.getLogger('looppool.worker')


class Watchdog:
    '''Watches the loop of the thread that creates it. It lives until `stop`.

    :param heartbeat: gives the time of the loop's last turn (`time.monotonic`).
    :param threshold: seconds without a turn after which the loop counts as blocked.
    :param report: called from the watchdog's thread with the seconds so far and the stack that blocks, once per block.
    '''

    def __init__(self, heartbeat: Callable[[], float], threshold: float, report: Callable[[float, str], None]) -> None:
        self._heartbeat = heartbeat
        self._threshold = threshold
        self._report = report
        self._watched = threading.get_ident()
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._watch, name='looppool-watchdog', daemon=True).start()

    def stop(self) -> None:
        '''Look no more, and do not wait for the thread to notice.'''
        self._stopped.set()

    def _watch(self) -> None:
        reported = 0.0
        while not self._stopped.wait(self._threshold / 4):
            beat = self._heartbeat()
            blocked = time.monotonic() - beat
            if blocked > self._threshold and beat != reported:
                reported = beat
                self._tell(blocked)

    def _tell(self, blocked: float) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = ''.join(traceback.format_stack(frame)) if frame else ''
        try:
            self._report(blocked, stack)
        except Exception:
            _log.exception('the report of a blocked loop raised')
