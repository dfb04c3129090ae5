'''What a worker's process has of its parent's, what of its own, and where a pool may live, for every start method.'''

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import run, started
from harness import Echo, gone, on_each_loop, rest_of

import looppool
from looppool import Pool, Worker, process, task_done


class Reporter(Worker[str, Any]):
    '''Evaluates expressions and tells their values.'''

    @task_done
    def _process_message(self, expression: str) -> None:
        self._put_nowait(eval(expression))


async def ask(*expressions: str, **settings: Any) -> list[Any]:
    '''The values of some expressions in a worker.'''
    async with Pool(pool_size=1, worker_class=Reporter, **settings) as pool:
        for expression in expressions:
            pool.put_nowait(expression)
    return await rest_of(pool)


# Options


async def test_env_comes_on_top_of_the_parents(context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LOOPPOOL_TEST_KEPT', 'kept')
    monkeypatch.setenv('LOOPPOOL_TEST_CHANGED', 'old')
    env = {'LOOPPOOL_TEST_CHANGED': 'new', 'LOOPPOOL_TEST_ADDED': 'added'}
    names = ['KEPT', 'CHANGED', 'ADDED']
    asked = [f'os.environ["LOOPPOOL_TEST_{name}"]' for name in names]
    assert await ask(*asked, context=context, env=env) == ['kept', 'new', 'added']
    # For programs that the worker runs, and for its C libraries, too.
    printed = [f'subprocess.check_output(["printenv", "LOOPPOOL_TEST_{name}"], text=True).strip()' for name in names]
    assert await ask(*printed, context=context, env=env) == ['kept', 'new', 'added']
    assert os.environ['LOOPPOOL_TEST_CHANGED'] == 'old' and 'LOOPPOOL_TEST_ADDED' not in os.environ


@pytest.mark.parametrize('kind', ['absolute', 'relative'])
async def test_cwd(context: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'folder'
    folder.mkdir()
    cwd = folder if kind == 'absolute' else Path('folder')
    assert await ask('os.getcwd()', context=context, cwd=cwd) == [str(folder)]
    assert os.getcwd() == str(tmp_path)


async def test_a_cwd_that_is_not_there_is_told_at_start(context: str, tmp_path: Path) -> None:
    pool = Pool(pool_size=1, worker_class=Echo, context=context, cwd=tmp_path / 'nowhere')
    with pytest.raises((looppool.WorkerStartError, FileNotFoundError), match='nowhere'):
        async with asyncio.timeout(10), pool:
            raise AssertionError('it started')
    assert pool.state == 'stopped'


async def test_path_comes_in_front_and_modules_are_imported_from_it(context: str, tmp_path: Path) -> None:
    (tmp_path / 'only_here.py').write_text('ORIGIN = __file__')
    asked = ['sys.path[0]', '__import__("only_here").ORIGIN']
    assert await ask(*asked, context=context, path=[tmp_path]) == [str(tmp_path), str(tmp_path / 'only_here.py')]
    assert str(tmp_path) not in sys.path


async def test_preload_is_imported_by_the_fork_server(tmp_path: Path) -> None:
    (tmp_path / 'preloaded.py').write_text('import os\nPID = os.getpid()')
    settings = {'context': 'forkserver', 'path': [tmp_path], 'preload': ['preloaded']}
    [imported_by, forked_by] = await ask('sys.modules["preloaded"].PID', 'os.getppid()', **settings)
    assert imported_by == forked_by != os.getpid()


async def test_the_module_of_the_worker_is_preloaded() -> None:
    [pid, imported] = await ask('os.getpid()', 'IMPORTED_BY', context='forkserver')
    assert imported != pid and imported in process.fork_server_pids()


IMPORTED_BY = os.getpid()


async def test_a_preload_that_fails_is_left_to_the_worker_that_needs_it() -> None:
    assert await ask('1 + 1', context='forkserver', preload=['no_such_module']) == [2]


@pytest.mark.parametrize(
    'settings',
    [
        {'context': 'thread'},
        {'context': 'fork', 'executable': sys.executable},
        {'context': 'forkserver', 'executable': sys.executable},
        {'context': 'fork', 'preload': ['json']},
        {'context': 'spawn', 'preload': ['json']},
    ],
)
def test_what_a_context_cannot_do_is_a_value_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match='context'):
        Pool(worker_class=Echo, **settings)


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    '''The interpreter of another virtual environment, which sees the packages of this one.'''
    folder = tmp_path / 'other'
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path('purelib', vars={'base': str(folder), 'platbase': str(folder)})
    Path(packages, 'these.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return folder / 'bin' / 'python'


async def test_spawn_may_run_another_interpreter(other_python: Path, tmp_path: Path) -> None:
    (tmp_path / 'only_here.py').write_text('value = 7')
    values = await ask(
        'sys.prefix', 'sys.executable', 'sys.path[:2]', '__import__("only_here").value',
        executable=str(other_python), path=[tmp_path, Path(__file__).parent],
    )  # fmt: skip
    assert values[:2] == [str(other_python.parent.parent), str(other_python)]
    assert values[2:] == [[str(tmp_path), str(Path(__file__).parent)], 7]


# What changes between two pools that share a warm fork server


async def test_a_pool_has_the_environment_of_its_start(
    context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ['os.environ.get("LOOPPOOL_TEST")', 'os.environ.get("LOOPPOOL_GONE")', 'os.getcwd()', 'sys.path[0]']
    monkeypatch.setenv('LOOPPOOL_TEST', 'before')
    monkeypatch.setenv('LOOPPOOL_GONE', 'there')
    monkeypatch.chdir(tmp_path)
    assert (await ask(*asked, context=context))[:3] == ['before', 'there', str(tmp_path)]
    servers = set(process.fork_server_pids())
    folder = tmp_path / 'folder'
    folder.mkdir()
    monkeypatch.setenv('LOOPPOOL_TEST', 'after')
    monkeypatch.delenv('LOOPPOOL_GONE')
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    assert await ask(*asked, context=context) == ['after', None, str(folder), str(folder)]
    assert set(process.fork_server_pids()) == servers


# Its own


async def test_the_process_title_names_pool_and_worker(context: str) -> None:
    async with Pool(pool_size=2, worker_class=Echo, context=context, name='mill') as pool:
        titles = [' '.join(psutil.Process(member.pid).cmdline()).strip() for member in pool.members]
    assert titles == ['looppool: mill worker 0', 'looppool: mill worker 1']


async def test_stdin_is_empty(context: str) -> None:
    assert await ask('os.read(0, 100)', 'sys.stdin.read()', context=context) == [b'', '']


STDIN = '''
import asyncio, sys
import looppool

class Reader(looppool.Worker):
    @looppool.task_done
    def _process_message(self, _):
        self._put_nowait(sys.stdin.read())

async def main():
    async with looppool.Pool(pool_size=1, worker_class=Reader, context=sys.argv[1]) as pool:
        pool.put_nowait(None)
    print('the worker has', [result async for result in pool.results()])

# Reads ahead: what is in the buffer is the parent's as well.
print(sys.stdin.readline(), end='')
asyncio.run(main())
print(sys.stdin.readline(), end='')
'''


async def test_stdin_of_the_parent_stays_the_parents(context: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, '-c', STDIN, context, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(Path(looppool.__file__).parent.parent)},
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(b'first line\nsecond line\n'), 30)
    assert output.decode() == "first line\nthe worker has ['']\nsecond line\n"


async def test_programs_of_a_worker_can_be_interrupted_and_terminated(context: str) -> None:
    [status] = await ask('subprocess.check_output(["cat", "/proc/self/status"], text=True)', context=context)
    masks = dict(line.split(':\t') for line in status.splitlines() if line.startswith('Sig'))
    for mask in ('SigIgn', 'SigBlk', 'SigCgt'):
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
            assert not int(masks[mask], 16) >> (signum - 1) & 1, (mask, signum)


async def test_exit_handlers_of_a_worker_run_and_those_of_the_parent_do_not(context: str, tmp_path: Path) -> None:
    script, record = tmp_path / 'script.py', tmp_path / 'record'
    script.write_text(EXIT_HANDLERS)
    assert await run(sys.executable, script, context, record) == (0, '', '')
    assert record.read_text() == 'worker 0\nparent\n'


EXIT_HANDLERS = '''
import asyncio, atexit, sys
import looppool

def record(who):
    with open(sys.argv[2], 'a') as file:
        print(who, file=file)

class Registers(looppool.Worker):
    def _initialise(self, record, path):
        sys.argv[2:] = [path]
        atexit.register(record, f'worker {self._number}')

atexit.register(record, 'parent')

async def main():
    options = {'record': record, 'path': sys.argv[2]}
    async with looppool.Pool(pool_size=1, worker_class=Registers, context=sys.argv[1], options=options):
        pass

asyncio.run(main())
'''


# Where a pool may live


async def use_a_pool(context: str) -> list[Any]:
    async with Pool(pool_size=2, worker_class=Echo, context=context) as pool:
        for number in range(100):
            await pool.put(number)
    return sorted(await rest_of(pool))


async def test_on_a_loop_in_another_thread(context: str, each_loop: Any) -> None:
    def run() -> list[Any]:
        with asyncio.Runner(loop_factory=each_loop) as runner:
            return runner.run(use_a_pool(context))

    assert await asyncio.to_thread(run) == list(range(100))


async def test_two_loops_in_two_threads_at_once(context: str) -> None:
    pools = [asyncio.to_thread(asyncio.run, use_a_pool(context)) for _ in range(2)]
    assert await asyncio.gather(*pools) == [list(range(100))] * 2


def test_on_one_loop_after_another(context: str) -> None:
    for _ in range(2):
        assert asyncio.run(use_a_pool(context)) == list(range(100))


class Outer(Worker[Any, Any]):
    '''Has a pool of its own.'''

    async def _initialise(self, context: str) -> None:
        self._pool: Pool[Any, Any] = Pool(pool_size=2, worker_class=Echo, context=context, name='inner')
        self._pool.process_message = self._pass_on
        await self._pool.start()

    @task_done
    async def _process_message(self, message: Any) -> None:
        await self._pool.put(message)

    @task_done
    def _pass_on(self, result: Any, result_done: Callable[[], None]) -> None:
        self._put_nowait((result, [member.pid for member in self._pool.members], list(process.fork_server_pids())))

    async def _finalise(self) -> None:
        await self._pool.stop()


@on_each_loop
async def test_a_worker_may_have_a_pool_of_its_own(context: str) -> None:
    async with Pool(pool_size=2, worker_class=Outer, context=context, options={'context': context}) as pool:
        for number in range(20):
            await pool.put(number)
    results = await rest_of(pool)
    assert sorted(number for number, _, _ in results) == list(range(20))
    inner = {pid for _, pids, _ in results for pid in pids}
    servers = {pid for _, _, pids in results for pid in pids}
    assert len(inner) == 4 and len(servers) == (2 if context == 'forkserver' else 0)
    gone(inner | servers)


# Its end


ENDS = '''
import asyncio, os, sys
import looppool
from looppool import process

class Echo(looppool.Worker):
    @looppool.task_done
    def _process_message(self, message):
        self._put_nowait(message)

async def main():
    pool = looppool.Pool(pool_size=2, worker_class=Echo, context=sys.argv[1])
    await pool.start()
    print(*[member.pid for member in pool.members], *process.fork_server_pids(), flush=True)
    if sys.argv[2] == 'exit':
        os._exit(3)
    if sys.argv[2] == 'return':
        await pool.stop()
    if sys.argv[2] == 'raise':
        raise SystemExit(5)
    if sys.argv[2] == 'wait':
        await asyncio.Event().wait()

asyncio.run(main())
'''


@pytest.mark.parametrize(('how', 'code'), [('return', 0), ('exit', 3), ('raise', 5), ('wait', -signal.SIGKILL)])
async def test_workers_and_fork_servers_end_with_the_parent(context: str, tmp_path: Path, how: str, code: int) -> None:
    script = tmp_path / 'script.py'
    script.write_text(ENDS)
    async with started(sys.executable, script, context, how) as command:
        pids = {int(pid) for pid in (await command.line()).split()}
        assert len(pids) == (3 if context == 'forkserver' else 2)
        if how == 'wait':
            command.process.kill()
        assert await command.ended() == code
        gone(pids, within=1.0)
        assert command.errors == ''


async def test_a_fork_server_that_died_is_replaced() -> None:
    assert await ask('1 + 1', context='forkserver') == [2]
    for pid in list(process.fork_server_pids()):
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(10)
    assert await ask('1 + 2', context='forkserver') == [3]


async def test_fork_servers_can_be_closed() -> None:
    assert await ask('1 + 1', context='forkserver') == [2]
    servers = set(process.fork_server_pids())
    process.close_fork_servers()
    assert servers and not set(process.fork_server_pids())
    gone(servers)
    assert await ask('1 + 2', context='forkserver') == [3]


def test_the_threads_of_the_parent_are_not_awaited_by_a_forked_worker() -> None:
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    try:
        assert asyncio.run(use_a_pool('fork')) == list(range(100))
    finally:
        waiting.set()
        thread.join()
