'''Every example runs, and shows what it says.'''

import asyncio
import re
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest
import servers.envelopes
from command import ROOT, Command, run, session, started
from crawled_site import served_site
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

EXAMPLES = ROOT / 'examples'
SLOW = 10**13 - 29  # a prime: its worker tries three million divisors


def example(name: str, *args: str) -> list[str | Path]:
    return [sys.executable, EXAMPLES / name, *args]


def test_each_example_is_tested() -> None:
    source = Path(__file__).read_text()
    for file in EXAMPLES.glob('*.py'):
        assert f"example('{file.name}'" in source


async def test_fetch() -> None:
    code, output, errors = await run(*example('fetch.py'))
    assert (code, errors) == (0, '')
    assert len(re.findall(r'^worker [01]: http://127\.0\.0\.1:\d+/\w+ has \d+ bytes$', output, re.MULTILINE)) == 4


async def test_fetch_urls() -> None:
    with served_site() as site:
        urls = [f'{site.url}page/1', f'{site.url}status/500', f'{site.url}page/2']
        code, output, errors = await run(*example('fetch.py', *urls))
        assert code == 0 and output.count(' has ') == 2
        assert re.fullmatch(r'http\S+/status/500 failed: HTTP 500: .*\n', errors)
        assert site.agents == {'looppool example'}


async def test_crawl() -> None:
    code, output, errors = await run(*example('crawl.py'))
    assert code == 0
    assert len(re.findall(r'^ *[\d,]+ words  .+$', output, re.MULTILINE)) == 10
    assert re.search(r'^30 pages, 0 errors, \d+ pages a second$', output, re.MULTILINE)
    assert '30 pages, ' in errors and 'Traceback' not in errors


async def test_stateful() -> None:
    code, output, errors = await run(*example('stateful.py'))
    assert code == 0 and 'Traceback' not in errors
    first, killed, second, third = output.splitlines()
    assert first.startswith('Turin has 841,000 people') and second.startswith('Turin has 841,000 people')
    assert third.startswith('Turin has 0 people')
    victim = first.split()[-1]
    assert victim in killed and victim not in second


async def test_long_call() -> None:
    code, output, errors = await run(*example('long_call.py'))
    assert (code, errors) == (0, '')
    *lines, last = output.splitlines()
    worker = last.removeprefix('worker 0 is process ').removesuffix(', 0 restarts')
    assert lines == [
        f'first is at 1 in process {worker}',
        f'second is at 1 in process {worker}',
        f'worker 0 is process {worker}',
        'run_away has run too long',
        f'first is at 2 in process {worker}',
        f'second is at 2 in process {worker}',
    ]
    assert worker.isdigit()


async def test_actors() -> None:
    code, output, errors = await run(*example('actors.py'))
    assert (code, errors) == (0, '')
    assert output.splitlines() == [
        'rally: left right left right left right',
        "readings: {'north': 2000, 'south': 2000}",
        'total after north: 10',
        'total after south: 21',
        "ledger: {'north': 10, 'south': 11}",
    ]


async def test_json_codec() -> None:
    code, output, errors = await run(*example('json_codec.py'))
    assert (code, errors) == (0, '')
    assert output.splitlines() == [
        '{"type": "Order", "item": "tea", "amount": 2}',
        "Invoice(order=Order(item='tea', amount=2), cents=700)",
        "{'tea'} is nothing to be put",
        '(1, 2)',
    ]


async def test_elastic() -> None:
    code, output, errors = await run(*example('elastic.py'))
    assert (code, errors) == (0, '')
    lines = output.splitlines()
    sizes = [int(line.split()[-1]) for line in lines if line.startswith('the size of the pool is')]
    # Only how far it grew depends on how fast the machine starts workers.
    most = max(sizes)
    assert sizes == [*range(2, most + 1), *range(most - 1, 0, -1)] and most in (2, 3, 4)
    started = [name for name in ('0', 'ledger', '1', '2', '3') if f'worker {name} is ready' in lines]
    assert started == ['0', 'ledger', '1', '2', '3'][: most + 1]
    assert {f'worker {number} has left' for number in range(1, most)} <= set(lines)
    assert re.search(r'^60 pages by [1-4] workers$', output, re.MULTILINE)
    told = [line for line in lines if line.startswith(('entry', 'worker 0, leased'))]
    assert told == ['entry 1 of the ledger: 60 pages', 'worker 0, leased, has used some CPU time']


async def test_instrumented() -> None:
    with servers.envelopes.run() as sentry, socket.socket(type=socket.SOCK_DGRAM) as statsd:
        statsd.bind(('127.0.0.1', 0))
        statsd.setblocking(False)
        env = {'STATSD_HOST': '127.0.0.1', 'STATSD_PORT': str(statsd.getsockname()[1]), 'SENTRY_DSN': sentry.dsn}
        async with started(*example('instrumented.py'), **env) as command:
            while '+0.20' not in await command.line():
                pass
            titles = {' '.join(psutil.Process(pid).cmdline()).strip() for pid in session(command.process.pid)}
            command.process.terminate()
            assert await command.ended() == 0
        gauges = set(received(statsd))
    assert '0 failed: ZeroDivisionError' in command.output
    assert {'instrumented parent', 'instrumented worker 0', 'instrumented worker 1'} <= titles
    assert {f'instrumented.worker.{n}.{gauge}' for n in (0, 1) for gauge in ('cpu', 'rss', 'ioloop.lag')} <= gauges
    event = sentry.events[0]
    assert event['exception']['values'][0]['type'] == 'ZeroDivisionError'
    assert event['tags']['worker'] in ('0', '1')


def received(statsd: socket.socket) -> list[str]:
    '''The names of the gauges that a socket has received.'''
    names = []
    while True:
        try:
            names += [line.partition(':')[0] for line in statsd.recv(1 << 16).decode().split('\n')]
        except BlockingIOError:
            return names


async def ask(url: str, number: int) -> HTTPResponse:
    http = AsyncHTTPClient(force_instance=True, max_clients=1)
    try:
        return await http.fetch(f'{url}factors/{number}', raise_error=False)
    finally:
        http.close()


async def url_of(command: Command) -> str:
    return (await command.line()).split()[-1]


async def test_web_app_answers() -> None:
    async with started(*example('web_app.py', '0')) as command:
        url = await url_of(command)
        answer = await ask(url, 360)
        assert answer.code == 200 and answer.body == b'{"number": 360, "factors": [2, 2, 2, 3, 3, 5]}'
        assert (await ask(url, 0)).code == 404
        command.process.send_signal(signal.SIGTERM)
        assert await command.ended() == 0
        assert command.errors.startswith('404 GET /factors/0') and command.errors.count('\n') == 1


async def test_web_app_is_full() -> None:
    async with started(*example('web_app.py', '0')) as command:
        url = await url_of(command)
        answers = await asyncio.gather(*(ask(url, SLOW) for _ in range(60)))
        codes = [answer.code for answer in answers]
        assert set(codes) == {200, 503} and codes.count(200) >= 16
        full = next(answer for answer in answers if answer.code == 503)
        assert full.body == b'{"error": "Full"}' and full.headers['Retry-After'] == '1'
        assert (await ask(url, 6)).code == 200
        command.process.send_signal(signal.SIGTERM)
        assert await command.ended() == 0


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
async def test_web_app_drains(signum: signal.Signals) -> None:
    '''What was accepted before the signal is answered, and what comes after it is refused.'''
    async with started(*example('web_app.py', '0')) as command:
        url = await url_of(command)
        asked = [asyncio.create_task(ask(url, SLOW)) for _ in range(8)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        command.signal_group(signum)
        answers = await asyncio.gather(*asked)
        assert [answer.code for answer in answers] == [200] * 8
        assert await command.ended() == 0
        assert 'Traceback' not in command.errors
