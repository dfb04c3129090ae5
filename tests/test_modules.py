'''Which modules are the application's own, and what it takes to import them anew.'''

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import looppool
from looppool.modules import forget_modules, is_under, modules_from


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    '''A folder to import from, which is the working directory too.'''
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ('file', 'inside'),
    [
        ('app', True),
        ('app/shop.py', True),
        ('app/deep/down/not_there.py', True),
        ('app/../other/shop.py', False),
        ('application/shop.py', False),
        ('app/.venv/lib/shop.py', False),
        ('app/.shop.py.swp', False),
        ('app/env/site-packages/shop.py', False),
        ('app/__pycache__/shop.pyc', False),
        ('.hidden/shop.py', False),
    ],
)
def test_what_is_under_a_path(file: str, inside: bool, folder: Path) -> None:
    assert is_under(file, [str(folder / 'app')]) is inside


def test_a_folder_may_itself_be_hidden(folder: Path) -> None:
    assert is_under('.hidden/shop.py', [str(folder / '.hidden')])


def test_links_are_followed(folder: Path) -> None:
    (folder / 'real').mkdir()
    (folder / 'link').symlink_to('real')
    assert is_under('link/shop.py', [str(folder / 'real')])


def test_modules_are_found_by_their_source(folder: Path) -> None:
    (folder / 'till.py').write_text('import purse')
    (folder / 'purse.py').write_text('')
    importlib.import_module('till')

    assert list(modules_from([str(folder)])) == ['purse', 'till']
    assert list(modules_from([str(folder / 'purse.py')])) == ['purse']
    assert modules_from([]) == modules_from([str(folder / 'other')]) == {}


def test_looppool_and_the_main_script_are_nobodys(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sys.modules['__main__'], '__file__', str(folder / 'main.py'), raising=False)
    root = os.path.dirname(os.path.dirname(os.path.realpath(looppool.__file__)))

    assert not [name for name in modules_from([root, str(folder)]) if name.startswith(('looppool', '__main__'))]


def test_what_was_forgotten_is_imported_anew(folder: Path) -> None:
    (folder / 'shelf').mkdir()
    # A package without __init__ has no file, so it stays, and knew its module.
    (folder / 'shelf' / 'jar.py').write_text('CONTENT = "tea"')
    statement = 'from shelf import jar'
    first: dict[str, object] = {}
    exec(statement, first)
    (folder / 'shelf' / 'jar.py').write_text('CONTENT = "coffee"')
    (folder / 'shelf' / 'lid.py').write_text('')

    forget_modules([str(folder)])

    second: dict[str, object] = {}
    exec(statement, second)
    assert second['jar'] is not first['jar'] and second['jar'].CONTENT == 'coffee'  # type: ignore[attr-defined]
    assert importlib.import_module('shelf.lid')


def test_nothing_is_forgotten_without_paths() -> None:
    before = dict(sys.modules)
    forget_modules([])
    assert sys.modules == before
