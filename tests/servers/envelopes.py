'''A plain HTTP server that takes Sentry's envelopes, for tests that don't need a whole Sentry.'''

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ['Envelopes', 'run']


class Envelopes:
    '''What has arrived.'''

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.events: list[dict[str, Any]] = []
        # Cleared, it keeps every client waiting for its answer.
        self.answering = threading.Event()
        self.answering.set()

    def take(self, body: bytes) -> None:
        while body:
            header, body = _line(body)
            if 'type' not in header:
                continue
            # A length is optional: without one the item is one line.
            end = header.get('length', body.find(b'\n'))
            if header['type'] == 'event':
                self.events.append(json.loads(body[:end]))
            body = body[end:].removeprefix(b'\n')


def _line(body: bytes) -> tuple[dict[str, Any], bytes]:
    line, _, rest = body.partition(b'\n')
    return json.loads(line), rest


@contextmanager
def run() -> Iterator[Envelopes]:
    '''Run a server.'''

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers['Content-Length']))
            if self.headers['Content-Encoding'] == 'gzip':
                body = gzip.decompress(body)
            envelopes.answering.wait(30)
            envelopes.take(body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        envelopes = Envelopes(f'http://key@127.0.0.1:{server.server_port}/1')
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        try:
            yield envelopes
        finally:
            envelopes.answering.set()
            server.shutdown()
            thread.join()
