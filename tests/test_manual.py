'''Every Python block of the README and the manual is a complete script, and runs.

A block that is no script stands behind a comment `fragment: why`, and at least compiles. A text block behind a comment
`prints:` is exactly what the script before it prints. A script leaves no process, and writes to stderr only what a
comment `logs: text | text` before it announces: each line has one of the texts, and each text is there.
'''

import inspect
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import looppool

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'manual').glob('*.rst'))]
LIMIT = 30.0  # seconds for one script; each needs about one

BLOCK = {
    '.rst': re.compile(
        r'(?:^\.\. (?P<mark>(?:fragment|logs): .+|prints:)\n\n)?'
        r'^\.\. code-block:: (?P<language>python|text)\n\n(?P<body>(?:(?: {3}.*)?\n)+)',
        re.MULTILINE,
    ),
    '.md': re.compile(
        r'(?:^<!-- (?P<mark>(?:fragment|logs): .+|prints:) -->\n)?^```(?P<language>python|text)\n(?P<body>.*?)^```$',
        re.MULTILINE | re.DOTALL,
    ),
}


@dataclass
class Script:
    '''One Python block and where it stands.'''

    page: str
    line: int
    source: str
    fragment: bool
    logs: list[str]
    prints: str | None = None

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


def scripts_of(page: Path) -> list[Script]:
    '''The Python blocks of one page, each with the output promised behind it.'''
    text = page.read_text()
    found: list[Script] = []
    for match in BLOCK[page.suffix].finditer(text):
        mark, body = match['mark'] or '', textwrap.dedent(match['body']).strip('\n') + '\n'
        if match['language'] == 'python':
            line = text.count('\n', 0, match.start('body')) + 1
            logs = mark.removeprefix('logs: ').split(' | ') if mark.startswith('logs:') else []
            found.append(Script(page.name, line, body, mark.startswith('fragment:'), logs))
        elif mark == 'prints:':
            found[-1].prints = body
    return found


SCRIPTS = [script for page in PAGES for script in scripts_of(page)]
RUNNABLE = [script for script in SCRIPTS if not script.fragment]


def left_behind(session: int) -> list[psutil.Process]:
    '''The processes of a session that are still there two seconds after its leader has ended.'''
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                members.append(process)
        except (ProcessLookupError, PermissionError):
            continue
    return psutil.wait_procs(members, timeout=2)[1]


@pytest.mark.parametrize('script', RUNNABLE, ids=str)
def test_script_runs(script: Script, tmp_path: Path) -> None:
    path = tmp_path / 'script.py'
    path.write_text(script.source)
    process = subprocess.Popen(
        [sys.executable, '-W', 'error', path.name],
        cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            output, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
            left = left_behind(process.pid)
            for stray in left:
                stray.kill()
    assert process.returncode == 0, errors
    assert [line for line in errors.splitlines() if not any(text in line for text in script.logs)] == []
    assert [text for text in script.logs if text not in errors] == []
    assert left == []
    if script.prints is not None:
        assert output == script.prints


@pytest.mark.parametrize('script', [script for script in SCRIPTS if script.fragment], ids=str)
def test_fragment_compiles(script: Script) -> None:
    compile(script.source, str(script), 'exec')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_no_block_is_missed(page: Path) -> None:
    text = page.read_text()
    blocks = len(re.findall(r'^ *(?:```python|\.\. code-block:: python)$', text, re.MULTILINE))
    promises = len(re.findall(r'^(?:\.\. |<!-- )prints:', text, re.MULTILINE))
    found = scripts_of(page)
    assert (len(found), sum(script.prints is not None for script in found)) == (blocks, promises)


def test_every_parameter_of_a_pool_is_in_its_table() -> None:
    text = (ROOT / 'manual' / 'pool.rst').read_text()
    assert [name for name in inspect.signature(looppool.Pool).parameters if f'``{name}``' not in text] == []


def test_every_module_is_in_the_table_of_layers() -> None:
    text = (ROOT / 'manual' / 'changing.rst').read_text()
    modules = [path.stem for path in (ROOT / 'looppool').glob('[!_]*.py')]
    assert [name for name in modules if f'``{name}``' not in text] == []


def test_gate_runs_the_test_command_of_the_readme() -> None:
    command = 'python3 -m venv .venv && .venv/bin/pip install tox && .venv/bin/tox'
    assert f'\n{command}\n' in (ROOT / 'README.md').read_text()
    assert f"'{command}'" in (ROOT / '.ci' / 'run').read_text()
