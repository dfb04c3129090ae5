'''A pool that can't start: `start` says why, and nothing is left running, which the leak check of every test sees.'''

import asyncio
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from conftest import LogGuard
from workers import Casualty

import looppool

from .observed import ObservedPool, Watch, until


async def start_error(pool: ObservedPool) -> looppool.WorkerStartError:
    '''Start a pool that has to fail; returns the error, after having seen what becomes of such a pool.'''
    with pytest.raises(looppool.WorkerStartError) as caught:
        await pool.start()
    assert [(member.state, member.pid) for member in pool.members] == [('stopped', None)] * len(pool.members)
    assert pool.state == 'stopped'
    with pytest.raises(looppool.PoolClosed):
        pool.put_nowait(('echo',))
    await pool.stop()
    return caught.value


@pytest.mark.parametrize('verb', ['fail', 'fail_later'])
async def test_initialise_raises(context: str, verb: str) -> None:
    pool = ObservedPool(context=context, options={'on_start': (verb, KeyError('no such thing'))})
    error = await start_error(pool)
    assert error.number in (0, 1)
    assert error.pid is not None
    cause: Any = error.__cause__
    assert type(cause) is KeyError
    assert cause.args == ('no such thing',)
    assert f'in {verb}\n' in cause.__cause__.traceback
    assert "it failed with KeyError: 'no such thing'" in str(error)


async def test_initialise_exits(context: str) -> None:
    error = await start_error(ObservedPool(context=context, options={'on_start': ('fail', SystemExit(3))}))
    assert isinstance(error.__cause__, SystemExit)


async def test_process_ends_in_initialise(context: str) -> None:
    error = await start_error(ObservedPool(context=context, options={'on_start': ('say_and_leave', 'the reason\n', 3)}))
    assert 'exited with code 3' in str(error)
    assert str(error).endswith('the reason')


@pytest.mark.parametrize('verb', ['never', 'stop_itself', 'calculate'])
async def test_initialise_never_ends(context: str, verb: str) -> None:
    pool = ObservedPool(context=context, options={'on_start': (verb,)}, start_timeout=1.5)
    error = await start_error(pool)
    assert 'it was not ready after 1.5 s' in str(error)


async def test_one_of_two_fails_and_the_other_is_ended(context: str, tmp_path: Path) -> None:
    pool = ObservedPool(context=context, worker_class=SecondFails, options={'folder': str(tmp_path)})
    pids: list[int] = []

    async def note_pid() -> None:
        await until(lambda: (tmp_path / 'first').exists())
        pids.append(int((tmp_path / 'first').read_text()))
        with Watch(pids) as watch:
            (tmp_path / 'go').touch()
            await watch.gone()

    noting = asyncio.create_task(note_pid())
    assert isinstance((await start_error(pool)).__cause__, ValueError)
    await noting
    assert pids


class SecondFails(Casualty):
    '''The first worker becomes ready; the second waits for that and fails.'''

    def _initialise(self, folder: str) -> Any:
        self._folder = Path(folder)
        return self._tell() if self._number == 0 else self._fail()

    async def _tell(self) -> None:
        (self._folder / 'draft').write_text(str(os.getpid()))
        (self._folder / 'draft').rename(self._folder / 'first')

    async def _fail(self) -> None:
        while not (self._folder / 'go').exists():
            await asyncio.sleep(0.005)
        raise ValueError('the second fails')


@pytest.mark.parametrize('context', ['forkserver', 'spawn'])
async def test_worker_class_that_can_not_be_imported_there(context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType('module_without_a_file')
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.Lost = type('Lost', (looppool.Worker,), {'__module__': module.__name__})  # type: ignore[attr-defined]
    error = await start_error(ObservedPool(context=context, worker_class=module.Lost))
    assert isinstance(error.__cause__, ModuleNotFoundError)
    assert 'module_without_a_file' in str(error)


async def test_folder_that_does_not_exist(context: str) -> None:
    error = await start_error(ObservedPool(context=context, cwd='/no/such/folder', start_timeout=5.0))
    assert '/no/such/folder' in str(error)


async def test_interpreter_that_does_not_exist() -> None:
    error = await start_error(ObservedPool(context='spawn', executable='/no/such/python'))
    assert '/no/such/python' in str(error)


async def test_interpreter_without_looppool(tmp_path: Path) -> None:
    bare = tmp_path / 'python'
    bare.write_text('#!/bin/sh\necho "I am no Python" >&2\nexit 7\n')
    bare.chmod(0o755)
    error = await start_error(ObservedPool(context='spawn', executable=str(bare)))
    assert 'exited with code 7' in str(error)
    assert error.stderr == 'I am no Python'


async def test_preloaded_module_that_fails_is_no_matter_to_workers_that_do_not_need_it() -> None:
    async with ObservedPool(context='forkserver', preload=['no_such_module']) as pool:
        await pool.works()


async def test_preloaded_module_that_never_ends() -> None:
    pool = ObservedPool(context='forkserver', preload=['faults.hanging_module'], start_timeout=0.5)
    assert 'it was not ready after 0.5 s' in str(await start_error(pool))


async def test_options_over_the_cap_are_the_error_of_start(context: str) -> None:
    pool = ObservedPool(context=context, options={'on_start': ('nothing', bytes(1 << 20))}, max_message_bytes=10_000)
    with pytest.raises(looppool.MessageTooBig):
        await pool.start()
    assert [member.pid for member in pool.members] == [None, None]


async def test_class_by_value_over_the_cap_leaves_nothing_running(
    context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_value = type('ByValue', (Casualty,), {'__module__': '__main__', 'table': bytes(20_000)})
    monkeypatch.setattr(sys.modules['__main__'], 'ByValue', by_value, raising=False)
    pool = ObservedPool(context=context, worker_class=by_value, max_message_bytes=10_000)
    with pytest.raises(looppool.MessageTooBig):
        await pool.start()
    assert [member.pid for member in pool.members] == [None, None]


async def test_options_that_can_not_be_pickled(context: str) -> None:
    pool = ObservedPool(context=context, options={'on_start': ('echo', asyncio.get_running_loop())})
    with pytest.raises(TypeError):
        await pool.start()
    await pool.stop()
    with pytest.raises(looppool.PoolClosed):
        pool.put_nowait(('echo',))


async def test_replacement_that_does_not_become_ready_in_time(context: str, logs: LogGuard, tmp_path: Path) -> None:
    logs.expect('was killed by SIGKILL')
    late = logs.expect(r'worker 0 \(pid \d+\) did not start: it was not ready after 8 s')
    options = {'flag': str(tmp_path / 'flag')}
    async with ObservedPool(context=context, worker_class=LateOnce, options=options, start_timeout=8.0) as pool:
        (tmp_path / 'flag').touch()
        pool.put_nowait(('die',), worker_num=0)
        await pool.failure()
        await pool.replaced(restarts=2)
        await pool.works()
    assert len(late) == 1


class LateOnce(Casualty):
    '''Does not become ready where there is the flag, which it takes away.'''

    async def _initialise(self, flag: str) -> None:
        super()._initialise()
        if Path(flag).exists():
            Path(flag).unlink()
            await self.never()


async def test_pid_is_known_when_start_returns(tmp_path: Path) -> None:
    flag = str(tmp_path / 'flag')
    async with ObservedPool(
        context='forkserver',
        pool_size=1,
        worker_class=SaysWhenReady,
        preload=['faults.late_report'],
        env={'LATE_REPORT_FLAG': flag},
    ) as pool:
        assert pool.members[0].pid is not None
        await pool.works()


class SaysWhenReady(Casualty):
    '''Makes the file of `late_report` when the parent has been told that it is ready.'''

    def _initialise(self) -> None:
        super()._initialise()
        flag = Path(os.environ['LATE_REPORT_FLAG'])
        self._ioloop.add_callback(self._ioloop.add_callback, flag.touch)
