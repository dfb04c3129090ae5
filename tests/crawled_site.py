'''A small real site to crawl: good pages, bad ones and traps, and a record of what was asked for.'''

import asyncio
import contextlib
import socket
from collections.abc import Iterator

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

PAGES = 20  # /page/0 … /page/19, each with links to the next two

INDEX = '''<!doctype html><html><head><title>Start</title></head><body><p>Welcome to the site</p>
<a href="/page/0">first</a> <a href="/page/0#again">again</a> <a href="http://elsewhere.invalid/">elsewhere</a>
</body></html>'''


class Site:
    '''The state of one served site.

    :ivar requests: the paths asked for, in order, without robots.txt.
    :ivar agents: the user agents seen.
    :ivar times: when each of the requests came, on the loop's clock.
    :ivar most_at_once: how many requests were open at once, at most.
    :ivar robots: the text of robots.txt, or ``None`` for 404, or an HTTP status to answer with.
    :ivar extra: links that the start page has besides.
    :ivar hold: while it is not set, pages wait for it; :ivar holding: is set once one does.
    :ivar gather: so many open requests set `hold`.
    '''

    def __init__(self) -> None:
        self.url = ''
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.times: list[float] = []
        self.open = 0
        self.most_at_once = 0
        self.gather = 1000
        self.robots: str | int | None = None
        self.extra: list[str] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.holding = asyncio.Event()
        self.server = HTTPServer(self._application())

    def _application(self) -> Application:
        handlers = [
            ('/robots.txt', Robots),
            ('/', Index),
            ('/page/([0-9]+)', Numbered),
            ('/status/([0-9]+)', Status),
            ('/redirect/(.*)', Redirect),
            ('/chain/([0-9]+)', Chain),
            ('/raw/(.*)', Raw),
        ]
        return Application(handlers, site=self, log_function=lambda handler: None)

    def count(self, path: str) -> int:
        return self.requests.count(path)


class Handler(RequestHandler):
    @property
    def site(self) -> Site:
        return self.settings['site']

    async def prepare(self) -> None:
        site = self.site
        site.requests.append(self.request.path)
        site.times.append(asyncio.get_running_loop().time())
        site.agents.add(self.request.headers['User-Agent'])
        site.open += 1
        site.most_at_once = max(site.open, site.most_at_once)
        if site.open >= site.gather:
            site.hold.set()
        if not site.hold.is_set():
            site.holding.set()
            await site.hold.wait()

    def on_finish(self) -> None:
        self.site.open -= 1


class Robots(RequestHandler):
    async def get(self) -> None:
        self.settings['site'].agents.add(self.request.headers['User-Agent'])
        robots = self.settings['site'].robots
        if not isinstance(robots, str):
            raise HTTPError(robots or 404)
        self.finish(robots)


class Index(Handler):
    def get(self) -> None:
        more = ''.join(f'<a href="{link}">x</a>' for link in self.site.extra)
        self.finish(INDEX.replace('</body>', f'{more}</body>'))


class Numbered(Handler):
    def get(self, text: str) -> None:
        number = int(text)
        if number >= PAGES:
            raise HTTPError(404)
        links = ''.join(f'<a href="{n}">{n}</a> ' for n in (number + 1, number + 2) if n < PAGES)
        self.finish(f'<title>Page {number}</title><p>three more words</p>{links}<a href="/">home</a>')


class Status(Handler):
    def get(self, code: str) -> None:
        raise HTTPError(int(code))


class Redirect(Handler):
    def get(self, target: str) -> None:
        self.redirect(target if ':' in target else f'/{target}')


class Chain(Handler):
    '''Redirects for ever, to another page each time.'''

    def get(self, number: str) -> None:
        self.redirect(f'/chain/{int(number) + 1}')


class Raw(Handler):
    def get(self, kind: str) -> None:
        if kind == 'pdf':
            self.set_header('Content-Type', 'application/pdf')
            self.finish(b'%PDF <a href="/page/not-a-link">')
        elif kind == 'big':
            self.finish('words ' * 1_000_000)
        elif kind == 'unknown-section':
            self.finish('<title>x</title><![unknown[section]]><p>')
        elif kind == 'cut':
            self._cut(b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\nshort')
        elif kind == 'nothing':
            self._cut(b'')
        else:
            raise HTTPError(404)

    def _cut(self, text: bytes) -> None:
        stream = self.detach()
        stream.write(text)
        stream.close()
        self.on_finish()


@contextlib.contextmanager
def served_site() -> Iterator[Site]:
    '''Serve a site on the running loop while the context is open.'''
    site = Site()
    sockets = bind_sockets(0, '127.0.0.1')
    site.server.add_sockets(sockets)
    site.url = f'http://127.0.0.1:{sockets[0].getsockname()[1]}/'
    try:
        yield site
    finally:
        site.hold.set()
        site.server.stop()


@contextlib.contextmanager
def dead_port() -> Iterator[str]:
    '''The URL of a port that nobody listens on, and nobody can take meanwhile.'''
    with socket.socket() as held:
        held.bind(('127.0.0.1', 0))
        yield f'http://127.0.0.1:{held.getsockname()[1]}/'
