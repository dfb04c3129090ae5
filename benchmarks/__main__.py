'''The command: ``python -m benchmarks`` with ``messages``, ``calls``, ``payloads``, ``scale`` or ``setup``.'''

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from benchmarks.call_catalogue import call_sections
from benchmarks.call_targets import call_targets
from benchmarks.catalogue import CEILING, LOOPPOOL, Section, Sizes, sections
from benchmarks.payload_catalogue import COPY, payload_sections
from benchmarks.payload_targets import payload_targets
from benchmarks.processes import ORIGINAL_FOLDER
from benchmarks.report import table, verdicts
from benchmarks.results import Results
from benchmarks.rounds import run_rounds
from benchmarks.scale_catalogue import scale_sections
from benchmarks.targets import Target, targets

__all__ = ['main']

_ORIGINAL = 'Looppool==0.4.0'
_DISTRIBUTIONS = (
    'tornado', 'psutil', 'distex', 'aiomultiprocess', 'xoscar', 'uvloop', 'ray', 'distributed', 'tractor', 'numpy',
    'pyzmq', 'loky', 'joblib',
)
_INTERRUPTED = 130

_SUITES: dict[str, tuple[Callable[[Sizes], list[Section]], Callable[[], list[Target]]]] = {
    'messages': (sections, targets),
    'calls': (call_sections, call_targets),
    'payloads': (payload_sections, payload_targets),
    'scale': (scale_sections, list),
}
'''What each command runs, and what looppool has to reach there.'''

_ROUNDS = {'messages': 5, 'calls': 5, 'payloads': 5, 'scale': 3}
'''How often, if nothing else is asked for.'''

_HELP = {
    'messages': 'measure messages, and what a pool costs',
    'calls': 'measure calls, map and streams',
    'payloads': 'measure large arrays',
    'scale': 'measure one to many workers, and one to very many tasks in flight',
}


def main(arguments: Sequence[str] | None = None) -> int:
    '''Run the command.

    Args:
        arguments: of the command line, by default those of this process.

    Returns:
        The exit code: 0; 1 when a row of looppool or of the ceiling failed; 130 when interrupted.
    '''
    options = _parser().parse_args(arguments)
    if options.command == 'setup':
        return _setup()
    available = _SUITES[options.command][0](_sizes(options))
    chosen = _chosen(available, options.only)
    if not chosen:
        names = '\n'.join(section.key_of(each) for section in available for each in section.contenders)
        print(f'nothing matches --only; there are:\n{names}', file=sys.stderr)
        return 2
    return _measure(chosen, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description='Measure looppool and its peers.')
    commands = parser.add_subparsers(dest='command', required=True)
    commands.add_parser('setup', help=f'install {_ORIGINAL} where only its own rows see it')
    suites = {
        name: commands.add_parser(name, help=f'{text}: run every contender in interleaved rounds and print one table')
        for name, text in _HELP.items()
    }
    for name, suite in suites.items():
        suite.add_argument('--rounds', type=_positive, help=f'default: {_ROUNDS[name]}, with --quick 1')
        suite.add_argument(
            '--only', action='append', default=[], metavar='TEXT',
            help='run what has TEXT in its name, "section/contender"; may be repeated',
        )
        suite.add_argument('--quick', action='store_true', help='a twentieth of the messages: shows that it runs')
        suite.add_argument('--json', metavar='FILE', help='write every value of every round to FILE too')
    suites['messages'].add_argument('--idle-seconds', type=float, help='watch the idle pool that long (10, quick: 2)')
    suites['messages'].add_argument(
        '--flat-tasks', type=_positive, help='tasks of the long run (1000000, quick: 20000)'
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError('must be at least 1')
    return number


def _sizes(options: argparse.Namespace) -> Sizes:
    default = Sizes(scale=0.05, idle=2.0, flat=20_000) if options.quick else Sizes()
    if options.command != 'messages':
        return default
    return replace(default, idle=options.idle_seconds or default.idle, flat=options.flat_tasks or default.flat)


def _chosen(available: list[Section], only: list[str]) -> list[Section]:
    '''Return the *available* sections with those contenders only whose name contains one of the texts *only*.'''
    if not only:
        return available
    chosen = [
        replace(section, contenders=[
            contender for contender in section.contenders
            if any(text in section.key_of(contender) for text in only)
        ])
        for section in available
    ]
    return [section for section in chosen if section.contenders]


def _setup() -> int:
    command = [
        sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--upgrade', '--target', str(ORIGINAL_FOLDER),
        _ORIGINAL,
    ]
    return subprocess.run(command, check=False).returncode


def _measure(chosen: list[Section], options: argparse.Namespace) -> int:
    rounds = options.rounds or (1 if options.quick else _ROUNDS[options.command])
    results, load = Results(), [os.getloadavg()[0]]
    code = 0
    try:
        run_rounds(chosen, rounds, results, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        code = _INTERRUPTED
    load.append(os.getloadavg()[0])
    _print(chosen, results, rounds, load, options)
    if options.json:
        _write(results, rounds, load, options)
    return code or _own_failures(chosen, results)


def _print(
    chosen: list[Section], results: Results, rounds: int, load: list[float], options: argparse.Namespace
) -> None:
    print(f'\nPython {platform.python_version()}, {_versions()}; {os.cpu_count()} cores')
    print(f'medians of {rounds} round(s); load average {load[0]:.2f} before them, {load[1]:.2f} after them\n')
    print(table(chosen, results))
    if not _targets(options):
        return
    doubt = ' (with --quick: too few messages to judge by)' if options.quick else ''
    print(f'\nTargets{doubt}\n{verdicts(_targets(options), results)}')


def _targets(options: argparse.Namespace) -> list[Target]:
    return _SUITES[options.command][1]()


def _versions() -> str:
    return ', '.join(f'{name} {_version(name)}' for name in _DISTRIBUTIONS)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return '–'


def _write(results: Results, rounds: int, load: list[float], options: argparse.Namespace) -> None:
    report = {
        'python': platform.python_version(),
        'platform': platform.platform(),
        'cores': os.cpu_count(),
        'load_average': load,
        'versions': {name: _version(name) for name in _DISTRIBUTIONS},
        'rounds': rounds,
        'results': results.as_json(),
        'targets': [target.as_json(results) for target in _targets(options)],
    }
    with open(options.json, 'w', encoding='utf-8') as file:
        json.dump(report, file, indent=2)
        file.write('\n')


def _own_failures(chosen: list[Section], results: Results) -> int:
    '''Return 1 when a contender failed that nothing needs but this repository.'''
    return int(any(
        results.failures(section.key_of(contender))
        for section in chosen
        for contender in section.contenders
        if contender.name.startswith((LOOPPOOL, CEILING, COPY))
    ))


if __name__ == '__main__':
    sys.exit(main())
