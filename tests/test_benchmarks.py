'''The benchmarks: each target asks for what is measured, each row has a job, and what can't run costs only its row.'''

import ast
import asyncio
import json
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from command import ROOT

if str(ROOT) not in sys.path:
    # Behind everything else: an installed looppool stays the one that is tested.
    sys.path.append(str(ROOT))

catalogue: Any = import_module('benchmarks.catalogue')
arrays: Any = import_module('benchmarks.arrays')
call_catalogue: Any = import_module('benchmarks.call_catalogue')
call_targets: Any = import_module('benchmarks.call_targets')
child: Any = import_module('benchmarks.child')
graph: Any = import_module('benchmarks.graph')
hotpath: Any = import_module('benchmarks.hotpath')
load: Any = import_module('benchmarks.load')
payload_catalogue: Any = import_module('benchmarks.payload_catalogue')
payload_targets: Any = import_module('benchmarks.payload_targets')
processes: Any = import_module('benchmarks.processes')
report: Any = import_module('benchmarks.report')
results: Any = import_module('benchmarks.results')
rounds: Any = import_module('benchmarks.rounds')
scale_catalogue: Any = import_module('benchmarks.scale_catalogue')
targets: Any = import_module('benchmarks.targets')

SUITES = {
    'messages': (catalogue.sections, targets.targets),
    'calls': (call_catalogue.call_sections, call_targets.call_targets),
    'payloads': (payload_catalogue.payload_sections, payload_targets.payload_targets),
    'scale': (scale_catalogue.scale_sections, list),
}
SECTIONS = [section for sections, _ in SUITES.values() for section in sections(catalogue.Sizes())]


def filled(sections: list[Any]) -> Any:
    '''Results in which every row has measured 1 of everything, twice.'''
    values = dict.fromkeys(report.UNITS, 1.0)
    full = results.Results()
    for section in sections:
        for contender in section.contenders:
            for number in range(2):
                full.add(section.key_of(contender), number, values)
    return full


@pytest.mark.parametrize('suite', SUITES)
def test_each_target_asks_for_what_is_measured(suite: str) -> None:
    sections, questions = SUITES[suite]
    full = filled(sections(catalogue.Sizes()))

    assert [question.text for question in questions() if question.measure(full) is None] == []
    assert 'not measured' not in report.verdicts(questions(), full)
    assert 'reached' not in report.verdicts(questions(), results.Results())


@pytest.mark.parametrize('section', SECTIONS, ids=lambda section: section.key)
def test_a_section_knows_its_rows(section: Any) -> None:
    names = [contender.name for contender in section.contenders]

    assert len(names) == len(set(names))
    assert {section.looppool, section.ceiling} - {None} <= set(names)
    assert f'  {names[0]}' in report.table([section], filled([section]))


@pytest.mark.parametrize('section', SECTIONS, ids=lambda section: section.key)
def test_each_row_has_a_job(section: Any) -> None:
    for contender in section.contenders:
        # Read, not imported: a peer need not be installed.
        source = (ROOT / contender.module.replace('.', '/')).with_suffix('.py').read_text()
        functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        assert contender.job in functions, contender


def test_a_peer_that_is_not_installed_costs_only_its_row() -> None:
    missing = catalogue.Contender('missing', 'benchmarks.peers.no_such_peer', 'calls', load.Load())
    section = catalogue.Section('calls', 'calls', [missing])
    lines: list[str] = []
    outcomes = results.Results()

    rounds.run_rounds([section], 3, outcomes, lines.append)

    assert len(lines) == 1 and 'not installed: benchmarks.peers.no_such_peer' in lines[0]
    assert 'not installed' in report.table([section], outcomes)
    with pytest.raises(processes.Failed, match='exit code 1'):
        processes.run('benchmarks.calls', 'no_such_job', load.Load(), 20)


async def test_so_many_calls_are_in_flight() -> None:
    running, most, made = 0, 0, []

    async def call(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        made.append(number)
        await asyncio.sleep(0)
        running -= 1

    await load.keep_in_flight(call, 100, 7)
    assert most == 7 and made == list(range(100))
    await load.keep_in_flight(call, 3, 7)
    assert made[100:] == [0, 1, 2]


def test_so_many_are_sent_before_one_is_received() -> None:
    sent: list[int] = []
    outstanding = []

    def send(item: int) -> int:
        sent.append(item)
        return -item

    for received, answer in enumerate(load.windowed(send, abs, iter(range(10)), 3)):
        assert answer == received
        outstanding.append(len(sent) - received)
    assert outstanding == [3, 3, 3, 3, 3, 3, 3, 3, 2, 1]
    assert list(load.windowed(send, abs, [], 3)) == []


def returned(function: Any, array: Any) -> Any:
    '''A means that carries nothing anywhere.'''
    return function(array)


async def called(function: Any, array: Any) -> Any:
    '''The same on a loop.'''
    return function(array)


async def test_arrays_are_timed_by_whatever_means_they_cross() -> None:
    small = load.Load(messages=100, payload=1 << 10)
    exchange = arrays.through(returned, lambda answer: answer)

    for values in (arrays.large_arrays(exchange, small), await arrays.large_arrays_async(called, small)):
        assert set(values) == {'one way', 'back'} and min(values.values()) > 0
    for values in (arrays.small_arrays(exchange, small), await arrays.small_arrays_async(called, small)):
        assert set(values) == {'single', 'many'} and min(values.values()) > 0


async def test_a_means_that_shows_its_worker_an_earlier_array_is_found_out() -> None:
    small = load.Load(messages=100, payload=1 << 10)
    seen: list[Any] = []

    def remembered(function: Any, array: Any) -> Any:
        seen.append(array.copy())
        return function(seen[0])

    async def remembered_async(function: Any, array: Any) -> Any:
        return remembered(function, array)

    with pytest.raises(ValueError, match='array -2 was answered with -3'):
        arrays.large_arrays(arrays.through(remembered, lambda answer: answer), small)
    seen.clear()
    with pytest.raises(ValueError, match='array 1 was answered with 0'):
        await arrays.small_arrays_async(remembered_async, small)


def test_a_job_says_what_it_misses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def job(_load: Any) -> Any:
        return import_module('no_such_package')

    monkeypatch.setitem(sys.modules, 'contender', types.SimpleNamespace(job=job))
    child.main('contender', 'job', '{}')

    assert capsys.readouterr().out == '{"missing": "no_such_package"}\n'


@pytest.mark.parametrize('suite', ['calls', 'payloads'])
def test_the_command_measures_the_rows_of_looppool(suite: str) -> None:
    command = [sys.executable, '-m', 'benchmarks', suite, '--quick', '--only', '/looppool']
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)

    table = ended.stdout.partition('\nTargets')[0]
    assert 'failed' not in table and 'load average' in table, ended.stderr
    assert ended.returncode == 0, ended.stderr
    for section in SUITES[suite][0](catalogue.Sizes()):
        for contender in section.contenders:
            assert (f'  {contender.name} ' in table) == contender.name.startswith(catalogue.LOOPPOOL)


def test_the_command_lists_what_there_is() -> None:
    command = [sys.executable, '-m', 'benchmarks', 'calls', '--only', 'no such row']
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)

    assert ended.returncode == 2 and 'map/multiprocessing.Pool, imap_unordered' in ended.stderr


def test_the_command_measures_how_it_scales_and_the_data_can_be_drawn(tmp_path: Path) -> None:
    data = tmp_path / 'scale.json'
    rows = [option for row in ('/looppool, 2 workers', '/looppool, 100 in flight') for option in ('--only', row)]
    command = [sys.executable, '-m', 'benchmarks', 'scale', '--quick', '--json', str(data), *rows]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)

    assert ended.returncode == 0, ended.stderr
    assert 'failed' not in ended.stdout and 'Targets' not in ended.stdout
    measured = json.loads(data.read_text())['results']
    assert len(measured) == 4
    for outcomes in measured.values():
        assert all(values['rate'] > 0 and values['uss'] > 0 for values in outcomes.values())


def scaled(value: float) -> dict[str, Any]:
    '''The report of a run in which every row of `scale` has measured nothing but so much, in two rounds.'''
    outcomes = {'0': dict.fromkeys(report.UNITS, value), '1': dict.fromkeys(report.UNITS, 2 * value)}
    sections = scale_catalogue.scale_sections(catalogue.Sizes())
    keys = [section.key_of(contender) for section in sections for contender in section.contenders]
    return {'python': '3', 'cores': 2, 'rounds': 2, 'results': dict.fromkeys(keys, outcomes)}


@pytest.mark.parametrize('name', graph.FIGURES)
@pytest.mark.parametrize('value', [1e-7, 1.0, 123_456.0])
def test_each_point_is_drawn_within_its_panel(name: str, value: float) -> None:
    root = ElementTree.fromstring(graph.drawn(name, scaled(value)))
    panels = root.findall('{*}g')

    assert len(panels) == len(graph.FIGURES[name].panels)
    for panel, drawn in zip(graph.FIGURES[name].panels, panels, strict=True):
        marks = drawn.findall('{*}circle') + drawn.findall('{*}rect')
        assert len(marks) == 8 * len(panel.curves)  # seven points, and one in the legend
        for mark in marks:
            assert 70 < float(mark.get('cx') or mark.get('x') or 0) < 430
            assert 20 < float(mark.get('cy') or mark.get('y') or 0) < 240


@pytest.mark.parametrize('name', graph.FIGURES)
def test_the_graph_of_the_manual_shows_the_data_beside_the_benchmarks(name: str) -> None:
    data = json.loads((ROOT / 'benchmarks' / 'scale.json').read_text())

    assert (ROOT / 'manual' / name).read_text() == graph.drawn(name, data)


@pytest.mark.parametrize(
    ('frames', 'part'),
    [
        (['Pool.put (looppool/pool.py:218)', 'encode (looppool/codec.py:87)'], 'looppool'),
        (['encode (looppool/codec.py:87)', 'save (_pickle.c:4)', '_PyObject_Malloc (obmalloc.c:9)'], 'pickle'),
        (['Channel._write (looppool/channel.py:1)', 'sock_send (socketmodule.c:1)', 'send (libc.so.6)'], 'kernel'),
        (['Pool.put (looppool/pool.py:1)', 'BaseEventLoop.call_soon (asyncio/base_events.py:7)'], 'asyncio'),
        (['_run_once (asyncio/base_events.py:7)', 'Feed._result (benchmarks/engine.py:4)'], 'program'),
        (['<module> (script.py:1)'], 'program'),
        (['select (selectors.py:468)', 'epoll_wait (libc.so.6)'], None),
    ],
)
def test_a_sample_belongs_to_the_innermost_part(frames: list[str], part: str | None) -> None:
    assert hotpath.part_of(frames) == part
    assert part is None or part in hotpath.PARTS
