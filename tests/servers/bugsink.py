'''Bugsink (PyPI's `bugsink`), a server of Sentry's protocol, and its HTTP interface to ask what it received.'''

import json
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from . import find, running

__all__ = ['Bugsink', 'Project', 'run']

HOST = '127.0.0.1'

# Digested while the client waits for its answer: what a worker has flushed can be asked for at once. PHONEHOME off:
# nothing leaves the machine.
SETTINGS = '''\
from bugsink.settings.default import *
SECRET_KEY = {secret!r}
DATABASES['default']['NAME'] = {folder!r} + '/bugsink.sqlite3'
DATABASES['snappea']['NAME'] = {folder!r} + '/snappea.sqlite3'
SNAPPEA = {{'TASK_ALWAYS_EAGER': True}}
EMAIL_BACKEND = 'django.core.mail.backends.dummy.EmailBackend'
BUGSINK = {{'BASE_URL': {url!r}, 'PHONEHOME': False, 'INGEST_STORE_BASE_DIR': {folder!r} + '/ingest'}}
'''


class Project:
    '''A project of a running server: where errors of one test go.'''

    def __init__(self, server: 'Bugsink', number: int, dsn: str) -> None:
        self._server = server
        self._number = number
        self.dsn = dsn

    def events(self) -> list[dict[str, Any]]:
        '''Every event that the project has received, oldest first: the data as it was sent.'''
        issues = self._server.ask(f'issues/?project={self._number}')['results']
        events = [event for issue in issues for event in self._server.ask(f'events/?issue={issue["id"]}')['results']]
        events.sort(key=lambda event: str(event['ingested_at']))
        return [self._server.ask(f'events/{event["id"]}/')['data'] for event in events]

    def issues(self) -> list[tuple[Any, ...]]:
        '''The project's issues as its page lists them: type, value and number of events.'''
        fields = ('calculated_type', 'calculated_value', 'digested_event_count')
        issues = self._server.ask(f'issues/?project={self._number}')['results']
        return [tuple(issue[field] for field in fields) for issue in issues]


class Bugsink:
    '''A running server.'''

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        # The environment's proxies are not for the loopback interface.
        self._opener = build_opener(ProxyHandler({}))

    def project(self) -> Project:
        '''A new project, with nothing in it.'''
        name = secrets.token_hex(8)
        team = self.ask('teams/', {'name': name})
        self.ask('projects/', {'name': name, 'team': team['id']})
        [project] = self.ask(f'projects/?team={team["id"]}')['results']
        return Project(self, project['id'], project['dsn'])

    def ask(self, path: str, body: object = None) -> Any:
        '''Ask its HTTP interface, with POST if there is a body.'''
        request = Request(
            f'{self._url}/api/canonical/0/{path}',
            None if body is None else json.dumps(body).encode(),
            {'Authorization': f'Bearer {self._token}', 'Content-Type': 'application/json'},
        )
        with self._opener.open(request, timeout=30) as answer:
            return json.load(answer)


@contextmanager
def run(folder: Path) -> Iterator[Bugsink]:
    '''Run a server that keeps its files in `folder`.'''
    programs = find('bugsink/bin')
    # Bound here and inherited: no other process can take the port, and a client waits in its backlog until it's ready.
    with socket.create_server((HOST, 0)) as listener:
        url = f'http://{HOST}:{listener.getsockname()[1]}'
        settings = SETTINGS.format(secret=secrets.token_hex(32), folder=str(folder), url=url)
        (folder / 'looppool_bugsink.py').write_text(settings)
        environment = {**os.environ, 'DJANGO_SETTINGS_MODULE': 'looppool_bugsink', 'PYTHONPATH': str(folder)}
        _manage(programs, environment, 'migrate', '--verbosity=0')
        token = _manage(programs, environment, 'create_auth_token').split()[-1]
        listener.set_inheritable(True)
        bind = f'--bind=fd://{listener.fileno()}'
        options = [bind, '--threads=4', '--graceful-timeout=1', '--no-control-socket']
        command = [f'{programs}/python', '-m', 'gunicorn', *options, 'bugsink.wsgi']
        log = folder / 'gunicorn.log'
        with running(command, log, cwd=folder, env=environment, pass_fds=[listener.fileno()]) as process:
            server = Bugsink(url, token)
            try:
                server.ask('projects/')
            except OSError:
                raise AssertionError(f'exit code {process.poll()}: {log.read_text()}') from None
            yield server


def _manage(programs: Path, environment: dict[str, str], *command: str) -> str:
    arguments = [f'{programs}/bugsink-manage', *command]
    return subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout
