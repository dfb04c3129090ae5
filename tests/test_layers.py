'''The modules keep to their layers, tell the truth about what they export, and `import looppool` stays light.'''

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import looppool

PACKAGE = Path(looppool.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob('*.py') if path.stem != '__init__')

LAYERS = {
    0: (
        'errors', 'window', 'kinds', 'plain', 'frames', 'variables', 'payload', 'codec', 'functions', 'packing',
        'lending', 'protocol', 'budget', 'roster',
    ),
    1: (
        'status', 'channel', 'segments', 'child', 'forkserver', 'process', 'runner', 'signals', 'watchdog', 'exchange',
        'callee', 'here', 'modules', 'worker', 'asking', 'workermain',
    ),
    2: (
        'settings', 'statistics', 'events', 'mapping', 'objects', 'calls', 'streams', 'verbs', 'handlers', 'relay',
        'link', 'member', 'lifecycle', 'supervisor', 'elastic', 'lease', 'peer', 'pool',
        'shared',
    ),
}
'''Every other module is optional: layer 3.'''

LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}

IMPURE = {
    '_thread', 'asyncio', 'concurrent', 'ctypes', 'fcntl', 'mmap', 'multiprocessing', 'select', 'selectors', 'socket',
    'subprocess', 'tempfile', 'threading', 'time', 'tornado',
}  # fmt: skip
'''What layer 0 does without: no socket, no clock, no loop, no thread, no process.'''

PURE_CALLS_OF_OS = {'getpid', 'urandom'}
'''What tells a process from others is no I/O.'''

HEAVY = ('psutil', 'statsd', 'sentry_sdk', 'cloudpickle', 'tqdm', 'uvloop', 'watchdog')


class Import(NamedTuple):
    '''`names` of `module`; for the package itself, module is '' and the names may be modules.'''

    module: str
    names: tuple[str, ...]
    at_once: bool
    '''When the importing module itself is imported: not later in a function, and not for the type checker only.'''


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f'{module}.py').read_text(), module)


def imports(module: str) -> list[Import]:
    return list(_imports(tree(module), at_once=True))


def _imports(parent: ast.AST, at_once: bool) -> Iterator[Import]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, (), at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            root = 'looppool.' if node.level else ''
            yield Import((root + (node.module or '')).rstrip('.'), tuple(alias.name for alias in node.names), at_once)
        else:
            for_types = isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or for_types
            yield from _imports(node, at_once and not later)


@functools.cache
def siblings(module: str) -> list[Import]:
    '''The modules of the package that `module` imports, with the names that it uses of each.'''
    return list(_siblings(module))


def _siblings(module: str) -> Iterator[Import]:
    for imported, names, at_once in imports(module):
        root, _, sibling = imported.partition('.')
        if root != 'looppool':
            continue
        if sibling:
            yield Import(sibling, names, at_once)
        for name in names:
            if not sibling and name in MODULES:
                yield Import(name, _attributes(module, name), at_once)


def _attributes(module: str, owner: str) -> tuple[str, ...]:
    nodes = ast.walk(tree(module))
    return tuple(n.attr for n in nodes if isinstance(n, ast.Attribute) and ast.unparse(n.value) == owner)


@pytest.mark.parametrize('module', MODULES)
def test_imports_go_downward_only(module: str) -> None:
    layer = LAYER_OF.get(module, 3)

    above = {sibling for sibling, _, _ in siblings(module) if LAYER_OF.get(sibling, 3) > layer}

    assert not above


@pytest.mark.parametrize('module', sorted(LAYER_OF))
def test_the_core_imports_no_member_of_the_package_by_way_of_its_top(module: str) -> None:
    assert not [entry for entry in imports(module) if entry.module == 'looppool' and set(entry.names) - set(MODULES)]


def test_every_module_of_the_table_exists() -> None:
    assert set(LAYER_OF) <= set(MODULES)


def test_no_modules_need_each_other_to_be_imported() -> None:
    graph = {module: {sibling for sibling, _, at_once in siblings(module) if at_once} for module in MODULES}

    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize('module', LAYERS[0])
def test_the_pure_layer_knows_no_io(module: str) -> None:
    assert not {entry.module.partition('.')[0] for entry in imports(module)} & IMPURE


@pytest.mark.parametrize('module', LAYERS[0])
def test_the_pure_layer_asks_the_system_only_who_it_is(module: str) -> None:
    assert set(_attributes(module, 'os')) <= PURE_CALLS_OF_OS
    assert not [entry for entry in imports(module) if entry.module == 'os' and entry.names]


def test_the_package_itself_only_re_exports() -> None:
    docstring, *statements = tree('__init__').body

    assert ast.unparse(docstring).startswith(("'", '"'))
    for statement in statements:
        ours = isinstance(statement, ast.ImportFrom) and statement.level == 1
        assert ours or ast.unparse(statement).startswith('__all__ = '), ast.unparse(statement)


def test_the_package_exports_all_that_it_imports() -> None:
    imported = {name for entry in imports('__init__') for name in entry.names}

    assert set(looppool.__all__) == imported


@pytest.mark.parametrize('module', MODULES)
def test_all_is_sorted(module: str) -> None:
    names = importlib.import_module(f'looppool.{module}').__all__

    assert names == sorted(set(names), key=lambda name: (_rank(name), name))


def _rank(name: str) -> int:
    '''Constants, then classes, then functions.'''
    return 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2


@pytest.mark.parametrize('module', MODULES)
def test_all_is_true(module: str) -> None:
    loaded = importlib.import_module(f'looppool.{module}')

    assert not [name for name in loaded.__all__ if not hasattr(loaded, name) or name.startswith('_')]


@pytest.mark.parametrize('module', MODULES)
def test_all_has_what_others_use(module: str) -> None:
    users = [*MODULES, '__init__']
    used = {name for user in users for sibling, names, _ in siblings(user) if sibling == module for name in names}

    assert used <= set(importlib.import_module(f'looppool.{module}').__all__)


def test_import_looppool_is_light() -> None:
    code = f'import sys, looppool; print([name for name in {HEAVY} if name in sys.modules])'

    output = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, timeout=30).stdout

    assert output.strip() == b'[]'
