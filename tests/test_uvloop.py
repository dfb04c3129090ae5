'''Whose loops are uvloop's, and what is peculiar to them. The contracts that hold on every loop ask for `each_loop`.'''

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import needs_uvloop
from harness import Echo, rest_of

import looppool
from looppool import Pool
from looppool.callee import _is_users

pytestmark = needs_uvloop


def loop_of() -> str:
    '''What the loop here is made by.'''
    return type(asyncio.get_running_loop()).__module__.partition('.')[0]


@pytest.mark.parametrize('wanted', [False, True])
async def test_workers_have_the_loop_that_was_asked_for(context: str, each_loop: Any, wanted: bool) -> None:
    async with Pool(pool_size=1, worker_class=Echo, context=context, uvloop=wanted) as pool:
        named = await pool.spawn('named')
        assert loop_of() == each_loop.__module__.partition('.')[0]
        expected = 'uvloop' if wanted else 'asyncio'
        assert (await pool.call(loop_of), await named.call(loop_of)) == (expected, expected)
        for number in range(100):
            await pool.put(number)
    assert await rest_of(pool) == list(range(100))


def test_without_uvloop_the_pool_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'uvloop', None)
    Pool()
    with pytest.raises(ImportError, match=r"pip install 'looppool\[uvloop\]'"):
        Pool(uvloop=True)


def test_it_is_true_or_false() -> None:
    with pytest.raises(TypeError, match='uvloop has to be True or False'):
        Pool(uvloop='yes')  # type: ignore[arg-type]


async def test_another_interpreter_may_lack_it(tmp_path: Path) -> None:
    (tmp_path / 'uvloop.py').write_text('raise ImportError("uvloop is not here")')
    pool = Pool(pool_size=1, executable=sys.executable, uvloop=True, env={'PYTHONPATH': str(tmp_path)})
    with pytest.raises(looppool.WorkerStartError, match='uvloop is not here'):
        await pool.start()


async def exit_codes_of_programs() -> list[int]:
    codes = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        program = await asyncio.create_subprocess_exec(
            'cat', stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert program.stdin and program.stdout
        program.stdin.write(b'it runs')
        await program.stdout.read(1)
        program.send_signal(signum)
        codes.append(await program.wait())
    return codes


async def test_programs_that_the_loop_of_a_worker_starts_heed_signals(context: str, each_loop: Any) -> None:
    async with Pool(pool_size=1, context=context) as pool:
        assert await pool.call(exit_codes_of_programs) == [-signal.SIGINT, -signal.SIGTERM]


async def test_the_loop_itself_is_not_interrupted() -> None:
    frame = 'sys._getframe()'
    assert _is_users(eval(frame))
    assert not _is_users(eval(frame, {'__name__': 'uvloop._noop', 'sys': sys}))
