'''Fetch pages in a pool of workers, each with its own Tornado IO loop.

    python fetch.py URL ...

Without a URL it fetches a few pages that it serves itself.
'''

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

import looppool


class FetchWorker(looppool.Worker[str, str]):
    '''Lives in a worker process, with the process's IO loop.'''

    def _initialise(self, user_agent: str) -> None:
        self._http = AsyncHTTPClient(defaults={'user_agent': user_agent})

    @looppool.task_done
    async def _process_message(self, url: str) -> None:
        response = await self._http.fetch(url)
        await self._put(f'worker {self._number}: {url} has {len(response.body)} bytes')


@looppool.task_done
def process_message(result: str, result_done: Callable[[], None]) -> None:
    print(result)


def process_failure(url: str, error: BaseException) -> None:
    print(f'{url} failed: {error}', file=sys.stderr)


async def fetch(urls: list[str]) -> None:
    pool = looppool.Pool(pool_size=2, worker_class=FetchWorker, options={'user_agent': 'looppool example'})
    pool.process_message = process_message
    pool.process_failure = process_failure
    async with pool:  # starts the workers; at the end every accepted task is finished, then they stop
        for url in urls:
            await pool.put(url)  # waits while the workers have as many as they may have


class Greeting(RequestHandler):
    def get(self, name: str) -> None:
        self.write(f'<p>Hello, {name}!</p>')


@contextmanager
def own_pages() -> Iterator[list[str]]:
    sockets = bind_sockets(0, '127.0.0.1')
    server = HTTPServer(Application([('/(.*)', Greeting)]))
    server.add_sockets(sockets)
    port = sockets[0].getsockname()[1]
    yield [f'http://127.0.0.1:{port}/{name}' for name in ('Ada', 'Barbara', 'Grace', 'Radia')]
    server.stop()


async def main(urls: list[str]) -> None:
    if urls:
        await fetch(urls)
    else:
        with own_pages() as urls:
            await fetch(urls)


asyncio.run(main(sys.argv[1:]))
