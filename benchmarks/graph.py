'''Draws the graphs of the manual from the data of a run.

    python -m benchmarks scale --json benchmarks/scale.json
    python -m benchmarks.graph benchmarks/scale.json manual

1. A point is the median over the rounds; the thin line through it reaches from the lowest to the highest of them.
2. The same data give the same bytes, so a test can tell whether graph and data belong together.
3. What is drawn is also said, in the description that the image carries for those who can't see it.
'''

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.catalogue import Section, Sizes
from benchmarks.load import Load
from benchmarks.report import UNITS
from benchmarks.results import Results
from benchmarks.scale_catalogue import scale_sections

__all__ = ['FIGURES', 'drawn', 'main']


@dataclass(frozen=True)
class Curve:
    '''One line of a panel: the value *name* of each row of the section *section*.'''

    label: str
    section: str
    name: str


@dataclass(frozen=True)
class Panel:
    '''One pair of axes.

    Args:
        title: what is drawn, with its unit.
        curves: two at most.
        inverse: draw microseconds for one task instead of tasks a second.
        log: a logarithmic axis upwards; otherwise it begins at 0.
    '''

    title: str
    curves: tuple[Curve, ...]
    inverse: bool = False
    log: bool = False


@dataclass(frozen=True)
class Figure:
    '''One file; its panels stand in two columns.

    Args:
        title: of the whole.
        along: what the axes to the right are about.
        field: of a `Load`, where on them a row stands.
        panels: in reading order.
    '''

    title: str
    along: str
    field: str
    panels: tuple[Panel, ...]


_EMPTY, _BUSY = 'tasks that take no time', 'tasks that take 1 ms of CPU'
_LINE, _BEGUN = 'waiting in line', 'begun and waiting'

FIGURES = {
    'scale-workers.svg': Figure('From 1 to 64 workers', 'workers', 'workers', (
        Panel('Tasks a second', (Curve(_EMPTY, 'workers', 'rate'), Curve(_BUSY, 'busy', 'rate')), log=True),
        Panel('CPU for 100,000 of the shorter tasks, seconds', (
            Curve('all workers together', 'workers', 'workers cpu'), Curve('parent', 'workers', 'parent cpu'),
        )),
        Panel('Start and stop of all workers, milliseconds', (
            Curve('start', 'workers', 'start'), Curve('stop', 'workers', 'stop'),
        )),
        Panel('Memory of one worker (USS), MiB', (Curve('after 200,000 tasks, over all workers', 'workers', 'uss'),)),
    )),
    'scale-in-flight.svg': Figure('From 1 to 1,000,000 tasks in flight, one worker', 'tasks in flight', 'in_flight', (
        Panel('Time for one task, microseconds', (
            Curve(_BEGUN, 'begun', 'rate'), Curve(_LINE, 'in-line', 'rate'),
        ), inverse=True, log=True),
        Panel('CPU of the parent for 100,000 tasks, seconds', (
            Curve(_BEGUN, 'begun', 'parent cpu'), Curve(_LINE, 'in-line', 'parent cpu'),
        ), log=True),
        Panel('Memory of the worker (USS), MiB', (
            Curve(_BEGUN, 'begun', 'uss'), Curve(_LINE, 'in-line', 'uss'),
        ), log=True),
        Panel('Memory of the parent (USS), MiB', (
            Curve(_BEGUN, 'begun', 'parent uss'), Curve(_LINE, 'in-line', 'parent uss'),
        ), log=True),
    )),
}  # fmt: skip
'''What is drawn into which file.'''

_STYLE = '''
    .panel { fill: #ffffff; stroke: #d0d7de }
    .grid { fill: none; stroke: #d8dee4; stroke-width: 1 }
    .axis { fill: none; stroke: #57606a; stroke-width: 1.2 }
    .line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
    .spread { fill: none; stroke-width: 1.2 }
    .one { stroke: #0969da } .two { stroke: #bc4c00 } .line.two { stroke-dasharray: 6 4 }
    .mark-one { fill: #0969da } .mark-two { fill: #bc4c00 }
    text { fill: #1f2328; font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
    .head { font-weight: 600; font-size: 16px }
    .name { font-weight: 600; font-size: 13.5px }
    .note { fill: #57606a; font-size: 12px }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #0d1117; stroke: #30363d }
      .grid { stroke: #262c34 }
      .axis { stroke: #8b949e }
      .one { stroke: #58a6ff } .two { stroke: #f0883e }
      .mark-one { fill: #58a6ff } .mark-two { fill: #f0883e }
      text { fill: #e6edf3 }
      .note { fill: #9da7b3 }
    }'''

_WIDTH, _TOP, _ROW, _COLUMN = 920, 56, 292, 450
_PLOT_X, _PLOT_Y, _PLOT_WIDTH, _PLOT_HEIGHT = 76, 52, 350, 184
'''Pixels: the plot within its panel.'''

_CLASSES = ('one', 'two')


@dataclass(frozen=True)
class _Point:
    at: float
    median: float
    low: float
    high: float


class _Axis:
    '''Where a value stands, in pixels from the axis' beginning, and which values are written beside it.'''

    def __init__(self, ticks: Sequence[float], length: float, log: bool) -> None:
        self.ticks = ticks
        self._log = log
        self._first = self._scaled(ticks[0])
        self._factor = length / (self._scaled(ticks[-1]) - self._first)

    def __call__(self, value: float) -> float:
        return (self._scaled(value) - self._first) * self._factor

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value


def main(data: str, folder: str) -> None:
    '''Draw all figures.

    Args:
        data: the file that ``python -m benchmarks scale --json`` has written.
        folder: where the files go.
    '''
    report = json.loads(Path(data).read_text('utf-8'))
    for name in FIGURES:
        (Path(folder) / name).write_text(drawn(name, report), 'utf-8')


def drawn(name: str, report: Mapping[str, Any]) -> str:
    '''Return the file *name* of `FIGURES` as drawn from the *report* of a run.'''
    figure, results = FIGURES[name], _results(report)
    points = [[_points(curve, panel, figure, results) for curve in panel.curves] for panel in figure.panels]
    height = _TOP + _ROW * math.ceil(len(figure.panels) / 2)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-labelledby="title desc">',
        f'  <title id="title">{escape(figure.title)}</title>',
        f'  <desc id="desc">{escape(" ".join(_said(figure, points)))}</desc>',
        f'  <style>{_STYLE}\n  </style>',
        f'  <rect class="panel" x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="10"/>',
        f'  <text class="head" x="24" y="34">{escape(figure.title)}</text>',
        f'  <text class="note" x="{_WIDTH - 24}" y="34" text-anchor="end">{escape(_measured_with(report))}</text>',
    ]
    for number, (panel, curves) in enumerate(zip(figure.panels, points, strict=True)):
        x, y = _COLUMN * (number % 2) + 14, _TOP + _ROW * (number // 2)
        lines += [f'  <g transform="translate({x} {y})">', *_panel(panel, figure, curves), '  </g>']
    return '\n'.join([*lines, '</svg>', ''])


def _results(report: Mapping[str, Any]) -> Results:
    results = Results()
    for key, outcomes in report['results'].items():
        for number, outcome in outcomes.items():
            results.add(key, int(number), outcome)
    return results


def _measured_with(report: Mapping[str, Any]) -> str:
    return f'Python {report["python"]}, {report["cores"]} cores, medians of {report["rounds"]} rounds'


def _section(key: str) -> Section:
    return next(section for section in scale_sections(Sizes()) if section.key == key)


def _points(curve: Curve, panel: Panel, figure: Figure, results: Results) -> list[_Point]:
    section, factor = _section(curve.section), UNITS[curve.name][1]
    points = []
    for contender in section.contenders:
        samples = results.samples(section.key_of(contender), curve.name).values()
        if samples:
            values = sorted(1e6 / sample if panel.inverse else sample * factor for sample in samples)
            median = results.median(section.key_of(contender), curve.name)
            assert median is not None
            middle = 1e6 / median if panel.inverse else median * factor
            points.append(_Point(_at(contender.load, figure), middle, values[0], values[-1]))
    return points


def _at(load: Load, figure: Figure) -> float:
    return float(getattr(load, figure.field))


def _said(figure: Figure, points: list[list[list[_Point]]]) -> Iterator[str]:
    for panel, curves in zip(figure.panels, points, strict=True):
        for curve, line in zip(panel.curves, curves, strict=True):
            values = ', '.join(f'{_number(point.median)} at {point.at:,.0f}' for point in line)
            yield f'{panel.title}; {curve.label}, by {figure.along}: {values}.'


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _panel(panel: Panel, figure: Figure, curves: list[list[_Point]]) -> Iterator[str]:
    x_axis = _Axis([point.at for point in curves[0]], _PLOT_WIDTH, log=True)
    highest = max(point.high for line in curves for point in line)
    lowest = min(point.low for line in curves for point in line)
    y_axis = _Axis(_decades(lowest, highest) if panel.log else _steps(highest), _PLOT_HEIGHT, panel.log)
    yield f'    <text class="name" x="{_PLOT_X}" y="14">{escape(panel.title)}</text>'
    yield from _legend(panel)
    yield from _across(y_axis)
    yield from _along(x_axis, figure.along)
    for line, name in zip(curves, _CLASSES, strict=False):
        yield from _line(line, name, x_axis, y_axis)


def _decades(lowest: float, highest: float) -> list[float]:
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    return [10.0**exponent for exponent in range(first, max(last, first + 1) + 1)]


def _steps(highest: float) -> list[float]:
    '''Return multiples of 1, 2 or 5 times a power of ten, from 0 to beyond *highest*, in at most six steps.'''
    power = 10.0 ** math.floor(math.log10(highest / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 6 >= highest)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _legend(panel: Panel) -> Iterator[str]:
    x = _PLOT_X
    for curve, name in zip(panel.curves, _CLASSES, strict=False):
        yield f'    <path class="line {name}" d="M{x} 31h26"/>{_mark(name, x + 13, 31)}'
        yield f'    <text class="note" x="{x + 33}" y="35">{escape(curve.label)}</text>'
        x += 50 + 6 * len(curve.label)


def _across(axis: _Axis) -> Iterator[str]:
    for tick in axis.ticks:
        y = _PLOT_Y + _PLOT_HEIGHT - axis(tick)
        yield f'    <path class="grid" d="M{_PLOT_X} {y:.1f}h{_PLOT_WIDTH}"/>'
        yield f'    <text class="note" x="{_PLOT_X - 9}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'


def _along(axis: _Axis, along: str) -> Iterator[str]:
    bottom = _PLOT_Y + _PLOT_HEIGHT
    yield f'    <path class="axis" d="M{_PLOT_X} {bottom}h{_PLOT_WIDTH}"/>'
    for tick in axis.ticks:
        x = _PLOT_X + axis(tick)
        yield f'    <path class="axis" d="M{x:.1f} {bottom}v5"/>'
        yield f'    <text class="note" x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{_short(tick)}</text>'
    yield (
        f'    <text class="note" x="{_PLOT_X + _PLOT_WIDTH / 2:g}" y="{bottom + 36}" text-anchor="middle">'
        f'{escape(along)}</text>'
    )


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f'{value / 1_000_000:g} M'
    return f'{value / 1000:g} k' if value >= 10_000 else f'{value:,.4g}'


def _line(points: Iterable[_Point], name: str, x_axis: _Axis, y_axis: _Axis) -> Iterator[str]:
    bottom = _PLOT_Y + _PLOT_HEIGHT
    places = [(_PLOT_X + x_axis(point.at), bottom - y_axis(point.median), point) for point in points]
    yield f'    <path class="line {name}" d="M{" ".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)}"/>'
    for x, y, point in places:
        low, high = bottom - y_axis(point.low), bottom - y_axis(point.high)
        yield f'    <path class="spread {name}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
        yield f'    {_mark(name, x, y)}'


def _mark(name: str, x: float, y: float) -> str:
    if name == 'one':
        return f'<circle class="mark-one" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    return f'<rect class="mark-two" x="{x - 3.8:.1f}" y="{y - 3.8:.1f}" width="7.6" height="7.6"/>'


if __name__ == '__main__':
    main(*sys.argv[1:])
