'''The command `looppool`, run as a user runs it, on real sites.'''

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import LOOPPOOL, run, started
from crawled_site import PAGES, Site, dead_port, served_site

from looppool import cli

Outcome = tuple[int, str, str]


async def demo(*args: str | Path, prepare: Callable[[Site], Any] = lambda site: None, **env: str) -> Outcome:
    '''Run `looppool demo` on the test's site; gives its exit code, its output and its errors.'''
    with served_site() as site:
        prepare(site)
        return await run(*LOOPPOOL, 'demo', site.url, *args, **env)


def number_of(row: str, output: str) -> int:
    '''The number in a row of the summary.'''
    found = re.search(rf'^{row} +([\d,]+)', output, re.MULTILINE)
    assert found, output
    return int(found[1].replace(',', ''))


async def test_summary_and_progress() -> None:
    code, output, errors = await demo('--workers', '2')
    assert code == 0
    assert number_of('pages', output) == PAGES + 1
    assert number_of('errors', output) == number_of('restarts', output) == 0
    assert number_of('words', output) > 3 * PAGES
    assert 'pages/s' in output
    assert re.search(r'^worker 0 +\d+ +\d+ +0 +\d+\.\d\d s +\d+ MiB$', output, re.MULTILINE)
    assert re.search(r'^worker 1 ', output, re.MULTILINE) and re.search(r'^parent ', output, re.MULTILINE)
    assert 'crawling' in errors and f'{PAGES + 1}/{PAGES + 1}' in errors
    assert 'Traceback' not in errors


@pytest.mark.parametrize('option', ['--no-progress', '--quiet', '-q'])
async def test_silence(option: str) -> None:
    code, output, errors = await demo(option, '--pages', '3')
    assert code == 0 and errors == ''
    assert bool(output) == (option == '--no-progress')


async def test_json(tmp_path: Path) -> None:
    def prepare(site: Site) -> None:
        site.extra.append('/status/500')

    file = tmp_path / 'found.json'
    code, output, _ = await demo('--quiet', '--workers', '2', '--json', file, prepare=prepare)
    assert code == 0 and output == ''
    found = json.loads(file.read_text())
    assert len(found['pages']) == PAGES + 1
    assert {page['title'] for page in found['pages']} > {'Start', 'Page 0'}
    assert [page['status'] for page in found['errors']] == [500]
    assert found['rate'] > 0 and found['words'] > 0 and found['failure'] is None and found['signal'] is None
    assert sum(worker['pages'] for worker in found['workers']) == PAGES + 1
    assert all(worker['cpu'] > 0 and worker['rss'] > 0 for worker in found['workers'])


async def test_json_to_a_full_disk() -> None:
    code, output, errors = await demo('--no-progress', '--pages', '1', '--json', '/dev/full')
    assert code == 1 and number_of('pages', output) == 1
    assert errors == "looppool: /dev/full can't be written: No space left on device\n"


async def test_nobody_reads_the_summary() -> None:
    with served_site() as site:
        pipe = '"$@" | true; exit ${PIPESTATUS[0]}'
        args = (*LOOPPOOL, 'demo', site.url, '--no-progress', '--pages', '2')
        assert await run('bash', '-c', pipe, 'bash', *args) == (0, '', '')


async def test_bad_pages_are_shown() -> None:
    def prepare(site: Site) -> None:
        site.extra += [f'/status/{code}' for code in range(500, 508)]

    code, output, _ = await demo('--no-progress', '--concurrency', '1', prepare=prepare)
    assert code == 0
    assert number_of('errors', output) == 8 and number_of('pages', output) == PAGES + 1
    assert re.search(r'/status/501: 501 Not Implemented$', output, re.MULTILINE)
    assert 'and 3 more' in output


@pytest.mark.parametrize('context', ['fork', 'forkserver', 'spawn'])
async def test_contexts(context: str) -> None:
    code, output, errors = await demo('--no-progress', '--context', context, '--pages', '3')
    assert (code, errors) == (0, '') and number_of('pages', output) == 3


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((), 'COMMAND'),
        (('crawl',), 'crawl'),
        (('demo', 'example.org'), "'example.org' is no http:// or https:// URL"),
        (('demo', 'http://[bad/'), 'is no http://'),
        (('demo', '--workers', '0'), "'0' is no number from 1"),
        (('demo', '--pages', '-3'), '--pages'),
        (('demo', '--concurrency', 'many'), "'many' is no number from 1"),
        (('demo', '--delay', 'nan'), "'nan' is no number of seconds"),
        (('demo', '--delay', '-1'), '--delay'),
        (('demo', '--delay', 'inf'), "'inf' is no number of seconds"),
        (('demo', '--context', 'thread'), "'thread'"),
        (('demo', '--json', '/no/such/folder/file'), "'/no/such/folder/file' can't be written"),
        (('demo', '--json', '/'), "'/' can't be written"),
        (('demo', '--nonsense'), '--nonsense'),
    ],
)
def test_bad_arguments(args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(args)
    assert exit_.value.code == 2
    output, errors = capsys.readouterr()
    assert output == '' and message in errors


async def test_bad_arguments_for_real() -> None:
    code, output, errors = await run(*LOOPPOOL, 'demo', 'nonsense')
    assert (code, output) == (2, '') and 'nonsense' in errors and 'Traceback' not in errors


async def test_help() -> None:
    code, output, errors = await run(*LOOPPOOL, 'demo', '--help')
    assert (code, errors) == (0, '') and '--concurrency' in output


async def test_dead_site(tmp_path: Path) -> None:
    with dead_port() as url:
        code, output, errors = await run(*LOOPPOOL, 'demo', url, '--no-progress', '--json', tmp_path / 'found.json')
    assert (code, output) == (1, '')
    assert re.fullmatch(r"looppool: 127\.0\.0\.1:\d+ doesn't answer: Connection refused\n", errors)
    assert "doesn't answer" in json.loads((tmp_path / 'found.json').read_text())['failure']


async def test_robots_txt_forbids() -> None:
    code, output, errors = await demo('-q', prepare=lambda site: setattr(site, 'robots', 'User-agent: *\nDisallow: /'))
    assert (code, output) == (1, '') and 'robots.txt' in errors and 'Traceback' not in errors


async def test_no_page_can_be_read() -> None:
    with served_site() as site:
        code, output, errors = await run(*LOOPPOOL, 'demo', f'{site.url}status/404', '--no-progress')
    assert code == 1 and number_of('errors', output) == 1
    assert 'looppool: no page could be read; 404' in errors


async def test_without_tqdm(tmp_path: Path) -> None:
    (tmp_path / 'tqdm.py').write_text('raise ImportError')
    code, output, errors = await demo('--pages', '2', PYTHONPATH=str(tmp_path))
    assert code == 0 and number_of('pages', output) == 2
    assert errors == "looppool: no progress bar, because tqdm is missing: pip install 'looppool[demo]'\n"


@pytest.mark.parametrize(('signum', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_signal_in_the_middle(signum: signal.Signals, code: int, tmp_path: Path) -> None:
    '''Some pages have been read, two don't answer.'''

    with served_site() as site:
        args = ('--concurrency', '2', '--workers', '2', '--json', tmp_path / 'found.json')
        async with started(*LOOPPOOL, 'demo', site.url, *args) as command:
            while site.count('/page/5') == 0:
                await asyncio.sleep(0.001)
            site.hold.clear()
            await site.holding.wait()
            command.signal_group(signum)
            assert await command.ended() == code
        assert 'Traceback' not in command.errors and 'rror' not in command.errors.replace('errors=0', '')
        assert f'ended by {signum.name}' in command.output
        assert PAGES > number_of('pages', command.output) >= 5
        assert number_of('errors', command.output) == 0
        assert json.loads((tmp_path / 'found.json').read_text())['signal'] == signum


async def test_signal_before_the_first_page() -> None:
    with served_site() as site:
        site.hold.clear()
        async with started(*LOOPPOOL, 'demo', site.url, '--no-progress') as command:
            await site.holding.wait()
            command.signal_group(signal.SIGINT)
            assert await command.ended() == 130
        assert command.errors == '' and number_of('pages', command.output) == 0


PATIENT = '''
import sys, looppool.cli, looppool.crawl
looppool.crawl.STOP_TIMEOUT = 3600.0
sys.exit(looppool.cli.main())
'''


async def test_second_signal_does_not_wait_for_pages_that_do_not_answer() -> None:
    with served_site() as site:
        site.hold.clear()
        async with started(sys.executable, '-c', PATIENT, 'demo', site.url, '--no-progress') as command:
            await site.holding.wait()
            command.signal_group(signal.SIGINT)
            command.signal_group(signal.SIGTERM)  # another one: two of a kind may arrive as one
            assert await command.ended() in (130, 143)  # nobody promises the order
    assert command.errors == ''


async def test_own_site() -> None:
    code, output, errors = await run(*LOOPPOOL, 'demo', '--pages', '40', '--workers', '2')
    assert code == 0 and number_of('pages', output) == 40 and number_of('errors', output) == 0
    assert '40/40' in errors and 'Traceback' not in errors


async def test_own_site_and_ctrl_c() -> None:
    async with started(*LOOPPOOL, 'demo', '--pages', '10000') as command:
        assert command.process.stderr is not None
        seen = b''
        while b'7/' not in seen:
            seen += await asyncio.wait_for(command.process.stderr.read(100), 20)
        command.signal_group(signal.SIGINT)
        assert await command.ended() == 130
    assert 'Traceback' not in command.errors
    assert number_of('pages', command.output) >= 7


async def test_installed_command() -> None:
    script = Path(sys.executable).with_name('looppool')
    if not script.exists():
        pytest.skip('looppool is not installed beside this Python')
    code, output, errors = await run(script, 'demo', '--pages', '2', '--no-progress')
    assert (code, errors) == (0, '') and number_of('pages', output) == 2


@pytest.mark.parametrize(
    ('url', 'delay'),
    [
        ('http://localhost:8000/', 0),
        ('http://127.0.0.1/', 0),
        ('http://[::1]/', 0),
        ('http://example.org/', cli.POLITE_DELAY),
        ('http://192.0.2.1/', cli.POLITE_DELAY),
    ],
)
def test_polite_delay(url: str, delay: float) -> None:
    assert cli.polite_delay(url) == delay


def test_nothing_that_a_terminal_would_obey() -> None:
    assert cli.plain('Bad\x1b[31m\r\tä\x9b') == 'Bad?[31m????'


async def test_importing_looppool_leaves_the_demo_alone() -> None:
    source = "import sys, looppool; print([m for m in sys.modules if m.startswith('looppool.')])"
    _, output, _ = await run(sys.executable, '-c', source)
    assert 'looppool.pool' in output
    assert not re.search(r'looppool\.(cli|crawl|page|docsite)', output)
