'''Crawls one site with a pool: its workers fetch and parse the pages, the parent decides which one comes next.

1. A task is a URL, its result a `Visit`. Only the parent knows what was seen, so nothing is fetched twice.
2. The parent is polite for all workers: at most ``concurrency`` pages at once, one start every ``delay`` seconds
   (longer if the site's robots.txt says so), nothing that robots.txt forbids, no link marked ``nofollow``.
3. Workers follow no redirect: the parent treats its target like a link, so rules 1 and 2 hold for it too.
4. A page that fails counts as an error and the crawl goes on, until `UNREACHABLE_LIMIT` pages in a row got no answer.
5. SIGINT and SIGTERM end the crawl: what was found so far is in the report.
'''

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urljoin
from urllib.robotparser import RobotFileParser

import psutil
from tornado.httpclient import AsyncHTTPClient, HTTPClientError
from tornado.httputil import parse_response_start_line

import looppool
from looppool.page import Page, normalise, read_page, site_of, text_of

__all__ = ['Crawl', 'CrawlWorker', 'Frontier', 'Report', 'SiteError', 'Visit', 'WorkerReport']

USER_AGENT: Final = 'looppool-crawler'
MAX_PAGE: Final = 5 << 20  # bytes; text pages stay far below, what is larger is a download
MAX_REDIRECTS: Final = 5  # in a row; loops end by rule 1, endless chains by this
UNREACHABLE_LIMIT: Final = 10
REQUEST_TIMEOUT: Final = 20.0  # seconds for one page
STOP_TIMEOUT: Final = 1.0  # seconds that pages under way have to end after Ctrl-C


class SiteError(Exception):
    '''The site can't be crawled: it doesn't answer, or its robots.txt forbids it.'''


@dataclass(frozen=True, slots=True)
class Visit:
    '''A page, and who read it: number and pid of the worker, the CPU seconds and the memory (bytes) it uses so far.'''

    page: Page
    worker: int
    pid: int
    cpu: float
    rss: int


def usage() -> tuple[float, int]:
    '''The CPU seconds that this process has used so far, and its memory in bytes.'''
    process = psutil.Process()
    cpu = process.cpu_times()
    return cpu.user + cpu.system, process.memory_info().rss


class CrawlWorker(looppool.Worker[str, Visit]):
    '''Fetches and parses; options: ``user_agent``, and ``concurrency`` (pages at once).'''

    def _initialise(self, user_agent: str, concurrency: int) -> None:
        self._http = AsyncHTTPClient(force_instance=True, max_clients=concurrency, max_body_size=MAX_PAGE)
        self._request: dict[str, Any] = {
            'user_agent': user_agent,
            'headers': {'Accept': 'text/html'},
            'connect_timeout': REQUEST_TIMEOUT,
            'request_timeout': REQUEST_TIMEOUT,
            'follow_redirects': False,
        }

    @looppool.task_done
    async def _process_message(self, url: str) -> None:
        page = await self._visit(url)
        self._put_nowait(Visit(page, self._number, os.getpid(), *usage()))

    async def _visit(self, url: str) -> Page:
        head: list[str] = []
        try:
            answer = await self._http.fetch(url, raise_error=False, header_callback=head.append, **self._request)
        except (HTTPClientError, OSError) as error:
            return cut_off(url, head) if head else Page(url, error=reason_of(error))
        return read_page(url, answer.code, answer.reason, answer.headers, answer.body)

    async def _finalise(self) -> None:
        self._http.close()


def cut_off(url: str, head: list[str]) -> Page:
    '''A page whose headers came, but not the whole of its body.'''
    status = parse_response_start_line(head[0].rstrip()).code
    return Page(url, status, error=f'cut off, or larger than {MAX_PAGE >> 20} MiB')


def reason_of(error: Exception) -> str:
    '''One line that says why a request got no answer.'''
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


@dataclass(slots=True)
class WorkerReport:
    '''What one worker did, and what it cost: CPU seconds so far, memory in bytes at its last page.'''

    number: int
    pid: int = 0
    pages: int = 0
    errors: int = 0
    cpu: float = 0.0
    rss: int = 0

    def add(self, visit: Visit) -> None:
        self.pid, self.cpu, self.rss = visit.pid, visit.cpu, visit.rss
        self.pages += not visit.page.error and not visit.page.redirect
        self.errors += bool(visit.page.error)


@dataclass(slots=True)
class Report:
    '''The crawl so far.

    :ivar pages: what was read, and :ivar errors: what could not be, in the order of arrival and without links.
    :ivar links: how many were found on all pages.
    :ivar known: how many pages of the site are known, read or not.
    :ivar disallowed: how many of the site's links its robots.txt forbids.
    :ivar seconds: since the start of the crawl.
    :ivar cpu: CPU seconds that the parent has used, and :ivar rss: its memory in bytes.
    :ivar signal: number of the signal that ended the crawl, or ``None``.
    :ivar restarts: how many workers had to be replaced.
    '''

    url: str
    pages: list[Page] = field(default_factory=list)
    errors: list[Page] = field(default_factory=list)
    workers: dict[int, WorkerReport] = field(default_factory=dict)
    links: int = 0
    known: int = 0
    redirects: int = 0
    disallowed: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    rss: int = 0
    restarts: int = 0
    signal: int | None = None

    @property
    def visited(self) -> int:
        return len(self.pages) + len(self.errors)

    @property
    def words(self) -> int:
        return sum(page.words for page in self.pages)

    @property
    def rate(self) -> float:
        '''Pages a second.'''
        return len(self.pages) / self.seconds if self.seconds else 0.0

    def add(self, page: Page) -> None:
        if page.redirect:
            self.redirects += 1
            return
        self.links += len(page.links)
        (self.errors if page.error else self.pages).append(replace(page, links=()))


class Frontier:
    '''Which URLs of the site are still to be visited. It forgets none that it has seen, so each comes once.'''

    def __init__(self, start: str) -> None:
        self._sites = {site_of(start)}
        self._seen: set[str] = set()
        self._waiting: deque[str] = deque()
        self._hops: dict[str, int] = {}  # redirects in a row that led to a URL
        self.offer(start)

    def __len__(self) -> int:
        return len(self._waiting)

    def pop(self) -> str:
        return self._waiting.popleft()

    def offer(self, url: str) -> None:
        if url not in self._seen and site_of(url) in self._sites:
            self._seen.add(url)
            self._waiting.append(url)

    def redirect(self, url: str, target: str, *, moves: bool) -> bool:
        '''Follow a redirect, ``moves``: the whole site lives elsewhere. Returns whether the chain may go on.'''
        hops = self._hops.pop(url, 0) + 1
        if hops > MAX_REDIRECTS:
            return False
        if moves:
            self._sites.add(site_of(target))
        self._hops[target] = hops
        self.offer(target)
        return True


class Crawl:
    '''One crawl of one site.

    :param url: where it starts; only pages of the same site (host and port) are visited.
    :param pages: how many pages to visit at most; redirects don't count.
    :param concurrency: pages under way at once, over all workers.
    :param delay: seconds between the starts of two pages.
    :param workers: how many; default: the usable CPUs.
    :param context: start method of the workers, as for `looppool.Pool`.
    :param user_agent: sent with every request, and looked up in robots.txt.
    :param on_change: called with the report whenever a page has arrived.
    :raises ValueError: ``url`` is not one that can be fetched over HTTP.
    '''

    def __init__(
        self,
        url: str,
        *,
        pages: int = 500,
        concurrency: int = 8,
        delay: float = 0.0,
        workers: int | None = None,
        context: str | None = None,
        user_agent: str = USER_AGENT,
        on_change: Callable[[Report], None] = lambda report: None,
    ) -> None:
        start = normalise(url)
        if start is None:
            raise ValueError(f'{url!r} is no http:// or https:// URL')
        self.report = Report(start)
        self._limit = pages
        self._concurrency = concurrency
        self._delay = delay
        self._workers = workers
        self._context = context
        self._user_agent = user_agent
        self._on_change = on_change
        self._robots: dict[str, RobotFileParser] = {}
        self._frontier = Frontier(start)
        self._open: set[str] = set()  # put, no result yet
        self._unreachable = 0  # pages in a row without an answer
        self._next_start = 0.0  # on the monotonic clock
        self._changed = asyncio.Event()

    async def run(self) -> Report:
        '''Crawl until no page is left, the limit is reached or a signal comes.

        :raises SiteError: the site doesn't answer or forbids being crawled; `report` has what was read before.
        :raises looppool.LoopPoolError: the workers did not start, or died again and again.
        '''
        begun = time.monotonic()
        try:
            async with self._pool() as pool:
                await self._run(pool)
        finally:
            self.report.seconds = time.monotonic() - begun
            self.report.cpu, self.report.rss = usage()
        return self.report

    def _pool(self) -> looppool.Pool[str, Visit]:
        return looppool.Pool(
            pool_size=self._workers,
            worker_class=CrawlWorker,
            context=self._context,
            distribution='least_loaded',
            options={'user_agent': self._user_agent, 'concurrency': self._concurrency},
            name='crawl',
            retries=1,
            stop_timeout=STOP_TIMEOUT,
        )

    async def _run(self, pool: looppool.Pool[str, Visit]) -> None:
        pool.process_message = self._take
        pool.process_failure = self._fail
        pool.stop_on_signals(signal.SIGINT, signal.SIGTERM)
        feeding = asyncio.create_task(self._feed(pool))
        closing = asyncio.create_task(pool.join())
        try:
            await asyncio.wait([feeding, closing], return_when=asyncio.FIRST_COMPLETED)
            await pool.stop()  # returns at once if a signal has stopped it
            self.report.signal = await closing
        finally:
            feeding.cancel()  # after a signal it waits for results that will not come
            closing.cancel()
        self.report.restarts = pool.statistics().restarts
        await asyncio.wait([feeding])
        if not feeding.cancelled():
            feeding.result()

    async def _feed(self, pool: looppool.Pool[str, Visit]) -> None:
        with contextlib.suppress(looppool.PoolClosed, looppool.PoolBroken):  # join tells why
            while (url := await self._next()) is not None:
                self._open.add(url)
                await pool.put(url)

    async def _next(self) -> str | None:
        '''The next page to visit, as soon as it may be; ``None`` if there is none and will be none.'''
        while True:
            if self._unreachable >= UNREACHABLE_LIMIT:
                raise SiteError(f"{site_of(self.report.url)} doesn't answer any more")
            if self._frontier and self._may_start():
                url = self._frontier.pop()
                if await self._allowed(url):
                    return url
            elif not self._open:
                return None
            else:
                # No deadline: every page under way ends with a result or a failure, its request has a timeout.
                await self._changed.wait()
            self._changed.clear()

    def _may_start(self) -> bool:
        under_way = len(self._open)
        return under_way < self._concurrency and self.report.visited + under_way < self._limit

    async def _allowed(self, url: str) -> bool:
        '''Whether robots.txt allows the page; if so, waits until it is polite to fetch it.'''
        robots = await self._robots_of(url)
        if robots.can_fetch(self._user_agent, url):
            await self._pause(max(self._delay, float(robots.crawl_delay(self._user_agent) or 0)))
            return True
        if url == self.report.url:
            raise SiteError(f'the robots.txt of {site_of(url)} forbids {url}')
        self.report.disallowed += 1
        self._count_known()
        return False

    async def _pause(self, delay: float) -> None:
        now = time.monotonic()
        self._next_start = max(now, self._next_start)
        await asyncio.sleep(self._next_start - now)
        self._next_start += delay

    async def _robots_of(self, url: str) -> RobotFileParser:
        site = site_of(url)
        if site not in self._robots:
            self._robots[site] = await load_robots(url, self._user_agent)
        return self._robots[site]

    @looppool.task_done
    def _take(self, visit: Visit, result_done: Callable[[], None]) -> None:
        self.report.workers.setdefault(visit.worker, WorkerReport(visit.worker)).add(visit)
        page = visit.page
        self._unreachable = 0 if page.status else self._unreachable + 1
        if page.redirect:
            page = self._redirected(page)
        for link in page.links:
            self._frontier.offer(link)
        self._close(page)

    def _redirected(self, page: Page) -> Page:
        moves = not self.report.visited  # only the start page can be the first: example.org is www.example.org
        if self._frontier.redirect(page.url, page.links[0], moves=moves):
            return page
        return replace(page, links=(), error='too many redirects')

    def _fail(self, url: str, error: BaseException) -> None:
        '''A page that the worker's code could not take, or that took the worker down.'''
        if isinstance(error, looppool.PoolClosed | asyncio.CancelledError):
            return  # a signal ended the crawl while this page was under way
        text = str(error).strip()
        self._close(Page(url, error=f'{type(error).__name__}: {text.splitlines()[0] if text else ""}'))

    def _close(self, page: Page) -> None:
        self._open.discard(page.url)
        self.report.add(page)
        self._count_known()
        self._changed.set()
        self._on_change(self.report)

    def _count_known(self) -> None:
        self.report.known = self.report.visited + len(self._open) + len(self._frontier)


async def load_robots(url: str, user_agent: str) -> RobotFileParser:
    '''The rules of the site that ``url`` belongs to; without a robots.txt everything is allowed (RFC 9309).

    :raises SiteError: there is no answer, or an error of the server, which means that nothing is allowed.
    '''
    robots, site = RobotFileParser(), site_of(url)
    http = AsyncHTTPClient(force_instance=True, max_body_size=MAX_PAGE)
    try:
        response = await http.fetch(
            urljoin(url, '/robots.txt'), raise_error=False, user_agent=user_agent, request_timeout=REQUEST_TIMEOUT
        )
    except (HTTPClientError, OSError) as error:
        raise SiteError(f"{site} doesn't answer: {reason_of(error)}") from None
    finally:
        http.close()
    if response.code >= 500:
        raise SiteError(f'{site} is in trouble: {response.code} {response.reason} for its robots.txt')
    rules = text_of(response.body, '').splitlines() if response.code == 200 else []
    robots.parse(rules)
    return robots
