'''Serves the documentation that every Python carries: pydoc's pages of the standard library, on a loopback port.

1. Pages are made when they are asked for, in processes of their own, and kept there: the caller's loop stays free.
2. Only modules of the standard library are imported, and none that acts when it is imported.
3. A module may still do what it likes when imported. So in those processes standard output leads nowhere and the
   environment is empty: no display, no browser, and no secret of the user on the page of `os`.
4. All processes listen on one port, which the kernel balances. The caller holds the port without listening on it, so
   a process that replaces another finds it free.
'''

import contextlib
import functools
import html
import importlib
import importlib.util
import inspect
import os
import pydoc
import socket
import sys
import warnings
from collections.abc import AsyncIterator
from typing import Final

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

import looppool

__all__ = ['DocsWorker', 'index_page', 'make_app', 'module_page', 'serve']

HOST: Final = '127.0.0.1'
PROCESSES: Final = 2  # a page takes them about as long as it takes a crawler to read it

# Names, or parts of dotted ones. antigravity opens a browser, this prints, and a __main__ is a program; the demos and
# the tests open windows and more. idlelib and lib2to3 drag in a desktop program and a compiler of their own. distutils
# may be somebody else's. What starts with _test is there to crash.
_NOT_IMPORTED: Final = frozenset(
    ('__main__', 'antigravity', 'distutils', 'idlelib', 'lib2to3', 'test', 'this', 'turtledemo')
)


def index_page() -> str:
    '''The page that links to all public modules of the standard library which this Python has.'''
    names = sorted(name for name in sys.stdlib_module_names if not name.startswith('_') and _is_here(name))
    items = ''.join(f'<li><a href="{name}.html">{name}</a></li>\n' for name in names)
    return pydoc.html.page('The standard library', f'<h1>The standard library</h1>\n<ul>\n{items}</ul>\n')


@functools.lru_cache(maxsize=2048)  # more than there are modules
def module_page(name: str) -> str | None:
    '''The documentation of one module, or ``None`` if it isn't one of the standard library.'''
    if name != '__main__' and name.partition('.')[0] not in sys.stdlib_module_names:
        return None
    if _acts_when_imported(name):
        return _note(name, 'is not imported here.')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            module = importlib.import_module(name)
            return pydoc.html.page(pydoc.describe(module), pydoc.html.document(module, name))
    except ModuleNotFoundError as error:
        return None if error.name == name else _note(name, f'is not for this machine: {error}')
    except (Exception, SystemExit) as error:  # whatever a module says that is made for another system
        return _note(name, f'is not for this machine: {error}')


def _is_here(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that came without a spec; __main__ is one
        return False


def _acts_when_imported(name: str) -> bool:
    return not _NOT_IMPORTED.isdisjoint(name.split('.')) or name.startswith('_test')


def _note(name: str, text: str) -> str:
    return pydoc.html.page(name, f'<h1>{html.escape(name)}</h1>\n<p>{html.escape(f"{name} {text}")}</p>\n')


class _IndexHandler(RequestHandler):
    def get(self) -> None:
        self.finish(index_page())


class _ModuleHandler(RequestHandler):
    def get(self, name: str) -> None:
        page = module_page(name)
        if page is None:
            raise HTTPError(404)
        self.finish(page.encode('utf-8', 'xmlcharrefreplace'))


def make_app() -> Application:
    '''The site as a Tornado application; it logs nothing.'''
    return Application(
        [('/', _IndexHandler), (r'/(\w[\w.]*)\.html', _ModuleHandler)],
        log_function=lambda handler: None,
    )


class DocsWorker(looppool.Worker[None, None]):
    '''A worker that takes no tasks: it serves the site on ``port``.'''

    def _initialise(self, port: int) -> None:
        _leave_no_traces()
        # pydoc looks for a comment above whatever has no docstring, and inspect parses the whole file for each: three
        # quarters of all the time. This process does nothing else that wants comments.
        inspect.getcomments = _no_comments
        self._server = HTTPServer(make_app())
        self._server.add_sockets(bind_sockets(port, HOST, socket.AF_INET, reuse_port=True))

    async def _finalise(self) -> None:
        self._server.stop()
        await self._server.close_all_connections()


def _no_comments(object: object) -> str | None:
    return None


def _leave_no_traces() -> None:
    '''Rule 3.'''
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    os.environ.clear()
    getattr(sys.modules['posix'], 'environ', {}).clear()


@contextlib.asynccontextmanager
async def serve(processes: int = PROCESSES) -> AsyncIterator[str]:
    '''Serve the site while the context is open; gives its URL.

    :param processes: how many serve it.
    :raises looppool.WorkerStartError: they could not start.
    '''
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((HOST, 0))
        port: int = held.getsockname()[1]
        async with looppool.Pool(
            pool_size=processes, worker_class=DocsWorker, options={'port': port}, name='docs'
        ):
            yield f'http://{HOST}:{port}/'
