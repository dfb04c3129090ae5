'''Where large messages lie: blocks that are used again, segments that come and go, memory that runs out.'''

import asyncio
import errno
import gc
import math
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import segments_here

from looppool import segments, shared
from looppool.codec import Encoded, decode, encoder
from looppool.payload import LEAST, Payload
from looppool.segments import SegmentStore, SharedSegment, shared_piece

MIB = 1 << 20


@pytest.fixture
def store() -> Iterator[SegmentStore]:
    store = SegmentStore(8 * MIB, 100)
    yield store
    store.close()


def put(store: SegmentStore, size: int) -> Payload:
    payload = store.put(b'', [(memoryview(bytes(size)), None)])
    assert payload is not None
    return payload


def where(payload: Payload) -> set[tuple[int, int]]:
    return {(segment.key, offset) for segment, offset, _ in payload.pieces}


@pytest.mark.parametrize('threads', [True, False])
@pytest.mark.parametrize('size', [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 33 * MIB + 7])
def test_two_threads_copy_all_of_it(
    size: int, threads: bool, store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    if not threads:
        monkeypatch.setattr(threading.Thread, 'start', refuse)
    data = random.Random(size).randbytes(size)
    payload = store.put(b'', [(memoryview(b'before'), None), (memoryview(data), None), (memoryview(b'behind'), None)])
    assert payload is not None
    found = [bytes(segment.view(*piece, None)) for segment, *piece in payload.pieces]
    assert found == [b'before', data, b'behind']


@pytest.mark.parametrize('size', [4 * MIB + 1, 33 * MIB, 65 * MIB, 130 * MIB])
def test_a_large_block_is_hardly_larger(size: int) -> None:
    assert size <= segments._size_class(size) <= size * 1.13


@pytest.mark.parametrize('size', [1, LEAST - 1, LEAST, LEAST + 1, 98304, 98305, MIB, MIB + 1, 3 * MIB, 5 * MIB])
def test_a_block_is_not_much_larger_than_what_it_has_to_take(size: int) -> None:
    block = segments._size_class(size)

    assert block >= size
    assert block % 4096 == 0
    assert block <= max(LEAST, size * 1.5 + 4096)


def test_a_block_is_used_again_when_nobody_keeps_it(store: SegmentStore) -> None:
    first = put(store, MIB)
    place = where(first)
    assert where(put(store, MIB)) != place

    del first
    again = [where(payload) for payload in (put(store, MIB), put(store, MIB), put(store, MIB), put(store, MIB))]
    assert place in again


def test_no_two_that_are_kept_lie_in_the_same_place(store: SegmentStore) -> None:
    kept = [put(store, 100_000) for _ in range(200)]

    assert len(set().union(*map(where, kept))) == 200
    assert segments_here() <= 8


def test_what_is_free_is_bounded(store: SegmentStore) -> None:
    kept = [put(store, 4 * MIB) for _ in range(6)]
    assert segments_here() == 6

    kept.clear()
    put(store, LEAST)

    assert segments_here() == 3


async def test_what_is_free_ages(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, '_AGE', 0.01)
    kept = put(store, 5 * MIB)
    await asyncio.sleep(0.1)
    assert segments_here() == 1

    del kept
    async with asyncio.timeout(10):
        while segments_here():
            await asyncio.sleep(0.01)

    put(store, 5 * MIB)
    assert segments_here() == 1


async def test_the_free_parts_of_a_segment_lose_their_memory(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, '_AGE', 0.01)
    many = [put(store, LEAST) for _ in range(60)]
    kept = many.pop()
    [(segment, _, _)] = kept.pieces
    many.clear()
    async with asyncio.timeout(10):
        while os.fstat(segment.fd).st_blocks * 512 > 5 * LEAST:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)

    again = [store.put(b'', [(memoryview(bytes([number]) * LEAST), None)]) for number in range(60)]
    for number, payload in enumerate(again):
        assert payload is not None
        [(there, offset, size)] = payload.pieces
        assert there.view(offset, size, None) == bytes([number]) * LEAST


def test_without_memory_for_a_part_a_message_stays_on_the_link(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [put(store, LEAST), put(store, LEAST)]
    [(segment, _, _)] = kept.pop().pieces
    store._take_in()
    segment.hollow_out()  # type: ignore[attr-defined]
    segment.hollow_out()  # type: ignore[attr-defined]

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, 'full')

    with monkeypatch.context() as full:
        full.setattr(os, 'posix_fallocate', fail)
        assert store.put(b'', [(memoryview(bytes(LEAST)), None)]) is None
    assert put(store, LEAST)


def test_there_are_so_many_segments_and_no_more() -> None:
    store = SegmentStore(1 << 30, 3)
    kept = [put(store, 2 * MIB) for _ in range(3)]
    assert store.put(b'', [(memoryview(bytes(2 * MIB)), None)]) is None

    kept.pop()
    assert put(store, 2 * MIB)
    store.close()


def test_a_closed_store_keeps_nothing(store: SegmentStore) -> None:
    kept = put(store, MIB)
    put(store, 2 * MIB)

    store.close()
    assert segments_here() == 1
    del kept

    assert segments_here() == 0


@pytest.mark.parametrize('obj', [
    bytes(range(256)) * 1000,
    bytearray(b'12345678') * 100_000,
    {'nested': [b'a' * LEAST, bytearray(LEAST), 'text' * LEAST]},
    list(range(100_000)),
], ids=['bytes', 'bytearray', 'nested', 'list'])  # fmt: skip
def test_what_is_encoded_comes_back(store: SegmentStore, obj: Any) -> None:
    body, needs, size = encoder(store)(obj)

    assert type(body) is Payload
    assert (needs, size) == ((), len(body))
    assert decode(body) == obj


class Encodes:
    '''Encodes something else while it is pickled.'''

    def __init__(self, encode: Callable[[object], Encoded], fails: bool) -> None:
        self.encode = encode
        self.fails = fails

    def __reduce__(self) -> tuple[Any, ...]:
        inner = [pickle.PickleBuffer(bytearray(b'i' * LEAST)), 'inner']
        self.inner = decode(self.encode(inner)[0])
        if self.fails:
            raise ValueError('it fails')
        return str, ('outer',)


def test_one_may_be_encoded_while_another_is(store: SegmentStore) -> None:
    encode = encoder(store)
    one = Encodes(encode, fails=False)

    first, last = (pickle.PickleBuffer(bytearray(value * LEAST)) for value in (b'1', b'2'))
    body, *_ = encode([first, one, last])

    assert one.inner == [b'i' * LEAST, 'inner']
    assert decode(body) == [b'1' * LEAST, 'outer', b'2' * LEAST]
    with pytest.raises(ValueError, match='it fails'):
        encode([pickle.PickleBuffer(bytearray(LEAST)), Encodes(encode, fails=True)])
    assert decode(encode([pickle.PickleBuffer(bytearray(b'3' * LEAST))])[0]) == [b'3' * LEAST]


@pytest.mark.parametrize('kind', [bytes, bytearray])
@pytest.mark.parametrize('size', [10, 2 * LEAST])
def test_a_memory_view_travels(store: SegmentStore, kind: Any, size: int) -> None:
    body, *_ = encoder(store)({'view': memoryview(kind(b'v' * size))})

    view = decode(body)['view']

    assert type(view) is memoryview
    assert view == b'v' * size
    assert view.readonly == (kind is bytes)


def test_what_is_small_stays_on_the_link(store: SegmentStore) -> None:
    for obj in (['text'], bytes(LEAST - 100), [pickle.PickleBuffer(bytearray(LEAST - 100))]):
        body, *_ = encoder(store)(obj)
        assert type(body) is bytes
    assert segments_here() == 0


@pytest.mark.parametrize('reason', [errno.ENOSPC, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize('step', ['memfd_create', 'posix_fallocate'])
def test_without_memory_a_message_stays_on_the_link(
    store: SegmentStore, monkeypatch: pytest.MonkeyPatch, step: str, reason: int
) -> None:
    def fail(*_: object) -> int:
        raise OSError(reason, os.strerror(reason))

    before = len(os.listdir('/proc/self/fd'))
    monkeypatch.setattr(os, step, fail)
    obj = [bytes(LEAST), pickle.PickleBuffer(bytearray(b'x' * MIB))]

    body, *_ = encoder(store)(obj)

    assert type(body) is bytes
    assert decode(body) == [bytes(LEAST), bytearray(b'x' * MIB)]
    assert len(os.listdir('/proc/self/fd')) == before


def test_a_segment_can_not_be_cut_behind_its_users_backs() -> None:
    segment = SharedSegment.create(5000)

    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)


def test_blocks_may_end_in_any_thread(store: SegmentStore) -> None:
    async def end(kept: list[Payload]) -> None:
        await asyncio.to_thread(kept.clear)

    kept = [put(store, MIB) for _ in range(8)]
    asyncio.run(end(kept))
    gc.collect()

    again = [put(store, MIB) for _ in range(8)]
    assert segments_here() == 2
    assert len(again) == 8


def test_a_forked_child_gives_nothing_back(store: SegmentStore) -> None:
    kept = put(store, MIB)
    pid = os.fork()
    if not pid:
        os._exit(segments_here())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert segments_here() == 1
    assert decode(kept.with_inline(pickle.dumps(3))) == 3


def test_a_child_of_a_child_has_what_is_shared() -> None:
    view: Any = shared.share(b'x' * 100)
    pid = os.fork()
    if not pid:
        inner = os.fork()
        if not inner:
            view[0] = ord('y')
            known = shared_piece(view) is not None
            view = None
            os._exit(not known or len(segments._ranges) + len(segments._shared))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert view[0] == ord('y')
    assert len(segments._ranges) == 1
    view = None
    assert not segments._ranges



def test_what_is_shared_may_end_in_a_circle() -> None:
    circle: list[Any] = [shared.share(b'x' * 100)]
    circle.append(circle)
    del circle
    gc.collect()

    assert not segments._ranges
    assert not segments._starts
    assert segments_here() == 0


def test_views_are_known_as_shared_whatever_thread_ends_one() -> None:
    segment = SharedSegment.create(4096)
    missed = []

    def use() -> None:
        for _ in range(3000):
            view = segment.view(0, 10, None)
            if segments.shared_piece(view) is None:
                missed.append(1)
            del view

    threads = [threading.Thread(target=use) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not missed
    assert not segments._ranges


@pytest.mark.parametrize(('code', 'shape'), [('d', (20, 30)), ('i', (7,)), ('B', (2, 3, 4))])
def test_a_memory_view_keeps_its_shape(store: SegmentStore, code: str, shape: tuple[int, ...]) -> None:
    size = struct.calcsize(code)
    view = memoryview(bytearray(range(250)) * 100)[: math.prod(shape) * size].cast(code, shape)  # type: ignore[call-overload]

    back = decode(encoder(store)(view)[0])

    assert (back.format, back.shape) == (code, shape)
    assert back.tolist() == view.tolist()


def test_a_system_without_it_says_so() -> None:
    code = (
        'import os; del os.memfd_create\n'
        'import looppool\n'
        'from looppool.segments import open_store\n'
        'assert open_store(1, 1) is None\n'
        'try: looppool.shared.share(b"1")\n'
        'except OSError as error: print(error)\n'
    )
    output = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, timeout=30, text=True).stdout
    assert 'needs a system with memfd_create' in output
