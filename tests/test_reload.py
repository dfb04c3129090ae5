'''Workers run new code when files change, under every start method.'''

import asyncio
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from faults.observed import ObservedPool, until

import looppool
from looppool import process
from looppool.reload import Reloader, reload_files

# watchdog has threads. What they hold when a worker is forked, it does not use.
pytestmark = pytest.mark.filterwarnings(r'ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning')

SHOP = '''
import looppool
from pricing import PRICE


class Shop(looppool.Worker):
    def _initialise(self):
        self._sold = 0

    @looppool.task_done
    def _process_message(self, message):
        self._sold += 1
        self._put_nowait((message, %r, PRICE, self._sold))
'''


class App:
    '''The source of an application, as an editor changes it.'''

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write('pricing', 'PRICE = 1')
        self.write('shop', SHOP % 'old')

    def write(self, name: str, text: str) -> None:
        (self.folder / f'{name}.py').write_text(text)

    def pool(self, context: str = 'spawn', **settings: Any) -> ObservedPool:
        worker_class = importlib.import_module('shop').Shop
        return ObservedPool(worker_class=worker_class, context=context, path=[self.folder], **settings)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: LogGuard) -> Iterator[App]:
    # What watchdog 7 says when a file changes while it stops.
    logs.expect('queue_events.. called when the thread is inactive')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'shop', raising=False)
    monkeypatch.delitem(sys.modules, 'pricing', raising=False)
    yield App(tmp_path)
    for name in ('shop', 'pricing'):
        sys.modules.pop(name, None)
    # Theirs is another folder in the next test.
    process.close_fork_servers()


async def sells_at(pool: ObservedPool, price: Any, how: str = 'old') -> None:
    '''Wait until every worker sells at a price.'''
    members = [*pool.members, *pool.named.values()]
    while True:
        for member in members:
            await member.put('ask')
        answers = await pool.take(len(members))
        if {answer[:3] for answer in answers} == {('ask', how, price)}:
            return
        await asyncio.sleep(0.02)


# Replacing


async def test_workers_are_replaced_and_no_task_is_lost(context: str, app: App) -> None:
    async with app.pool(context, max_restarts=0, stop_timeout=None) as pool:
        kitty = await pool.spawn('kitty')
        async with Reloader(pool, [app.folder], delay=0.05):
            before = {member.pid for member in pool.everybody()}
            await sells_at(pool, 1)
            app.write('pricing', 'PRICE = 2')
            count = 0
            while before & {member.pid for member in pool.everybody()}:
                await pool.put(count)
                await kitty.put(-1 - count)
                await asyncio.sleep(0.001)
                count += 1
            await until(lambda: pool.statistics().in_flight == 0)
            answers = await pool.take(2 * count)
            assert sorted(answer[0] for answer in answers) == list(range(-count, count))
            assert {answer[2] for answer in answers} <= {1, 2}
            await sells_at(pool, 2)
        assert pool.named == {'kitty': kitty}
        statistics = pool.statistics()
        assert (statistics.failed, statistics.restarts) == (0, 0)


async def test_code_that_fails_is_not_taken_and_the_next_change_is(context: str, app: App, logs: LogGuard) -> None:
    failures = logs.expect(r'the workers stay as they are until the next change(?s:.*)pricing\.py(?s:.*)SyntaxError')
    logs.expect(r'worker \d \(pid \d+\) did not start: it failed with SyntaxError')
    async with app.pool(context, max_restarts=0) as pool, Reloader(pool, [app.folder], delay=0.02):
        before = [member.pid for member in pool.members]
        for attempt in range(1, 3):
            app.write('pricing', 'PRICE = ' + attempt * '(')
            await until(lambda attempt=attempt: len(failures) >= attempt)
        await sells_at(pool, 1)
        assert [member.pid for member in pool.members] == before

        app.write('pricing', 'PRICE = 3')
        await sells_at(pool, 3)
        assert pool.statistics().restarts == 0


async def test_changes_during_a_round_begin_another(context: str, app: App) -> None:
    async with app.pool(context) as pool, Reloader(pool, [app.folder], delay=0.0):
        for price in range(2, 6):
            started = pool.events()
            app.write('pricing', f'PRICE = {price}')
            while (await anext(started)).kind != 'started':
                pass
        await sells_at(pool, 5)


async def test_a_worker_that_starts_later_has_the_new_code_too(context: str, app: App) -> None:
    async with app.pool(context, pool_size=1) as pool:
        async with Reloader(pool, [app.folder], patterns=['*.never']):
            app.write('pricing', 'PRICE = 22')
        await pool.spawn('kitty')
        await pool.members[0].stop()
        await until(lambda: pool.members[0].state == 'ready')
        await sells_at(pool, 22)


async def test_files_that_come_go_and_move_are_changes(app: App) -> None:
    async with app.pool(pool_size=1) as pool, Reloader(pool, [app.folder], delay=0.02):
        app.write('table', 'PRICES = [7, 8]')
        (app.folder / 'new.py').write_text('from table import PRICES\nPRICE = PRICES[0]')
        (app.folder / 'new.py').rename(app.folder / 'pricing.py')
        await sells_at(pool, 7)
        (app.folder / 'pricing').mkdir()
        (app.folder / 'pricing' / '__init__.py').write_text('PRICE = 9')
        await sells_at(pool, 9)
        shutil.rmtree(app.folder / 'pricing')
        await sells_at(pool, 7)


async def test_a_single_file_may_be_watched(app: App) -> None:
    reloader = Reloader(app.pool(pool_size=1), [app.folder / 'pricing.py'], delay=0.02)
    async with reloader.pool as pool, reloader:
        app.write('shop', 'no code at all')
        app.write('shop', SHOP % 'old')
        app.write('pricing', 'PRICE = 2')
        await sells_at(pool, 2)
        assert reloader._files == set()


# Reloading in place


async def test_modules_are_reloaded_in_place(context: str, app: App, logs: LogGuard) -> None:
    async with app.pool(context) as pool, Reloader(pool, [app.folder], mode='reload', delay=0.1):
        kitty = await pool.spawn('kitty')
        before = [member.pid for member in (*pool.members, kitty)]
        await sells_at(pool, 1)
        app.write('shop', SHOP % 'new')
        app.write('pricing', 'PRICE = 4')
        await sells_at(pool, 4, 'new')
        await kitty.put('how many')
        assert (await pool.result())[3] >= 3, 'the worker is the same, with what it knows'

        failures = logs.expect('3 of 3 workers stay as they are(?s:.*)ZeroDivisionError')
        app.write('pricing', 'PRICE = 5')
        app.write('shop', SHOP % 'newer' + '1 / 0')
        await until(lambda: failures)
        await sells_at(pool, 4, 'new')

        app.write('shop', SHOP % 'newest')
        await sells_at(pool, 5, 'newest')
        assert [member.pid for member in (*pool.members, kitty)] == before
        assert pool.statistics().restarts == 0


async def test_a_replacement_has_what_was_reloaded(context: str, app: App, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with app.pool(context, pool_size=1) as pool, Reloader(pool, [app.folder], mode='reload', delay=0.02):
        app.write('shop', SHOP % 'new')
        await sells_at(pool, 1, 'new')
        first = pool.members[0].pid
        assert first is not None
        os.kill(first, 9)
        await pool.replaced()
        await sells_at(pool, 1, 'new')


class Kept(looppool.Worker[Any, Any]):
    '''Its module does not change.'''


async def test_what_is_reloaded_and_in_which_order(app: App) -> None:
    async with looppool.Pool(pool_size=1, worker_class=Kept, path=[app.folder], context='spawn') as pool:
        files = [os.path.realpath(app.folder / f'{name}.py') for name in ('shop', 'pricing', 'other', 'gone')]
        app.write('other', 'import gone')
        app.write('gone', '')
        await pool.call(importlib.import_module, 'shop')
        await pool.call(importlib.import_module, 'other')
        order = await pool.call(reload_files, files[:3])
        assert sorted(order) == ['other', 'pricing', 'shop'] and order.index('pricing') < order.index('shop')

        # An import that is new decides, too.
        app.write('pricing', 'from other import PRICE')
        app.write('other', 'PRICE = 1000')
        (app.folder / 'gone.py').unlink()
        assert await pool.call(reload_files, files) == ['other', 'pricing', 'shop']
        assert await pool.call(price_of_shop) == 1000

        # In a circle, there is no order: that of the first imports.
        app.write('other', 'import shop; PRICE = 10001')
        assert sorted(await pool.call(reload_files, files)) == ['other', 'pricing', 'shop']


async def test_modules_of_a_package_are_reloaded(app: App) -> None:
    async with looppool.Pool(pool_size=1, path=[app.folder], context='spawn', worker_class=Kept) as pool:
        package = app.folder / 'parts'
        package.mkdir()
        (package / '__init__.py').write_text('from .b import value')
        (package / 'b.py').write_text('from . import c\nvalue = c.VALUE')
        (package / 'c.py').write_text('VALUE = 1')
        assert await pool.call(value_of_parts) == 1
        (package / 'c.py').write_text('VALUE = 11')
        files = [os.path.realpath(file) for file in package.glob('*.py')]
        assert await pool.call(reload_files, files) == ['parts.c', 'parts.b', 'parts']
        assert await pool.call(value_of_parts) == 11


def price_of_shop() -> Any:
    return sys.modules['shop'].PRICE


def value_of_parts() -> Any:
    return importlib.import_module('parts').value


# Beginning and end


async def test_what_does_not_matter_is_no_change(app: App) -> None:
    reloader = Reloader(app.pool(pool_size=1), [app.folder], delay=60.0)
    async with reloader.pool, reloader:
        for name in (
            'notes.txt', '.#shop.py', 'shop.py~', '.git/hook.py', '__pycache__/shop.py', 'env/site-packages/parts.py'
        ):  # fmt: skip
            (app.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (app.folder / name).write_text('text')
        (app.folder / 'shop.py').read_text()
        app.write('last', '')
        await until(lambda: reloader._files)
        assert reloader._files == {os.path.realpath(app.folder / 'last.py')}
    assert reloader._timer is not None and reloader._timer.cancelled()


async def test_it_may_be_started_and_stopped_again(app: App) -> None:
    async with app.pool(pool_size=1) as pool:
        reloader = Reloader(pool, [app.folder], delay=0.02)
        reloader.stop()
        for price in (2, 3):
            reloader.start()
            reloader.start()
            app.write('pricing', f'PRICE = {price}')
            await sells_at(pool, price)
            reloader.stop()
            reloader.stop()


async def test_it_stops_in_the_middle_of_a_round(app: App) -> None:
    async with app.pool(pool_size=2) as pool:
        async with Reloader(pool, [app.folder], delay=0.0):
            app.write('pricing', 'PRICE = 2')
            await until(lambda: any(member.successor for member in pool.members))
        await until(lambda: [len(member.running) for member in pool.members] == [1, 1])


@pytest.mark.parametrize('mode', ['replace', 'reload'])
async def test_it_ends_with_its_pool(mode: str, app: App) -> None:
    pool = app.pool(pool_size=1)
    reloader = Reloader(pool, [app.folder], mode=mode, delay=0.0)
    async with pool:
        reloader.start()
    assert reloader._observer is not None
    app.write('pricing', 'PRICE = 2')
    await until(lambda: reloader._observer is None)


async def test_the_pool_has_to_run(app: App) -> None:
    reloader = Reloader(app.pool(), [app.folder])
    with pytest.raises(looppool.PoolClosed, match='start'):
        reloader.start()


async def test_without_watchdog_it_says_what_to_install(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'watchdog.observers', None)
    async with app.pool(pool_size=1) as pool:
        with pytest.raises(ImportError, match=r"pip install 'looppool\[reload\]'"):
            Reloader(pool, [app.folder]).start()
        assert pool.reimport == ()


@pytest.mark.parametrize(
    ('error', 'arguments'),
    [
        (FileNotFoundError, {'paths': ['not there']}),
        (TypeError, {'paths': '.'}),
        (TypeError, {'patterns': '*.py'}),
        (ValueError, {'mode': 'restart'}),
        (ValueError, {'delay': -1}),
        (ValueError, {'delay': None}),
    ],
)
def test_a_bad_argument_is_told(error: type[Exception], arguments: dict[str, Any]) -> None:
    arguments = {'paths': ['.']} | arguments
    with pytest.raises(error, match='not there' if error is FileNotFoundError else list(arguments)[-1]):
        Reloader(looppool.Pool(pool_size=1), **arguments)
