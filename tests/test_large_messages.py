'''Large payloads end to end: nothing is copied twice, nothing is seen too early, nothing is left, whoever dies.'''

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import numpy
import psutil
import pytest
from conftest import LogGuard
from harness import descriptors_left, segments_here

import looppool
from looppool import Pool, Worker, shared, task_done

SIZE = 300_000
'''Bytes of a large array.'''
STATE: dict[str, Any] = {}
VARIABLE: ContextVar[str | None] = ContextVar('VARIABLE', default=None)

Array = numpy.ndarray[Any, Any]


def array(value: int = 7, size: int = SIZE) -> Array:
    return numpy.full(size, value, 'u1')


def same(obj: Any) -> Any:
    return obj


def total(obj: Array) -> int:
    return int(obj.sum())


def overwrite(obj: Array) -> tuple[bool, int]:
    obj[:] = 1
    return obj.flags.writeable, int(obj.sum())


def keep(obj: Any) -> None:
    STATE['kept'] = obj


def kept_total() -> int:
    return int(STATE['kept'].sum())


def drop() -> None:
    STATE.clear()
    gc.collect()


async def none_is_lent(pool: Pool[Any, Any]) -> None:
    '''Wait until both sides have let go of everything.'''
    async with asyncio.timeout(10):
        for member in pool.members:
            while member.link.end.lent:  # type: ignore[union-attr]
                gc.collect()
                await asyncio.sleep(0.001)


class Echo(Worker[Any, Any]):
    @task_done
    def _process_message(self, message: Any) -> None:
        self._put_nowait(message)


class Keeper(Worker[Any, Any]):
    '''Keeps the last message.'''

    @task_done
    def _process_message(self, message: Any) -> None:
        keep(message)
        self._put_nowait((os.getpid(), message.flags.writeable, total(message)))


# Each way


async def test_messages_and_results(context: str) -> None:
    async with Pool(pool_size=2, worker_class=Echo, context=context) as pool:
        results = pool.results()
        for value in range(6):
            pool.put_nowait({'nested': [array(value), 'text', b'b' * SIZE]})
        got = [await anext(results) for _ in range(6)]
        await none_is_lent(pool)

    assert sorted(int(one['nested'][0][0]) for one in got) == list(range(6))
    assert all(one['nested'][0].flags.writeable and one['nested'][2] == b'b' * SIZE for one in got)


async def test_calls(context: str) -> None:
    async with Pool(pool_size=1, context=context) as pool:
        sent = array()
        assert await pool.call(total, sent) == 7 * SIZE
        assert await pool.call(overwrite, sent) == (True, SIZE)
        got = await pool.call(same, obj=sent)
        captured = await pool.call(lambda: sent + 1)
        await none_is_lent(pool)

    assert (sent == 7).all()
    assert (got == 7).all()
    assert (captured == 8).all()
    got[:] = 3


async def test_streams() -> None:
    async with Pool(pool_size=1) as pool:
        assert [int(item[0]) async for item in pool.stream(arrays, 50)] == list(range(50))
        async with pool.open_stream(doubled) as stream:
            for value in range(20):
                await stream.send(array(value))
                assert (await stream.receive() == 2 * value).all()
        assert [int(item[0]) async for item in pool.map(same, map(array, range(20)))] == list(range(20))
        await none_is_lent(pool)


def arrays(count: int) -> Iterator[Array]:
    for value in range(count):
        yield array(value)


async def doubled(stream: Any) -> None:
    async for item in stream:
        await stream.send(item * 2)


async def test_objects_and_peers() -> None:
    async with Pool(pool_size=1) as pool:
        await pool.spawn('other')
        assert await pool.call(ask_other, array(2)) == (2 * SIZE, SIZE)
        made = await pool.create(list, [array(4)])
        assert (await made.pop() == 4).all()
        await none_is_lent(pool)


async def ask_other(obj: Array) -> tuple[int, int]:
    other = await looppool.find_worker('other')
    back = await other.call(same, obj)
    ones = [int(item.sum()) async for item in other.stream(arrays, 2)]
    return total(back), ones[1]


async def test_context_variables_travel_along() -> None:
    async with Pool(pool_size=1, contextvars=[VARIABLE]) as pool:
        VARIABLE.set('a value')
        assert await pool.call(with_variable, array()) == ('a value', 7 * SIZE)
        VARIABLE.set(None)


def with_variable(obj: Array) -> tuple[Any, int]:
    return VARIABLE.get(), total(obj)


async def test_a_codec_for_single_types() -> None:
    codec = looppool.Codec()
    codec.register(Wrapped, Wrapped.unwrap, Wrapped)
    async with Pool(pool_size=1, codec=codec) as pool:
        got = await pool.call(same, [Wrapped(array(9))])
    assert (got[0].array == 9).all()


class Wrapped:
    def __init__(self, array: Array) -> None:
        self.array = array

    def unwrap(self) -> Array:
        return self.array


# Whose it is


async def test_what_is_changed_after_it_was_put_does_not_show() -> None:
    async with Pool(pool_size=1) as pool:
        sent = array()
        first = asyncio.ensure_future(pool.call(total, sent))
        await asyncio.sleep(0)
        sent[:] = 1
        assert await first == 7 * SIZE


async def test_what_is_kept_is_not_overwritten_by_what_comes_later() -> None:
    async with Pool(pool_size=1) as pool:
        await pool.call(keep, array(3))
        kept = await pool.call(same, array(4))
        for value in range(20):
            await pool.call(total, array(value))
            assert (await pool.call(same, array(value)) == value).all()
        assert await pool.call(kept_total) == 3 * SIZE
        assert (kept == 4).all()
        await pool.call(drop)
        await none_is_lent(pool)


async def test_memory_is_used_again() -> None:
    async with Pool(pool_size=1) as pool:
        for _ in range(100):
            assert (await pool.call(same, array()) == 7).all()
        assert segments_here() <= 3
        assert await pool.call(segments_here) <= 3


async def test_a_view_outlives_worker_and_pool(context: str) -> None:
    async with Pool(pool_size=1, context=context) as pool:
        got = await pool.call(same, array())
        part = got[1000:2000]
        del got
    assert (part == 7).all()
    part[:] = 8
    assert segments_here() == 1
    del part
    assert segments_here() == 0


async def test_a_task_that_may_run_again_is_a_copy(logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with Pool(pool_size=1, worker_class=Dying, retries=1) as pool:
        await pool.put(array())
        assert await anext(pool.results()) == 7 * SIZE


class Dying(Worker[Any, Any]):
    '''Changes its message and dies, the first time.'''

    @task_done
    def _process_message(self, message: Array) -> None:
        before = total(message)
        message[:] = 0
        if self._main._configuration['number'] == 0 and not os.path.exists(self._died):
            open(self._died, 'w').close()
            os.kill(os.getpid(), signal.SIGKILL)
        self._put_nowait(before)

    @property
    def _died(self) -> str:
        return os.environ['LOOPPOOL_DIED']


@pytest.fixture(autouse=True)
def _a_place(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('LOOPPOOL_DIED', str(tmp_path / 'died'))


async def test_a_failed_task_comes_back() -> None:
    async with Pool(pool_size=1, worker_class=Worker) as pool:
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        pool.process_failure = lambda task, error: failed.set_result((task, error))
        await pool.put(array())
        task, error = await failed
    assert isinstance(error, NotImplementedError)
    assert (task == 7).all()


# Broadcasts


async def test_a_broadcast_lies_segments_here_once(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with Pool(pool_size=3, worker_class=Keeper, context=context) as pool:
        before = pss(pool)
        size = 64 << 20
        await pool.broadcast(array(1, size), retain='table')
        results = pool.results()
        got = [await anext(results) for _ in range(3)]
        assert {(writeable, count) for _, writeable, count in got} == {(False, size)}
        # Three copies would be three times as much; forked workers take some of their parent's heap for their own.
        assert pss(pool) - before < 2 * size

        os.kill(got[0][0], signal.SIGKILL)
        _, writeable, count = await anext(results)
        assert (writeable, count) == (False, size)
        assert pss(pool) - before < 2 * size


def pss(pool: Pool[Any, Any]) -> int:
    pids = [None, *(member.pid for member in pool.members)]
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


# Bounds, and what goes wrong


async def test_the_windows_count_all_of_it() -> None:
    async with Pool(pool_size=1, worker_class=Echo, max_bytes=2 * SIZE + 10_000) as pool:
        pool.put_nowait(array())
        pool.put_nowait(array())
        assert pool.statistics().bytes >= 2 * SIZE
        with pytest.raises(looppool.Full):
            pool.put_nowait(array())
        await anext(pool.results())
        await pool.put(array())


async def test_a_message_that_is_too_big_is_refused() -> None:
    async with Pool(pool_size=1, max_message_bytes=SIZE) as pool:
        with pytest.raises(looppool.MessageTooBig):
            await pool.call(total, array(1, 2 * SIZE))
        with pytest.raises(looppool.MessageTooBig):
            await pool.call(numpy.zeros, 2 * SIZE)
        assert await pool.call(total, array(1, SIZE // 2)) == SIZE // 2
        await none_is_lent(pool)


async def test_cancelled_calls_give_all_back() -> None:
    async with Pool(pool_size=1, cancel_grace=0.1) as pool:
        for _ in range(20):
            call = asyncio.ensure_future(pool.call(slow, array()))
            await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.wait([call])
        stream = pool.stream(arrays, 1000)
        await anext(stream)
        await stream.aclose()
        assert await pool.call(total, array()) == 7 * SIZE
        await none_is_lent(pool)
        assert await pool.call(none_is_lent_here)


async def slow(obj: Array) -> Array:
    await asyncio.sleep(0.002)
    return obj


async def none_is_lent_here() -> bool:
    from looppool.asking import asking

    async with asyncio.timeout(10):
        while asking().end.lent:
            await asyncio.sleep(0.001)
    return True


@pytest.mark.parametrize('moment', ['before', 'with it', 'after'])
async def test_a_worker_that_dies_leaves_nothing(context: str, moment: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with Pool(pool_size=1, context=context, max_restarts=10) as pool:
        for _ in range(3):
            got = await pool.call(same, array())
            await pool.call(keep, array())
            pid = pool.members[0].pid
            assert pid is not None
            if moment == 'with it':
                calls = [asyncio.ensure_future(pool.call(slow, array())) for _ in range(8)]
                await asyncio.sleep(0)
                os.kill(pid, signal.SIGKILL)
                for end in await asyncio.gather(*calls, return_exceptions=True):
                    assert isinstance(end, looppool.WorkerDied) or (end == 7).all()
                del end, calls
            else:
                os.kill(pid, signal.SIGKILL)
            if moment == 'before':
                del got
            assert await pool.call(total, array()) == 7 * SIZE
            if moment != 'before':
                assert (got == 7).all()
        got = None
        await none_is_lent(pool)
        assert segments_here() <= 3
    assert segments_here() == 0


async def test_without_memory_it_goes_over_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'posix_fallocate', full)
    async with Pool(pool_size=1, context='fork') as pool:
        assert (await pool.call(same, [array()]))[0].sum() == 7 * SIZE
        assert segments_here() == 0
        with pytest.raises(OSError, match='No space left'):
            shared.empty(10)


async def test_descriptors_are_left_to_the_application() -> None:
    used = len(os.listdir('/proc/self/fd'))
    with descriptors_left(160):
        async with Pool(pool_size=2, worker_class=Echo) as pool:
            big = array(1, 1_100_000)
            kept = await asyncio.gather(*(pool.call(same, big) for _ in range(120)))
            sockets = [socket.socket() for _ in range(20)]
            assert all(total(one) == 1_100_000 for one in kept)
            for one in sockets:
                one.close()
            for _ in range(120):
                await pool.call(keep_another, big)
            assert len(os.listdir('/proc/self/fd')) < used + 140
            kept.clear()


def keep_another(obj: Any) -> None:
    STATE.setdefault('many', []).append(obj)


async def test_what_pools_and_former_workers_have_sent_leaves_descriptors_to_the_application() -> None:
    used = len(os.listdir('/proc/self/fd'))
    with descriptors_left(200):
        async with Pool(pool_size=1, max_tasks_per_worker=10) as one, Pool(pool_size=1) as other:
            kept = [await pool.call(array, value, 1_100_000) for value in range(100) for pool in (one, other)]
            assert len(os.listdir('/proc/self/fd')) < used + 160
        assert all((got == index // 2).all() for index, got in enumerate(kept))


@pytest.mark.parametrize('ending', ['received', 'killed', 'stopped'])
async def test_a_large_message_waits_for_descriptors(ending: str, logs: LogGuard) -> None:
    warned = logs.expect('a large message waits: .* may open no more files')
    logs.expect('exited with code 0')  # It said goodbye, which could not be read.
    async with Pool(pool_size=1, worker_class=Echo) as pool:
        first = await pool.call(array)
        with descriptors_left(0):
            calls = [asyncio.ensure_future(pool.call(array, value, 1_100_000)) for value in (1, 2)]
            small = asyncio.ensure_future(pool.call(total, numpy.ones(3)))
            while not warned:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert (pool.members[0].state, len(warned), any(call.done() for call in calls)) == ('ready', 1, False)
            if ending != 'received':
                await (pool.kill() if ending == 'killed' else pool.stop(0.1))
        if ending == 'received':
            assert [total(await call) for call in calls] == [1_100_000, 2_200_000]
            assert await small == 3
        else:
            # What was read before the end, and found a descriptor that the end has set free, has come.
            ended = {type(value) for value in await asyncio.gather(*calls, small, return_exceptions=True)}
            assert ended <= {looppool.PoolClosed, looppool.WorkerDied, numpy.ndarray, int}
        assert total(first) == 7 * SIZE


async def test_a_worker_that_may_open_no_more_files_goes_on() -> None:
    async with Pool(pool_size=1) as pool:
        other = asyncio.ensure_future(pool.call(take_all_descriptors_for, 0.5))
        await asyncio.sleep(0.1)
        assert await pool.call(total, array()) == 7 * SIZE
        assert await other == 'done'


async def take_all_descriptors_for(seconds: float) -> str:
    with descriptors_left(0):
        await asyncio.sleep(seconds)
    return 'done'


async def test_what_a_forked_child_writes_it_alone_sees() -> None:
    table = shared.share(array())
    async with Pool(pool_size=1) as pool:
        assert await pool.call(total_after_a_child_wrote, array(), table) == 7 * SIZE
        assert (table == 9).all()
        got = await pool.call(same, array())
        assert total_after_a_child_wrote(got, table) == 7 * SIZE


def total_after_a_child_wrote(image: Array, table: Array) -> float:
    pid = os.fork()
    if not pid:
        image[:] = 8
        table[:] = 9
        os._exit(int(image.sum() != 8 * SIZE))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return total(image)


async def test_a_child_of_the_application_takes_nothing_back() -> None:
    async with Pool(pool_size=1) as pool:
        got = await pool.call(same, array())
        pid = os.fork()
        if not pid:
            del got
            gc.collect()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert await pool.call(total, array()) == 7 * SIZE
        assert (got == 7).all()


# Shared


async def test_what_is_shared_is_one(context: str) -> None:
    table = shared.empty((10, 1000), 'f8')
    async with Pool(pool_size=2, context=context) as pool:
        await asyncio.gather(*(pool.members[row % 2].call(fill, table[row], row) for row in range(10)))
        back = await pool.call(same, table)
        inner = await pool.call(lambda: table[3])
        await none_is_lent(pool)
    assert (table == numpy.arange(10)[:, None]).all()
    table[3] = 33
    assert (back[3] == 33).all()
    assert (inner == 33).all()


async def test_it_does_not_travel_in_a_context_variable() -> None:
    async with Pool(pool_size=1, contextvars=[VARIABLE]) as pool:
        VARIABLE.set(shared.empty(3))  # type: ignore[arg-type]
        with pytest.raises(TypeError, match='cannot travel there') as caught:
            await pool.call(total, 3)
        assert 'values of the context variables that travel along: VARIABLE' in str(caught.value.__notes__)
        VARIABLE.set(None)


def fill(row: Array, value: int) -> None:
    row[:] = value


async def test_it_ends_with_its_last_holder() -> None:
    table = shared.share(array())
    assert (table == 7).all()
    async with Pool(pool_size=2) as pool:
        for member in pool.members:
            await member.call(keep, table)
        assert segments_here() == 1
        del table
        assert await pool.members[0].call(kept_total) == 7 * SIZE
        for member in pool.members:
            await member.call(drop)
        async with asyncio.timeout(10):
            while segments_here() or any(await pool.call_all(segments_here)):
                await asyncio.sleep(0.01)


async def test_it_goes_from_worker_to_worker() -> None:
    async with Pool(pool_size=1) as pool:
        await pool.spawn('other')
        table = await pool.call(make_and_ask)
        assert (table[:2] == [1, 2]).all()
        table[0] = 5
        assert await pool.call(kept_total) == 7


async def make_and_ask() -> Array:
    table = shared.empty(100)
    other = await looppool.find_worker('other')
    table[0] = 1
    await other.call(put_at_one, table)
    keep(table)
    return table


def put_at_one(table: Array) -> None:
    table[1] = 2


async def test_a_broadcast_of_it_can_be_written() -> None:
    table = shared.empty(SIZE, 'u1')
    async with Pool(pool_size=2, worker_class=Keeper) as pool:
        await pool.broadcast(table)
        got = [result async for result in taken(pool, 2)]
        assert {writeable for _, writeable, _ in got} == {True}


async def taken(pool: Pool[Any, Any], count: int) -> AsyncIterator[Any]:
    results = pool.results()
    for _ in range(count):
        yield await anext(results)


def test_what_share_makes() -> None:
    made = shared.share({'a': array(1), 'b': [array(2, 10)], 'c': 'text'})
    assert (made['a'] == 1).all() and (made['b'][0] == 2).all() and made['c'] == 'text'
    assert shared.share(made['a']).ctypes.data == made['a'].ctypes.data
    view = shared.share(b'some bytes')
    assert type(view) is memoryview and view == b'some bytes' and not view.readonly
    with pytest.raises(TypeError, match='no buffers'):
        shared.share('text')  # type: ignore[type-var, unused-ignore]
    with pytest.raises(TypeError, match='contiguous'):
        shared.share(array(1)[::2])
    with pytest.raises(TypeError, match='Python objects'):
        shared.empty(3, object)
    assert shared.empty(0).shape == (0,)
    assert shared.empty(numpy.int64(5)).shape == (5,)
    assert shared.empty([numpy.int32(100_000), 2]).shape == (100_000, 2)
    assert shared.empty((2, 0)).shape == (2, 0)


async def test_what_is_read_only_goes_by_reference_too() -> None:
    table = shared.empty(SIZE, 'u1')
    reader = table.view()
    reader.flags.writeable = False
    async with Pool(pool_size=1) as pool:
        got = await pool.call(same, reader)
        table[0] = 9
        assert got[0] == 9
        assert not got.flags.writeable


# What has its own way to give its buffers to pickle


def in_segment(obj: Any) -> bool:
    '''Whether it came by shared memory.'''
    return segments_here() > 0 and obj is not None


async def test_data_frames_travel_in_shared_memory() -> None:
    pandas = pytest.importorskip('pandas')
    frame = pandas.DataFrame({'a': numpy.arange(100_000), 'b': numpy.linspace(0, 1, 100_000)})

    async with Pool(pool_size=1, worker_class=Echo) as pool:
        assert await pool.call(in_segment, frame)
        assert (await pool.call(same, frame)).equals(frame)
        await pool.put(frame)
        assert (await anext(pool.results())).equals(frame)


async def test_arrow_tables_travel_in_shared_memory() -> None:
    pyarrow = pytest.importorskip('pyarrow')
    table = pyarrow.table({'a': numpy.arange(100_000), 'b': ['text'] * 100_000})

    async with Pool(pool_size=1, worker_class=Echo) as pool:
        assert await pool.call(in_segment, table)
        assert (await pool.call(same, table)).equals(table)
        await pool.put(table)
        assert (await anext(pool.results())).equals(table)
