'''The documentation of the standard library, as a site: complete, without side effects, and without secrets.'''

import asyncio
import re
import sys
import urllib.request
from html import unescape

import psutil
import pytest
from conftest import LogGuard
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPResponse

from looppool import docsite


def linked(page: str) -> set[str]:
    '''The modules that a page links to.'''
    return {unescape(name) for name in re.findall(r'href="([\w.]+)\.html', page)}


async def fetch(*paths: str) -> list[HTTPResponse]:
    '''Get pages from a site that is really served.'''
    http = AsyncHTTPClient(force_instance=True)
    try:
        async with docsite.serve(processes=1) as url:
            return [await http.fetch(url + path, raise_error=False) for path in paths]
    finally:
        http.close()


def test_index() -> None:
    names = linked(docsite.index_page())
    assert len(names) > 150
    assert {'os', 'asyncio', 'string', 'sys'} <= names
    assert not any(name.startswith('_') for name in names)


def test_module() -> None:
    page = docsite.module_page('json')
    assert page is not None and 'encode' in page
    assert {'json.decoder', 'json.encoder'} <= linked(page)


@pytest.mark.parametrize('name', ['antigravity', 'this', 'idlelib.idle', 'unittest.test', 'json.__main__', '__main__'])
def test_not_imported(name: str) -> None:
    before = set(sys.modules)
    page = docsite.module_page(name)
    assert page is not None and 'is not imported here' in page
    assert name in before or name not in sys.modules


@pytest.mark.parametrize('name', ['', '.', 'nosuch', 'looppool', 'tornado.web', 'os.nosuch', 'json..decoder', 'json.'])
def test_not_there(name: str) -> None:
    page = docsite.module_page(name)
    assert page is None or 'is not for this machine' in page


def test_not_for_this_machine() -> None:
    page = docsite.module_page('asyncio.windows_events')
    assert page is not None and 'is not for this machine' in page


async def test_served() -> None:
    index, module, missing, outside = await fetch('', 'os.path.html', 'nosuch.html', '../etc/passwd')
    assert index.code == module.code == 200 and missing.code == outside.code == 404
    assert index.headers['Content-Type'].startswith('text/html')
    assert b'basename' in module.body


async def test_environment_stays_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LOOPPOOL_TEST_SECRET', 'swordfish')
    for page in await fetch('os.html', 'posix.html'):
        assert page.code == 200 and b'environ' in page.body
        assert b'swordfish' not in page.body and b'LOOPPOOL_TEST_SECRET' not in page.body


async def test_nothing_reaches_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    await fetch('rlcompleter.html', 'readline.html', 'this.html')
    assert capfd.readouterr() == ('', '')


async def test_only_this_machine_is_served() -> None:
    async with docsite.serve(processes=1) as url:
        assert re.fullmatch(r'http://127\.0\.0\.1:\d+/', url)
        body = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())
        assert b'asyncio.html' in body


async def test_a_process_that_dies_is_replaced_on_the_same_port(logs: LogGuard) -> None:
    deaths = logs.expect('killed by SIGKILL')
    async with docsite.serve(processes=1) as url:
        victim = listener(int(url.split(':')[-1].strip('/')))
        victim.kill()
        http = AsyncHTTPClient(force_instance=True)
        try:
            async with asyncio.timeout(20):
                while not await answers(http, url):
                    await asyncio.sleep(0.02)  # nobody tells when another process listens
        finally:
            http.close()
    assert len(deaths) == 1


def listener(port: int) -> psutil.Process:
    '''The descendant that listens on a port.'''
    for process in psutil.Process().children(recursive=True):
        if any(c.laddr.port == port and c.status == 'LISTEN' for c in process.net_connections()):
            return process
    raise AssertionError('nobody listens')


async def answers(http: AsyncHTTPClient, url: str) -> bool:
    try:
        return (await http.fetch(url)).code == 200
    except (HTTPClientError, OSError):
        return False
