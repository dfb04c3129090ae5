'''The reporters: what they send, on which loops, and what a failing server does to them.'''

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import servers.statsd
from conftest import needs_uvloop, uvloop
from statsd import StatsClient, TCPStatsClient
from tornado.ioloop import IOLoop

import looppool
from looppool.utility import PoolReporter, ResourceReporter

HOST = '127.0.0.1'
LOOP_GAUGES = {'ioloop.handler', 'ioloop.callback', 'ioloop.timeout'}
GAUGES = {'cpu', 'rss', 'maxrss', 'ioloop.lag'} | LOOP_GAUGES


class Reporter(ResourceReporter):
    sleep_time = 0.01


def run(main: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(main, 30))


class Server:
    '''A UDP socket that takes reports.'''

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        self.socket.setblocking(False)
        self.client = StatsClient(*self.socket.getsockname(), prefix='app')

    async def report(self, last: str = 'app.process.ioloop.lag') -> dict[str, float]:
        '''The gauges that arrive, up to the one named `last`.'''
        gauges: dict[str, float] = {}
        while last not in gauges:
            name, _, rest = (await asyncio.get_running_loop().sock_recv(self.socket, 4096)).decode().partition(':')
            value, kind = rest.split('|')
            assert kind == 'g'
            gauges[name] = float(value)
        return gauges

    def close(self) -> None:
        self.client.close()
        self.socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as server:
        yield server


@contextlib.asynccontextmanager
async def reporting(statsd: Any, prefix: str = 'process') -> AsyncIterator[Reporter]:
    reporter = Reporter(IOLoop.current(), statsd, prefix)
    reporter.start()
    try:
        yield reporter
    finally:
        reporter.stop()


# What is sent


async def test_reports_every_gauge_of_an_asyncio_loop(server: Server) -> None:
    async with reporting(server.client):
        gauges = await server.report()
    assert gauges.keys() == {f'app.process.{name}' for name in GAUGES}
    assert gauges['app.process.rss'] > 5 << 20
    assert gauges['app.process.maxrss'] > 0.9 * gauges['app.process.rss']


@needs_uvloop
def test_leaves_out_what_uvloop_does_not_show(server: Server) -> None:
    async def main() -> None:
        async with reporting(server.client):
            gauges = await server.report()
        assert gauges.keys() == {f'app.process.{name}' for name in GAUGES - LOOP_GAUGES}

    run(main(), uvloop.new_event_loop)


def test_takes_a_bare_asyncio_loop_and_a_prefix(server: Server, each_loop: Any) -> None:
    async def main() -> None:
        reporter = Reporter(asyncio.get_running_loop(), server.client, 'worker.3')
        reporter.start()
        assert 'app.worker.3.rss' in await server.report('app.worker.3.ioloop.lag')
        reporter.stop()

    run(main(), each_loop)


async def test_counts_handlers_callbacks_and_timeouts(server: Server) -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    async with reporting(server.client):
        before = await server.report()
        loop.add_reader(ours, print)
        timers = [loop.call_later(1000, print) for _ in range(20)]
        for timer in timers[:8]:
            timer.cancel()

        def again() -> None:
            loop.call_soon(again)

        for _ in range(5):
            again()
        after = await server.report()
    loop.remove_reader(ours)
    ours.close()
    theirs.close()
    assert after['app.process.ioloop.handler'] == before['app.process.ioloop.handler'] + 1
    assert after['app.process.ioloop.timeout'] == before['app.process.ioloop.timeout'] + 12
    assert after['app.process.ioloop.callback'] >= 5


def test_lag_is_how_late_the_timer_was(server: Server, each_loop: Any) -> None:
    async def main() -> None:
        reporter = Reporter(IOLoop.current(), server.client)
        reporter.sleep_time = 0.2
        reporter.start()
        asyncio.get_running_loop().call_soon(time.sleep, 0.5)
        reporter.sleep_time = 0.01
        blocked = await server.report()
        free = await server.report()
        reporter.stop()
        assert 0.29 < blocked['app.process.ioloop.lag'] < 20
        assert 0 <= free['app.process.ioloop.lag'] < blocked['app.process.ioloop.lag']

    run(main(), each_loop)


async def test_cpu_is_the_share_of_a_core_since_the_last_report(server: Server) -> None:
    loop = asyncio.get_running_loop()
    async with reporting(server.client) as reporter:
        await server.report()
        cpu, clock = time.process_time(), time.monotonic()
        reporter.sleep_time = 0.3
        await server.report()
        while time.process_time() - cpu < 0.5:
            pass
        busy = await server.report()
        share = (time.process_time() - cpu) / (time.monotonic() - clock)
        await server.report()
        await loop.run_in_executor(None, time.sleep, 0.2)
        idle = await server.report()
    # The kernel counts in hundredths of a second.
    assert busy['app.process.cpu'] == pytest.approx(share, abs=0.15)
    assert idle['app.process.cpu'] < 0.5 * busy['app.process.cpu']


def test_maxrss_is_that_of_this_process_and_not_of_the_one_that_started_it() -> None:
    ballast = bytearray(b'x' * (200 << 20))
    program = 'from looppool.utility import _peak_rss; print(_peak_rss())'
    peak = int(subprocess.check_output([sys.executable, '-c', program], timeout=30))
    assert 5 << 20 < peak < len(ballast)


# Starting and stopping


def test_start_and_stop_are_idempotent(server: Server, each_loop: Any) -> None:
    async def main() -> None:
        reporter = Reporter(IOLoop.current(), server.client)
        reporter.stop()
        reporter.start()
        reporter.start()
        reporter.stop()
        reporter.stop()
        await asyncio.sleep(20 * reporter.sleep_time)
        with pytest.raises(BlockingIOError):
            server.socket.recv(4096)
        reporter.start()
        await server.report()
        reporter.stop()

    run(main(), each_loop)


def test_sleep_time_is_ten_seconds_unless_a_reporter_says_otherwise() -> None:
    assert ResourceReporter.sleep_time == 10
    assert Reporter.sleep_time == 0.01


async def test_a_reading_that_fails_ends_one_report_and_not_all(server: Server) -> None:
    class Stumbling(Reporter):
        stumbled = False

        def _gauges(self, lag: float) -> Any:
            if not self.stumbled:
                self.stumbled = True
                raise OSError('no such reading')
            return super()._gauges(lag)

    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context['exception']))
    reporter = Stumbling(IOLoop.current(), server.client)
    reporter.start()
    await server.report()
    reporter.stop()
    assert [str(error) for error in errors] == ['no such reading']


def test_importing_it_imports_neither_psutil_nor_statsd() -> None:
    program = 'import sys, looppool.utility; print(sorted({"psutil", "statsd", "sentry_sdk"} & set(sys.modules)))'
    assert subprocess.check_output([sys.executable, '-c', program], timeout=30, text=True) == '[]\n'


# Servers that fail


class Driven(ResourceReporter):
    '''Reports when told to, and waits until that is over.'''

    sleep_time = 3600

    async def report(self) -> None:
        self._report()
        if self._outlet._thread:
            await asyncio.to_thread(self._outlet._thread.join, 30)


@contextlib.contextmanager
def driven(statsd: Any) -> Iterator[Driven]:
    reporter = Driven(IOLoop.current(), statsd)
    reporter.start()
    try:
        yield reporter
    finally:
        reporter.stop()


@pytest.fixture
def log(logs: Any, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    '''What looppool.utility logs.'''
    logs.expect('^WARNING:looppool.utility:statsd: ')
    caplog.set_level(logging.INFO, 'looppool.utility')
    return caplog


DROPPED = 'gauges are dropped until it works again'
WORKS = 'statsd: it works again'


async def test_a_refused_connection_is_logged_once_and_again_only_after_it_worked(log: Any) -> None:
    # Bound and not listening: nobody else can take the port, and connections are refused.
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        client = TCPStatsClient(*listener.getsockname(), timeout=10)
        with driven(client) as reporter:
            for _ in range(3):
                await reporter.report()
            [refused] = log.messages
            assert refused.endswith(f'Connection refused; {DROPPED}')
            listener.listen()
            for _ in range(3):
                await reporter.report()
            assert log.messages[1:] == [WORKS]
            with listener.accept()[0] as connection:
                assert connection.recv(4096).startswith(b'process.cpu:')
            listener.close()
            for _ in range(5):
                await reporter.report()
            assert len(log.messages) == 3
            assert log.messages[2].endswith(DROPPED)
        client.close()


async def test_a_name_that_cannot_be_resolved_is_logged_once_and_tried_again(log: Any, server: Server) -> None:
    hosts = iter(['statsd.invalid', 'statsd.invalid', 'statsd.invalid'])

    def connect() -> StatsClient:
        socket.getaddrinfo(next(hosts, HOST), 1)
        return server.client

    with driven(connect) as reporter:
        for _ in range(3):
            await reporter.report()
        [line] = log.messages
        assert line.endswith(DROPPED)
        for _ in range(2):
            await reporter.report()
        assert log.messages[1:] == [WORKS]
        assert 'app.process.rss' in await server.report()


async def test_a_server_that_hangs_costs_reports_and_never_blocks_the_loop(log: Any, server: Server) -> None:
    hanging = threading.Event()

    def connect() -> StatsClient:
        assert hanging.wait(30)
        return server.client

    with driven(connect) as reporter:
        for _ in range(4):
            reporter._report()
        assert [thread.name for thread in threading.enumerate()].count('looppool-statsd') == 1
        assert log.messages == [f'statsd: the report before is still being sent; {DROPPED}']
        hanging.set()
        assert reporter._outlet._thread is not None
        await asyncio.to_thread(reporter._outlet._thread.join, 30)
        assert log.messages[1:] == [WORKS]
        assert 'app.process.rss' in await server.report()


async def test_a_client_that_fails_on_the_loop_is_logged_once(log: Any, server: Server) -> None:
    client = StatsClient(*server.socket.getsockname())
    client.close()
    with driven(client) as reporter:
        for _ in range(3):
            await reporter.report()
    assert len(log.messages) == 1


async def test_a_client_that_may_block_is_used_on_a_timer_too(log: Any, server: Server) -> None:
    async with reporting(lambda: server.client):
        assert 'app.process.rss' in await server.report()


async def test_udp_reports_need_no_thread(server: Server) -> None:
    before = threading.active_count()
    async with reporting(server.client):
        await server.report()
        assert threading.active_count() == before


# The real server


@pytest.fixture(scope='module')
def statsd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.statsd.Statsd]:
    with servers.statsd.run(tmp_path_factory.mktemp('statsd')) as server:
        yield server


async def test_the_statsd_server_understands_every_gauge(statsd_server: servers.statsd.Statsd) -> None:
    names = {f'app.alone.{name}' for name in GAUGES}

    client = StatsClient(statsd_server.host, statsd_server.port, prefix='app')
    async with reporting(client, 'alone'):
        gauges = await asyncio.to_thread(statsd_server.wait_for, *names)
    client.close()
    assert gauges['app.alone.rss'] > 5 << 20
    assert statsd_server.bad_lines() == 0


class Reported(looppool.Worker[str, str]):
    def _initialise(self, host: str, port: int) -> None:
        self._reporter = Reporter(self._ioloop, StatsClient(host, port, prefix='app'), f'worker.{self._number}')
        self._reporter.start()

    @looppool.task_done
    def _process_message(self, message: str) -> None:
        self._put_nowait(message)

    def _finalise(self) -> None:
        self._reporter.stop()


async def test_workers_report_to_the_statsd_server(context: str, statsd_server: servers.statsd.Statsd) -> None:
    names = [f'app.worker.{number}.{name}' for number in range(2) for name in GAUGES]
    statsd_server.forget('app.worker.*')
    async with looppool.Pool(
        pool_size=2,
        worker_class=Reported,
        context=context,
        options={'host': statsd_server.host, 'port': statsd_server.port},
    ):
        gauges = await asyncio.to_thread(statsd_server.wait_for, *names)
    for number in range(2):
        assert 5 << 20 < gauges[f'app.worker.{number}.rss'] < 500 << 20
        assert gauges[f'app.worker.{number}.ioloop.handler'] >= 2
        assert gauges[f'app.worker.{number}.ioloop.timeout'] >= 1
    assert statsd_server.bad_lines() == 0


# Pools


class Picky(looppool.Worker[str, str]):
    @looppool.task_done
    async def _process_message(self, message: str) -> None:
        if message == 'fail':
            raise LookupError(message)
        if message == 'hang':
            await asyncio.Event().wait()
        self._put_nowait(message)


async def test_a_pool_reports_its_statistics(server: Server) -> None:
    class Prompt(PoolReporter):
        sleep_time = 0.01

    receipts: list[Callable[[], None]] = []
    failed = asyncio.Event()
    pool = looppool.Pool(pool_size=1, worker_class=Picky, max_tasks=2)
    pool.process_failure = lambda task, error: failed.set()
    pool.process_message = lambda result, result_done: receipts.append(result_done)
    reporter = Prompt(pool, server.client)
    reporter.start()
    assert (await server.report('app.pool.results_pending'))['app.pool.in_flight'] == 0
    await pool.start()
    for message in ('done', 'done', 'fail', 'hang', 'hang'):
        await pool.put(message)
    await failed.wait()
    waiter = asyncio.create_task(pool.put('wait'))
    expected = {'waiting': 1, 'in_flight': 2, 'done': 2, 'failed': 1, 'restarts': 0, 'results_pending': 2}
    while await server.report('app.pool.results_pending') != {f'app.pool.{name}': n for name, n in expected.items()}:
        pass
    for result_done in receipts:
        result_done()
    await pool.kill()
    with pytest.raises(looppool.PoolClosed):
        await waiter
    while (await server.report('app.pool.results_pending'))['app.pool.failed'] != 3:
        pass
    reporter.stop()
