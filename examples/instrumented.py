'''Workers that can be watched: a name in the process list, gauges in statsd, errors in Sentry.

    STATSD_HOST=localhost STATSD_PORT=8125 SENTRY_DSN=https://... python instrumented.py

Without these variables the gauges go to a port where nobody may listen, and the errors to the log only. It runs until
Ctrl-C or SIGTERM.
'''

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable

from setproctitle import setproctitle
from statsd import StatsClient

import looppool
import looppool.sentry
from looppool.utility import ResourceReporter


class WatchedWorker(looppool.Worker[int, float]):
    def _initialise(self, interval: float) -> None:
        setproctitle(f'instrumented worker {self._number}')
        looppool.sentry.init(self, os.environ.get('SENTRY_DSN'))
        statsd = StatsClient(os.environ.get('STATSD_HOST', 'localhost'), int(os.environ.get('STATSD_PORT', '8125')))
        self._reporter = ResourceReporter(self._ioloop, statsd, f'instrumented.worker.{self._number}')
        self._reporter.sleep_time = interval
        self._reporter.start()

    @looppool.task_done
    def _process_message(self, number: int) -> None:
        self._put_nowait(1 / number)  # fails for 0: Sentry gets the error, with worker, pool and pid as tags

    async def _finalise(self) -> None:
        self._reporter.stop()


@looppool.task_done
def process_message(inverse: float, result_done: Callable[[], None]) -> None:
    print(f'{inverse:+.2f}')


def process_failure(number: int, error: BaseException) -> None:
    print(f'{number} failed: {type(error).__name__}')


async def main() -> None:
    setproctitle('instrumented parent')
    pool = looppool.Pool(pool_size=2, worker_class=WatchedWorker, options={'interval': 0.5})
    pool.process_message = process_message
    pool.process_failure = process_failure
    await pool.start()
    pool.stop_on_signals()
    with contextlib.suppress(looppool.PoolClosed):
        for number in itertools.cycle(range(-5, 6)):
            await pool.put(number)
            await asyncio.sleep(0.2)
    await pool.join()


asyncio.run(main())
