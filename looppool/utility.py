'''Reporters: gauges of a process, of its IO loop and of a pool, sent to a statsd server every few seconds.

1. A gauge that a loop or a platform can't give is left out, never faked.
2. A report is taken on the loop's thread (some 0.2 ms, no waiting) and sent there only by `statsd.StatsClient`, whose
   UDP socket never waits. Every other client may block, in a connect, a send or a name look-up, so it works in a daemon
   thread that lives for one report; while it hangs, later reports are dropped, not queued.
3. A statsd server that fails costs its gauges and one line in the log, and nothing else; the next line comes only
   after a report got through in between.
'''

import asyncio
import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    import psutil
    from tornado.ioloop import IOLoop

    from .pool import Pool

__all__ = ['PoolReporter', 'ResourceReporter', 'Statsd']

logger: Final = logging.getLogger(__name__)

Gauges = Mapping[str, float]


class Statsd(Protocol):
    '''What a reporter needs of a statsd client.'''

    def gauge(self, stat: str, value: float, /) -> Any:
        '''Send one gauge.'''


class _Reporter:
    sleep_time: float = 10.0
    '''Seconds between two reports. Set it in a subclass or on a reporter; it counts from the next report on.'''

    def __init__(self, statsd: Statsd | Callable[[], Statsd], prefix: str) -> None:
        self._prefix = prefix
        self._outlet = _Outlet(statsd)
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        '''Report from now on, the first time after `sleep_time`. Does nothing if started. Call it on the loop's thread.
        '''
        if self._timer is None:
            self._loop = self._find_loop()
            self._begin()
            self._schedule()

    def stop(self) -> None:
        '''Report no more; `start` may follow. Does nothing if stopped. Call it on the loop's thread.'''
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        # Not the loop's own clock: uvloop's stands still while a callback runs.
        self._due = time.monotonic() + self.sleep_time
        self._timer = self._loop.call_later(self.sleep_time, self._report)

    def _report(self) -> None:
        lag = max(0.0, time.monotonic() - self._due)
        # First, so that a reading that fails ends one report and not all of them.
        self._schedule()
        # Four digits: finer ones tell nothing, and a server might not know 1e-05.
        gauges = {f'{self._prefix}.{name}': round(value, 4) for name, value in self._gauges(lag).items()}
        self._outlet.send(gauges)

    def _begin(self) -> None:
        '''Take what the first report compares with.'''

    def _find_loop(self) -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    def _gauges(self, lag: float) -> Gauges:
        raise NotImplementedError


class ResourceReporter(_Reporter):
    '''Reports what this process and its IO loop use.

    ====================  ===================================================================================
    gauge                 value
    ====================  ===================================================================================
    `cpu`                 share of one core since the last report: 1.0 is one core kept busy all the time
                          (more with several threads); user and system time
    `rss`                 resident memory now, in bytes
    `maxrss`              the largest resident memory of this process so far, in bytes
    `ioloop.handler`      file descriptors that the loop watches, its own wake-up pipe included
    `ioloop.callback`     callbacks that are ready and wait for their turn
    `ioloop.timeout`      timers that are scheduled, the reporter's own included, cancelled ones not
    `ioloop.lag`          how late the reporter's own timer was, in seconds
    ====================  ===================================================================================

    `ioloop.handler`, `ioloop.callback` and `ioloop.timeout` exist for asyncio's own loops only: uvloop doesn't show
    its queues. `ioloop.lag` sees what blocks the loop at the moment of the report; for all that ever blocks it there is
    `Pool(blocking_threshold=...)`.

    :param ioloop: the Tornado IO loop, or the asyncio loop, to report on and to run on.
    :param statsd: a client of the `statsd` package, or anything with its `gauge(name, value)`; or a function without
        arguments that makes one, called until it has succeeded: so a server whose name can't be resolved, which
        `StatsClient(host)` reports by raising, doesn't keep a worker from starting. A client that keeps a connection
        (`TCPStatsClient`) is used in another thread: give the reporter one of its own, and give that a `timeout`.
    :param prefix: comes before each gauge's name, with a dot.

    `start` and `stop` belong on the loop's thread. They and the reports raise nothing that a server causes.
    '''

    def __init__(
        self,
        ioloop: 'IOLoop | asyncio.AbstractEventLoop',
        statsd: Statsd | Callable[[], Statsd],
        prefix: str = 'process',
    ) -> None:
        super().__init__(statsd, prefix)
        self._ioloop = ioloop

    def _find_loop(self) -> asyncio.AbstractEventLoop:
        return _asyncio_loop(self._ioloop)

    def _begin(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._cpu_seconds = _cpu_seconds(self._process)
        self._measured = time.monotonic()

    def _gauges(self, lag: float) -> Gauges:
        return {
            'cpu': self._cpu_share(),
            'rss': self._process.memory_info().rss,
            'maxrss': _peak_rss(),
            **_queue_lengths(self._loop),
            'ioloop.lag': lag,
        }

    def _cpu_share(self) -> float:
        seconds, now = _cpu_seconds(self._process), time.monotonic()
        share = (seconds - self._cpu_seconds) / max(now - self._measured, 1e-9)
        self._cpu_seconds, self._measured = seconds, now
        return share


class PoolReporter(_Reporter):
    '''Reports a pool's `statistics()`.

    ====================  ===================================================================================
    gauge                 value
    ====================  ===================================================================================
    `waiting`             how many wait in `put` or `broadcast` for credit: the depth of the queue
    `in_flight`           tasks that were accepted and have not ended
    `done`                tasks that ended well, since the pool was made
    `failed`              tasks that ended with an error, since the pool was made
    `restarts`            how often a worker was replaced, since the pool was made
    `results_pending`     results that have come from the workers and are not done
    ====================  ===================================================================================

    :param pool: the pool; its reporter may be started before it and stopped after it.
    :param statsd: as for `ResourceReporter`.
    :param prefix: comes before each gauge's name, with a dot.

    Call `start` and `stop` on the pool's IO loop.
    '''

    def __init__(
        self, pool: 'Pool[Any, Any]', statsd: Statsd | Callable[[], Statsd], prefix: str = 'pool'
    ) -> None:
        super().__init__(statsd, prefix)
        self._pool = pool

    def _find_loop(self) -> asyncio.AbstractEventLoop:
        from tornado.ioloop import IOLoop

        # A pool that was made without a loop has none before it starts: it will have the one that runs.
        return _asyncio_loop(self._pool.ioloop or IOLoop.current())

    def _gauges(self, lag: float) -> Gauges:
        statistics = self._pool.statistics()
        return {name: getattr(statistics, name) for name in _POOL_GAUGES}


_POOL_GAUGES: Final = ('waiting', 'in_flight', 'done', 'failed', 'restarts', 'results_pending')


class _Outlet:
    '''Hands reports to a statsd client, in a thread of its own where the client may block.'''

    def __init__(self, statsd: Statsd | Callable[[], Statsd]) -> None:
        self._statsd: Any = statsd
        self._thread: threading.Thread | None = None
        # Written by the sending thread and, while that hangs, by the loop's: at worst they log one line too many.
        self._failing = False

    def send(self, gauges: Gauges) -> None:
        if _never_blocks(self._statsd):
            self._deliver(gauges)
        elif self._thread is not None and self._thread.is_alive():
            self._failed('the report before is still being sent')
        else:
            self._send_in_thread(gauges)

    def _send_in_thread(self, gauges: Gauges) -> None:
        # No executor: its threads are joined at exit, and one that hangs would keep the worker from stopping.
        self._thread = threading.Thread(target=self._deliver, args=(gauges,), name='looppool-statsd', daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._thread = None
            self._failed(error)

    def _deliver(self, gauges: Gauges) -> None:
        try:
            client = self._client()
            for name, value in gauges.items():
                client.gauge(name, value)
        except Exception as error:
            self._disconnect()
            self._failed(error)
        else:
            self._succeeded()

    def _client(self) -> Statsd:
        if not hasattr(self._statsd, 'gauge'):
            self._statsd = self._statsd()
        client: Statsd = self._statsd
        return client

    def _disconnect(self) -> None:
        '''Make a stream client connect anew; left alone, it would write to its dead socket for ever.'''
        if hasattr(self._statsd, 'reconnect'):
            with contextlib.suppress(Exception):
                self._statsd.close()

    def _failed(self, reason: object) -> None:
        if not self._failing:
            self._failing = True
            logger.warning('statsd: %s; gauges are dropped until it works again', reason)

    def _succeeded(self) -> None:
        if self._failing:
            self._failing = False
            logger.info('statsd: it works again')


def _never_blocks(statsd: object) -> bool:
    # Not imported for this: who has one of its clients has imported it.
    package = sys.modules.get('statsd')
    return package is not None and isinstance(statsd, package.StatsClient)


def _asyncio_loop(ioloop: Any) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = getattr(ioloop, 'asyncio_loop', ioloop)
    return loop


def _cpu_seconds(process: 'psutil.Process') -> float:
    times = process.cpu_times()
    return times.user + times.system


def _peak_rss() -> int:
    # Not ru_maxrss where there is the other: that one survives exec, so a spawned worker would report its parent's.
    with contextlib.suppress(OSError), open('/proc/self/status') as status:
        found = re.search(r'^VmHWM:\s*(\d+) kB', status.read(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def _queue_lengths(loop: Any) -> dict[str, int]:
    lengths = {}
    for name, length in _QUEUES.items():
        # Private parts of asyncio: another loop, or another Python, may not have them.
        with contextlib.suppress(AttributeError, TypeError):
            lengths[f'ioloop.{name}'] = length(loop)
    return lengths


_QUEUES: Final[dict[str, Callable[[Any], int]]] = {
    'handler': lambda loop: len(loop._selector.get_map()),
    'callback': lambda loop: len(loop._ready),
    'timeout': lambda loop: len(loop._scheduled) - loop._timer_cancelled_count,
}
