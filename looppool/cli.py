'''The command `looppool`: ``looppool demo [URL]`` crawls a site with a pool, and says what that took.

Standard output carries the summary and nothing else; the progress bar and every message go to standard error. The
exit code is 0 when pages were read, 1 when none could be or the pool failed, 2 for bad arguments, and 128 + the
number of the signal that ended it (130 for Ctrl-C).
'''

import argparse
import asyncio
import dataclasses
import importlib
import ipaddress
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .crawl import Crawl, Report

__all__ = ['main']

POLITE_DELAY: Final = 0.2  # seconds between two pages of a site that isn't on this machine
ERRORS_SHOWN: Final = 5

DESCRIPTION: Final = '''\
Crawl a site with a pool: its pages are fetched and parsed in worker processes, each with its own IO loop. Without a
URL, the site is the documentation of Python's standard library, served by this command itself on a loopback port.
Ctrl-C ends the crawl and shows what was found so far.
'''


def main(argv: Sequence[str] | None = None) -> int:
    '''Run the command; returns its exit code.

    :param argv: the arguments; default: those of the process.
    '''
    try:
        arguments = parse(argv)
        return asyncio.run(demo(arguments))
    except KeyboardInterrupt:  # before the pool listens to signals, or after it
        return 128 + signal.SIGINT


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    '''The arguments, checked; exits with code 2 and a message if they can't be.'''
    parser = argparse.ArgumentParser(prog='looppool', description='A pool of worker processes, each with an IO loop.')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    command = commands.add_parser('demo', help='crawl a site with a pool', description=DESCRIPTION)
    add = command.add_argument
    add('url', metavar='URL', nargs='?', type=_url, help='where to start; only this site is crawled')
    add('--workers', metavar='N', type=_count, help='worker processes (default: one per usable CPU)')
    add('--pages', metavar='N', type=_count, default=500, help='visit at most this many pages (default: %(default)s)')
    add('--concurrency', metavar='N', type=_count, default=8, help='pages under way at once (default: %(default)s)')
    add('--delay', metavar='SECONDS', type=_seconds,
        help=f'pause between two pages (default: {POLITE_DELAY}, on this machine none; robots.txt may ask for more)')
    add('--context', choices=('fork', 'forkserver', 'spawn'), help="start method of the workers (default: the pool's)")
    add('--json', metavar='FILE', type=_writable, help='write everything found to this file, too')
    add('--no-progress', action='store_true', help='no progress bar')
    add('-q', '--quiet', action='store_true', help='no progress bar and no summary, only error messages')
    return parser.parse_args(argv)


def _url(text: str) -> str:
    from .page import normalise

    url = normalise(text)
    if url is None:
        raise argparse.ArgumentTypeError(f'{text!r} is no http:// or https:// URL')
    return url


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no number from 1')
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is no number of seconds')
    return seconds


def _writable(text: str) -> str:
    folder = os.path.dirname(text) or '.'
    if os.path.isdir(text) or not os.access(text if os.path.exists(text) else folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} can't be written")
    return text


async def demo(arguments: argparse.Namespace) -> int:
    '''Crawl as the arguments say and tell about it; returns the exit code.'''
    from . import LoopPoolError, docsite
    from .crawl import SiteError

    crawl, failure = None, ''
    try:
        async with AsyncExitStack() as stack:
            url = arguments.url or await stack.enter_async_context(docsite.serve())
            on_change = stack.enter_context(progress(arguments))
            crawl = make_crawl(url, arguments, on_change)
            await crawl.run()
    except (SiteError, LoopPoolError) as error:
        failure = str(error)
    if crawl is None:
        say(failure)
        return 1
    return tell(crawl.report, failure, arguments)


def make_crawl(url: str, arguments: argparse.Namespace, on_change: 'Callable[[Report], None]') -> 'Crawl':
    from .crawl import Crawl

    return Crawl(
        url,
        pages=arguments.pages,
        concurrency=arguments.concurrency,
        delay=polite_delay(url) if arguments.delay is None else arguments.delay,
        workers=arguments.workers,
        context=arguments.context,
        on_change=on_change,
    )


def polite_delay(url: str) -> float:
    '''The pause that a site should be given if nobody says otherwise, in seconds.'''
    host = urlsplit(url).hostname or ''
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == 'localhost'
    return 0.0 if local else POLITE_DELAY


@contextmanager
def progress(arguments: argparse.Namespace) -> 'Iterator[Callable[[Report], None]]':
    '''A progress bar on standard error, if it is wanted and tqdm is there; gives the function that moves it.'''
    tqdm = None if arguments.quiet or arguments.no_progress else _tqdm()
    if tqdm is None:
        yield lambda report: None
        return
    with tqdm(total=None, desc='crawling', unit=' pages', file=sys.stderr, dynamic_ncols=True) as bar:

        def move(report: 'Report') -> None:
            bar.total = min(arguments.pages, report.known)
            bar.set_postfix(errors=len(report.errors), refresh=False)
            bar.update(report.visited - bar.n)

        yield move


def _tqdm() -> Any:
    try:
        tqdm = importlib.import_module('tqdm').tqdm
    except ImportError:
        say("no progress bar, because tqdm is missing: pip install 'looppool[demo]'")
        return None
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is shared between processes, a semaphore of the system
    tqdm.monitor_interval = 0  # no thread: the pool may fork
    return tqdm


def tell(report: 'Report', failure: str, arguments: argparse.Namespace) -> int:
    '''Say how the crawl ended, on paper and in the exit code.'''
    if not (failure or report.pages or report.signal):
        failure = f'no page could be read; {report.errors[0].error if report.errors else "only redirects"}'
    if (report.visited or report.signal) and not arguments.quiet:
        show(summary(report))
    problems = [failure, save(as_json(report, failure), arguments.json) if arguments.json else '']
    for problem in filter(None, problems):
        say(problem)
    return 128 + report.signal if report.signal else int(any(problems))


def show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # who read it has gone; without this Python would try again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def save(found: dict[str, Any], path: str) -> str:
    '''Write what was found to a file; says why it could not.'''
    try:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(found, file, indent=2)
            file.write('\n')
    except OSError as error:
        return f"{path} can't be written: {error.strerror}"
    return ''


def say(message: str) -> None:
    print(f'looppool: {plain(message)}', file=sys.stderr, flush=True)


def plain(text: str) -> str:
    '''What a server says, without anything that a terminal would obey.'''
    return ''.join(char if '\x20' <= char <= '\x7e' or char == '\n' else '?' for char in text)


def summary(report: 'Report') -> str:
    '''The report as a table to read.'''
    end = f', ended by {signal.Signals(report.signal).name}' if report.signal else ''
    return '\n'.join((
        f'{report.url} crawled in {report.seconds:.1f} s{end}',
        '',
        *_totals(report),
        '',
        *_workers(report),
        *_errors(report),
    ))


def _totals(report: 'Report') -> 'Iterator[str]':
    rows = (
        ('pages', len(report.pages), f'{report.rate:.1f} pages/s, {report.known} known'),
        ('errors', len(report.errors), ''),
        ('redirects', report.redirects, ''),
        ('disallowed', report.disallowed, 'by robots.txt'),
        ('words', report.words, ''),
        ('links', report.links, ''),
        ('restarts', report.restarts, 'of workers'),
    )
    for name, number, remark in rows:
        yield f'{name:10} {number:>12,}  {remark}'.rstrip()


def _workers(report: 'Report') -> 'Iterator[str]':
    yield f'{"process":8} {"pid":>9} {"pages":>8} {"errors":>7} {"CPU":>9} {"RSS":>9}'
    for worker in sorted(report.workers.values(), key=lambda worker: worker.number):
        yield _usage(f'worker {worker.number}', worker.pid, worker.pages, worker.errors, worker.cpu, worker.rss)
    yield _usage('parent', os.getpid(), '', '', report.cpu, report.rss)


def _usage(name: str, pid: int, pages: int | str, errors: int | str, cpu: float, rss: int) -> str:
    return f'{name:8} {pid:9} {pages:>8} {errors:>7} {cpu:7.2f} s {rss / (1 << 20):5.0f} MiB'


def _errors(report: 'Report') -> 'Iterator[str]':
    if report.errors:
        yield ''
    for page in report.errors[:ERRORS_SHOWN]:
        yield plain(f'{page.url}: {page.error}')
    if len(report.errors) > ERRORS_SHOWN:
        yield f'and {len(report.errors) - ERRORS_SHOWN} more'


def as_json(report: 'Report', failure: str) -> dict[str, Any]:
    '''The report for a program: its fields, what the table adds to them, and every page.'''
    found = dataclasses.asdict(report)
    for page in found['pages'] + found['errors']:
        del page['links']
    return found | {
        'workers': list(found['workers'].values()),
        'words': report.words,
        'rate': report.rate,
        'failure': failure or None,
    }
