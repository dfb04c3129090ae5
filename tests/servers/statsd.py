'''The reference statsd server (npm's `statsd`), with its UDP port for gauges and its management port for questions.'''

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import find, running

__all__ = ['Statsd', 'run']

HOST = '127.0.0.1'


class Statsd:
    '''A running server.'''

    def __init__(self, port: int, management_port: int) -> None:
        self.host = HOST
        self.port = port
        self._management_port = management_port

    def gauges(self) -> dict[str, float]:
        '''The gauges that it has received, by name.'''
        return {name: float(value) for name, value in re.findall(r"'?([\w.-]+)'?: (-?[\d.e+-]+)", self._ask('gauges'))}

    def wait_for(self, *names: str, timeout: float = 20.0) -> dict[str, float]:
        '''The gauges, once all of `names` are among them.'''
        deadline = time.monotonic() + timeout
        while not set(names) <= (gauges := self.gauges()).keys():
            assert time.monotonic() < deadline, f'{set(names) - gauges.keys()} did not arrive in {timeout} s'
            time.sleep(0.02)
        return gauges

    def forget(self, names: str) -> None:
        '''Drop gauges, by the folder that they are in: `app.worker.*`.'''
        self._ask(f'delgauges {names}')

    def bad_lines(self) -> int:
        '''How many lines it did not understand.'''
        [count] = re.findall(r'bad_lines_seen: (\d+)', self._ask('stats'))
        return int(count)

    def _ask(self, command: str) -> str:
        with socket.create_connection((HOST, self._management_port), timeout=10) as connection:
            connection.sendall(command.encode() + b'\n')
            answer = b''
            while not answer.endswith(b'END\n\n'):
                part = connection.recv(65536)
                assert part, answer
                answer += part
        return answer.decode()


@contextmanager
def run(folder: Path) -> Iterator[Statsd]:
    '''Run a server that keeps its files in `folder`.'''
    program = find('node_modules/statsd/stats.js')
    server = Statsd(_free_port(socket.SOCK_DGRAM), _free_port(socket.SOCK_STREAM))
    config = {
        'address': HOST,
        'port': server.port,
        'mgmt_address': HOST,
        'mgmt_port': server._management_port,
        'backends': ['./backends/console'],
        'automaticConfigReload': False,
    }
    (folder / 'statsd.json').write_text(json.dumps(config))
    log = folder / 'statsd.log'
    with running(['node', str(program), str(folder / 'statsd.json')], log) as process:
        deadline = time.monotonic() + 30
        while True:
            try:
                server._ask('stats')
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        yield server


def _free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
