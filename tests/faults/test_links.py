'''Messages over the cap, and malformed, truncated and hostile bytes on a link: that link ends, and nothing else.'''

import os
import pickle
import struct
import sys
from typing import Any

import pytest
from conftest import LogGuard
from parcels import run
from workers import Casualty

import looppool
from looppool.frames import RUN, pack_header
from looppool.kinds import ASKED, Kind

from .observed import PUTS, ObservedPool, Put, until

CAP = 100_000
'''The cap of these tests, in bytes.'''
TOO_MUCH = bytes(CAP)

ID = 1
'''Of the task that writes to its own link: the first of its worker.'''


def frame(kind: int, body: bytes = b'', ident: int = 0) -> bytes:
    return pack_header(len(body), kind, ident) + body


def ids(*numbers: int) -> bytes:
    return struct.pack(f'<{len(numbers)}Q', *numbers)


def ask(what: object) -> bytes:
    head = pickle.dumps(what)
    return frame(Kind.ASK, struct.pack('<I', len(head)) + head, ASKED | 1)


HOSTILE = {
    'a length over the cap': pack_header(CAP + 9, Kind.RESULT, 0),
    'the greatest length': b'\xff' * 64,
    'nothing but zeros': bytes(64),
    'noise': bytes(range(256)),
    'an unknown kind': frame(99),
    'a kind that only the pool sends': frame(Kind.TASK, pickle.dumps('task'), 1),
    'a run of nothing': frame(Kind.RESULT | RUN),
    'a run that is none': frame(Kind.RESULT | RUN, pickle.dumps('results')),
    'a run that names a function': frame(Kind.RESULT | RUN, run(os.abort)),
    'a run of values without their calls': frame(Kind.VALUE | RUN, run(b'a')),
    'results that end before the last': frame(Kind.RESULT | RUN, run(b'a', b'b')[:-1]),
    'ready again': frame(Kind.READY),
    'a failed start after the start': frame(Kind.START_FAILED, b''),
    'goodbye before the pill': frame(Kind.BYE),
    'an answer to no task': frame(Kind.DONE, ids(999)),
    'an answer to one that is no task': frame(Kind.DONE, ident=999),
    'two answers to one task, each alone': frame(Kind.DONE, ident=ID) * 2,
    'an answer to this task and to no task': frame(Kind.DONE, ids(ID, 999)),
    'two answers to one task': frame(Kind.DONE, ids(ID)) + frame(Kind.DONE, ids(ID)),
    'two answers to one task in one frame': frame(Kind.DONE, ids(ID, ID)),
    'a failure of no task': frame(Kind.FAILED, pickle.dumps((b'', 'E', 'text', '')), 999),
    'a list of ids that ends in the middle': frame(Kind.DONE, b'12345'),
    'a failure that is no pickle': frame(Kind.FAILED, b'no pickle', ID),
    'a failure that is another pickle': frame(Kind.FAILED, pickle.dumps(5), ID),
    'something asked without a head': frame(Kind.ASK, b'abc', ASKED | 1),
    'something asked that is no pickle': frame(Kind.ASK, bytes(4), ASKED | 1),
    'something asked that nobody knows': ask(('dance', 'b')),
    'something asked that is another pickle': ask(5),
    'a definition that is no pickle': frame(Kind.DEFINE, b'no pickle'),
    'a definition that is another pickle': frame(Kind.DEFINE, pickle.dumps(5)),
}


@pytest.mark.parametrize('data', HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_bytes_from_a_worker(data: bytes, logs: LogGuard) -> None:
    lines = logs.expect('worker 0')
    async with ObservedPool(max_message_bytes=CAP) as pool:
        other = pool.members[1].pid
        for _ in range(10):
            await pool.put(('hold', 'on'), worker_num=1)
        await pool.take(10)
        hostile = pool.members[0].pid
        pool.put_nowait(('write', data), worker_num=0)
        await pool.replaced()
        await until(lambda: pool.statistics().in_flight == 10)
        if not pool.failed.empty():
            task, error = await pool.failure()
            assert task == ('write', data)
            assert isinstance(error, looppool.WorkerDied)
            assert (error.pid, error.signal, error.started) == (hostile, 'SIGKILL', True)
            assert 'it broke the protocol' in str(error)
        await pool.put(('release', 'on'), worker_num=1)
        assert await pool.take(10) == [('released', 'on')] * 10
        await until(lambda: pool.statistics().in_flight == 0)
        await pool.works()
        assert pool.members[1].pid == other
        statistics = pool.statistics()
        assert (statistics.restarts, statistics.done + statistics.failed) == (1, 1 + 10 + 1 + 2)
    [line] = lines
    assert 'broke the protocol' in line


async def test_results_before_hostile_bytes_are_delivered(context: str, logs: LogGuard) -> None:
    logs.expect('broke the protocol')
    result = frame(Kind.RESULT, pickle.dumps('result'))
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('write', result * 3 + frame(99) + result))
        assert await pool.take(3) == ['result'] * 3
        await pool.failure()
        await pool.replaced()
        await pool.works()


@pytest.mark.parametrize(('then', 'how'), [
    ('nothing', 'exited with code 1'),
    ('calculate', 'it closed its link and did not exit'),
])  # fmt: skip
async def test_link_that_ends_in_the_middle_of_a_frame(context: str, then: str, how: str, logs: LogGuard) -> None:
    lines = logs.expect('worker 0')
    async with ObservedPool(context=context) as pool:
        pool.put_nowait(('hold', ''), worker_num=0)
        await pool.result()
        pool.put_nowait(('shut_link', then), worker_num=0)
        errors = [(await pool.failure())[1] for _ in range(2)]
        assert [type(error) for error in errors] == [looppool.WorkerDied] * 2
        assert how in str(errors[0])
        await pool.replaced()
        await pool.works()
    assert len(lines) == 1


FROM_THE_POOL = {
    'a length over the cap': pack_header(CAP + 9, Kind.TASK, 5),
    'an unknown kind': frame(99),
    'a kind that only workers send': frame(Kind.RESULT, pickle.dumps(1)),
    'an answer to what was not asked': frame(Kind.ANSWER, b'', ASKED | 77),
    'credit that nobody gave': frame(Kind.CREDIT, ids(1), 1),
    'credit without a size': frame(Kind.CREDIT, b'', 0),
    'tasks that end before the last': frame(Kind.TASK | RUN, run(b'a', b'b')[:-1], 5),
    'a second configuration': frame(Kind.CONFIGURE, pickle.dumps({})),
    'a second start': frame(Kind.START, b''),
    'a definition that is no pickle': frame(Kind.DEFINE, b'no pickle'),
}


@pytest.mark.parametrize('data', FROM_THE_POOL.values(), ids=FROM_THE_POOL.keys())
async def test_worker_ends_on_hostile_bytes(
    data: bytes, logs: LogGuard, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = logs.expect('worker 0')
    async with ObservedPool(max_message_bytes=CAP) as pool:
        pid = pool.members[0].pid
        await pool.put(('hold', ''), worker_num=0)
        await pool.result()
        assert pool.link(0).channel._sock.send(data) == len(data)
        _, error = await pool.failure()
        assert isinstance(error, looppool.WorkerDied)
        assert error.exitcode == 1
        said = capfd.readouterr().err.strip()
        assert said.startswith(f'looppool: worker {pid}: ')
        assert len(said.splitlines()) == 1
        await pool.replaced()
        await pool.works()
    assert len(lines) == 1


async def refused(pool: ObservedPool, put: Put, message: Any) -> looppool.MessageTooBig:
    '''Put a message that is too big; nothing has become of it, and no permit is lost.'''
    with pytest.raises(looppool.MessageTooBig) as caught:
        outcome = put(pool, message)
        assert outcome is not None, 'put_nowait took it'
        await outcome
    statistics = pool.statistics()
    assert (statistics.in_flight, statistics.bytes) == (0, 0)
    assert statistics.credits == pool.settings.max_tasks
    await pool.works()
    return caught.value


@pytest.mark.parametrize('put', PUTS.values(), ids=PUTS.keys())
async def test_message_over_the_cap_is_refused_to_its_sender(put: Put) -> None:
    async with ObservedPool(max_message_bytes=CAP) as pool:
        error = await refused(pool, put, ('echo', TOO_MUCH))
        assert error.limit == CAP < error.size
        assert 'max_message_bytes' in str(error)


@pytest.mark.parametrize('put', PUTS.values(), ids=PUTS.keys())
async def test_definition_over_the_cap_is_refused_to_its_sender(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    by_value = type('ByValue', (), {'__module__': '__main__', 'table': TOO_MUCH})
    monkeypatch.setattr(sys.modules['__main__'], 'ByValue', by_value, raising=False)
    async with ObservedPool(max_message_bytes=CAP) as pool:
        await refused(pool, put, ('nothing', by_value()))


async def test_message_at_the_cap_passes(context: str) -> None:
    overhead = len(pickle.dumps(('echo', TOO_MUCH), 5)) - len(TOO_MUCH)
    async with ObservedPool(context=context, max_message_bytes=CAP) as pool:
        largest = bytes(CAP - overhead)
        pool.put_nowait(('echo', largest))
        assert await pool.result() == largest
        with pytest.raises(looppool.MessageTooBig):
            pool.put_nowait(('echo', largest + b'x'))


@pytest.mark.parametrize('verb', ['flood', 'flood_patiently'])
async def test_result_over_the_cap_fails_its_task(context: str, verb: str) -> None:
    async with ObservedPool(context=context, max_message_bytes=CAP, max_results=2) as pool:
        pool.put_nowait((verb, 1, CAP + 1), worker_num=0)
        task, error = await pool.failure()
        assert task[0] == verb
        assert isinstance(error, looppool.MessageTooBig)
        assert error.limit == CAP < error.size
        await pool.works()


async def test_error_over_the_cap_is_cut_short(context: str) -> None:
    async with ObservedPool(context=context, max_message_bytes=CAP, worker_class=Verbose) as pool:
        pool.put_nowait(('fail_at_length',))
        _, error = await pool.failure()
        assert isinstance(error, looppool.RemoteError)
        assert (error.type_name, error.text[:10]) == ('ValueError', 'x' * 10)
        await pool.works()


class Verbose(Casualty):
    def fail_at_length(self) -> None:
        raise ValueError('x' * 2 * CAP)
