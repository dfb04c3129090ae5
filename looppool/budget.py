'''How often a pool's workers may be restarted, and how soon. No clock: whoever asks says what time it is.'''

from collections import deque

__all__ = ['RestartBudget']


class RestartBudget:
    '''More than `limit` restarts within `window` seconds are too many.

    The first restart in a window comes at once, the second after `first_delay` seconds; from there on the delay
    doubles, up to `longest_delay` seconds.
    '''

    def __init__(self, limit: int, window: float, first_delay: float = 0.05, longest_delay: float = 5.0) -> None:
        self.limit = limit
        self.window = window
        self.first_delay = first_delay
        self.longest_delay = longest_delay
        self._times: deque[float] = deque()

    def spend(self, now: float) -> float | None:
        '''Ask for a restart at the time `now`: how long to wait first, in seconds, or None if there is none left.'''
        times = self._times
        while times and now - times[0] > self.window:
            times.popleft()
        if len(times) >= self.limit:
            return None
        times.append(now)
        recent = len(times) - 1
        return min(self.first_delay * 2 ** (recent - 1), self.longest_delay) if recent else 0.0
