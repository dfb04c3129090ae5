'''The crawl visits each page of a site once, politely, and survives what sites and workers do.'''

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
from conftest import LogGuard
from crawled_site import PAGES, Site, dead_port, served_site

import looppool
from looppool.crawl import MAX_REDIRECTS, UNREACHABLE_LIMIT, Crawl, Frontier, Report, SiteError


async def crawl(prepare: Callable[[Site], Any] = lambda site: None, **options: Any) -> tuple[Report, Site]:
    '''Crawl the site, after `prepare` has changed it.'''
    with served_site() as site:
        prepare(site)
        return await Crawl(site.url, workers=2, **options).run(), site


def with_links(*links: str) -> Callable[[Site], None]:
    return lambda site: site.extra.extend(links)


def errors_of(report: Report) -> dict[str, str]:
    '''What went wrong, by path.'''
    return {page.url.removeprefix(report.url): page.error for page in report.errors}


async def test_every_page_once() -> None:
    report, site = await crawl()
    assert sorted(site.requests) == sorted(['/', *(f'/page/{n}' for n in range(PAGES))])
    assert len(report.pages) == report.visited == report.known == PAGES + 1
    assert not report.errors and not report.redirects and not report.restarts and report.signal is None
    titles = {page.url: page.title for page in report.pages}
    assert titles[report.url] == 'Start' and titles[f'{report.url}page/7'] == 'Page 7'
    assert report.links == 2 + 2 * PAGES - 3 + PAGES
    assert report.seconds > 0 and report.rate == len(report.pages) / report.seconds
    assert report.cpu > 0 and report.rss > 1 << 20


async def test_both_workers_work() -> None:
    report, _ = await crawl()
    workers = report.workers.values()
    assert {worker.number for worker in workers} == {0, 1}
    assert len({worker.pid for worker in workers} | {os.getpid()}) == 3
    assert sum(worker.pages for worker in workers) == len(report.pages)
    assert all(worker.cpu > 0 and worker.rss > 1 << 20 for worker in workers)


@pytest.mark.parametrize('context', ['fork', 'forkserver', 'spawn'])
async def test_start_methods(context: str) -> None:
    report, _ = await crawl(pages=5, context=context)
    assert len(report.pages) == 5


@pytest.mark.parametrize('limit', [1, 2, 7])
async def test_limit(limit: int) -> None:
    report, site = await crawl(pages=limit)
    assert report.visited == limit == len(site.requests)


async def test_redirects_do_not_count() -> None:
    report, site = await crawl(with_links('/redirect/page/19'), pages=PAGES + 1)
    assert report.redirects == 1 and len(report.pages) == PAGES + 1
    assert site.count('/page/19') == 1


async def test_redirect_loops_end() -> None:
    report, site = await crawl(with_links('/redirect/', '/chain/0'))
    assert errors_of(report) == {f'chain/{MAX_REDIRECTS}': 'too many redirects'}
    assert len(report.pages) == PAGES + 1
    assert len(site.requests) == len(set(site.requests))


async def test_other_sites_are_left_alone() -> None:
    with served_site() as other, served_site() as site:
        site.extra += [site.url.replace('127.0.0.1', 'localhost'), f'/redirect/{other.url}']
        report = await Crawl(site.url, workers=1).run()
    assert site.count('/') == 1 and report.redirects == 1
    assert not other.requests and not other.agents


async def test_start_page_may_live_elsewhere() -> None:
    with served_site() as old, served_site() as new:
        report = await Crawl(f'{old.url}redirect/{new.url}', workers=1).run()
        assert len(report.pages) == PAGES + 1 and report.redirects == 1
        assert len(old.requests) == 1 and len(new.requests) == PAGES + 1


async def test_bad_pages() -> None:
    bad = {
        'status/404': '404 Not Found',
        'status/500': '500 Internal Server Error',
        'raw/big': 'larger than 5 MiB',
        'raw/cut': 'cut off',
        'raw/nothing': 'closed',
        'raw/unknown-section': 'AssertionError',
        'redirect/mailto:somebody': 'redirect to nowhere',
    }
    report, _ = await crawl(with_links(*('/' + path for path in bad)))
    errors = errors_of(report)
    assert errors.keys() == bad.keys()
    for path, text in bad.items():
        assert text in errors[path]
    assert len(report.pages) == PAGES + 1


async def test_other_content_counts_as_a_page() -> None:
    report, _ = await crawl(with_links('/raw/pdf'))
    assert f'{report.url}raw/pdf' in {page.url for page in report.pages}
    assert not report.errors


async def test_robots_txt() -> None:
    def prepare(site: Site) -> None:
        site.robots = 'User-agent: *\nDisallow: /page/1\n'

    report, site = await crawl(prepare)
    assert set(site.requests) == {'/', '/page/0', *(f'/page/{n}' for n in range(2, 10))}
    assert report.disallowed == 3, 'pages 1, 10 and 11; nothing else links to the rest'
    assert report.known == report.visited


async def test_robots_txt_for_this_agent() -> None:
    def prepare(site: Site) -> None:
        site.robots = 'User-agent: *\nDisallow: /\n\nUser-agent: friend\nDisallow:\n'

    report, site = await crawl(prepare, user_agent='friend/1.0', pages=3)
    assert report.visited == 3 and site.agents == {'friend/1.0'}
    with pytest.raises(SiteError, match='forbids'):
        await crawl(prepare, pages=3)


async def test_robots_txt_of_a_server_in_trouble() -> None:
    with pytest.raises(SiteError, match='in trouble: 503'):
        await crawl(lambda site: setattr(site, 'robots', 503))


async def test_delay() -> None:
    _, site = await crawl(delay=0.05, pages=6)
    assert site.times[-1] - site.times[0] > 4 * 0.05  # of five pauses; a request takes a little longer or shorter


async def test_delay_of_robots_txt() -> None:
    def prepare(site: Site) -> None:
        site.robots = 'User-agent: *\nCrawl-delay: 1\n'

    _, site = await crawl(prepare, pages=2)
    assert site.times[1] - site.times[0] > 0.9


@pytest.mark.parametrize('concurrency', [1, 3])
async def test_concurrency(concurrency: int) -> None:
    def gather(report: Report) -> None:
        if report.visited == 1:
            site.hold.clear()  # until as many as may be are open; if they never are, the test runs into its limit

    with served_site() as site:
        site.gather = concurrency
        site.extra += [f'/page/{n}' for n in range(PAGES)]
        await Crawl(site.url, workers=2, concurrency=concurrency, on_change=gather).run()
        assert site.most_at_once == concurrency


async def test_dead_site() -> None:
    with dead_port() as url, pytest.raises(SiteError, match="doesn't answer: Connection refused"):
        await Crawl(url, workers=1).run()


async def test_site_dies_meanwhile() -> None:
    with served_site() as site:
        site.extra += [f'/page/{n}' for n in range(PAGES)]

        def pull_the_plug(report: Report) -> None:
            site.server.stop()

        crawl = Crawl(site.url, workers=2, concurrency=2, on_change=pull_the_plug)
        with pytest.raises(SiteError, match='any more'):
            await crawl.run()
        assert len(crawl.report.pages) >= 1
        assert UNREACHABLE_LIMIT <= len(crawl.report.errors) <= UNREACHABLE_LIMIT + 2


async def test_worker_is_killed_meanwhile(logs: LogGuard) -> None:
    deaths = logs.expect('killed by SIGKILL')
    killed: list[int] = []

    def kill_once(report: Report) -> None:
        if report.visited >= 5 and not killed:
            killed.append(next(iter(report.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    report, _ = await crawl(on_change=kill_once)
    assert len(report.pages) == PAGES + 1 and not report.errors
    assert report.restarts == 1 == len(deaths)


async def test_workers_die_again_and_again(logs: LogGuard) -> None:
    logs.expect('killed by SIGKILL')

    def kill(report: Report) -> None:
        for worker in report.workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(looppool.PoolBroken):
        await crawl(on_change=kill, concurrency=2)


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_it(signum: signal.Signals) -> None:
    def interrupt(report: Report) -> None:
        if report.visited == 3:
            os.kill(os.getpid(), signum)

    report, _ = await crawl(on_change=interrupt, concurrency=1)
    assert report.signal == signum
    assert 3 <= report.visited <= 5 and not report.errors


async def test_signal_while_a_page_does_not_answer() -> None:
    with served_site() as site:
        site.hold.clear()
        run = asyncio.create_task(Crawl(site.url, workers=2).run())
        await site.holding.wait()
        os.kill(os.getpid(), signal.SIGINT)
        report = await run
    assert report.signal == signal.SIGINT
    assert report.visited == 0 and report.seconds < 5


def test_no_url() -> None:
    with pytest.raises(ValueError, match='no http'):
        Crawl('ftp://example.org/')


def test_frontier() -> None:
    frontier = Frontier('http://a/')
    for url in ('http://a/1', 'http://b/', 'http://a/1', 'http://a/'):
        frontier.offer(url)
    assert [frontier.pop() for _ in range(len(frontier))] == ['http://a/', 'http://a/1']
    assert frontier.redirect('http://a/', 'http://b/', moves=True)
    assert frontier.redirect('http://a/1', 'http://c/', moves=False)
    assert [frontier.pop() for _ in range(len(frontier))] == ['http://b/']
