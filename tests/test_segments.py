'''Where large messages lie: blocks that are used again, segments that come and go, memory that runs out.'''

import asyncio
import errno
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from looppool import segments
from looppool.codec import Encoded, decode, encoder
from looppool.payload import LEAST, Payload
from looppool.segments import SegmentStore, SharedSegment

MIB = 1 << 20


@pytest.fixture
def store() -> Iterator[SegmentStore]:
    store = SegmentStore(8 * MIB)
    yield store
    store.close()


def put(store: SegmentStore, size: int) -> Payload:
    payload = store.put(b'', [(memoryview(bytes(size)), None)])
    assert payload is not None
    return payload


def where(payload: Payload) -> set[tuple[int, int]]:
    return {(segment.key, offset) for segment, offset, _ in payload.pieces}


def mapped() -> int:
    '''How many segments this process has open.'''
    links = (os.path.join('/proc/self/fd', name) for name in os.listdir('/proc/self/fd'))
    return sum('memfd:looppool ' in os.readlink(link) for link in links if os.path.lexists(link))


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
    assert mapped() <= 2 * 8


def test_what_is_free_is_bounded(store: SegmentStore) -> None:
    kept = [put(store, 4 * MIB) for _ in range(6)]
    assert mapped() == 2 * 6

    kept.clear()
    put(store, LEAST)

    assert mapped() == 2 * (2 + 1)


async def test_what_is_free_ages(store: SegmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, '_AGE', 0.01)
    kept = put(store, 5 * MIB)
    await asyncio.sleep(0.1)
    assert mapped() == 2

    del kept
    async with asyncio.timeout(10):
        while mapped():
            await asyncio.sleep(0.01)

    put(store, 5 * MIB)
    assert mapped() == 2


def test_a_closed_store_keeps_nothing(store: SegmentStore) -> None:
    kept = put(store, MIB)
    put(store, 2 * MIB)

    store.close()
    assert mapped() == 2
    del kept

    assert mapped() == 0


@pytest.mark.parametrize('obj', [
    bytes(range(256)) * 1000,
    bytearray(b'12345678') * 100_000,
    {'nested': [b'a' * LEAST, bytearray(LEAST), 'text' * LEAST]},
    list(range(100_000)),
], ids=['bytes', 'bytearray', 'nested', 'list'])  # fmt: skip
def test_what_is_encoded_comes_back(store: SegmentStore, obj: Any) -> None:
    body, needs = encoder(store)(obj)

    assert type(body) is Payload
    assert needs == ()
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
    body, _ = encode([first, one, last])

    assert one.inner == [b'i' * LEAST, 'inner']
    assert decode(body) == [b'1' * LEAST, 'outer', b'2' * LEAST]
    with pytest.raises(ValueError, match='it fails'):
        encode([pickle.PickleBuffer(bytearray(LEAST)), Encodes(encode, fails=True)])
    assert decode(encode([pickle.PickleBuffer(bytearray(b'3' * LEAST))])[0]) == [b'3' * LEAST]


@pytest.mark.parametrize('kind', [bytes, bytearray])
@pytest.mark.parametrize('size', [10, 2 * LEAST])
def test_a_memory_view_travels(store: SegmentStore, kind: Any, size: int) -> None:
    body, _ = encoder(store)({'view': memoryview(kind(b'v' * size))})

    view = decode(body)['view']

    assert type(view) is memoryview
    assert view == b'v' * size
    assert view.readonly == (kind is bytes)


def test_what_is_small_stays_on_the_link(store: SegmentStore) -> None:
    for obj in ('text', bytes(LEAST - 100), [pickle.PickleBuffer(bytearray(LEAST - 100))]):
        body, _ = encoder(store)(obj)
        assert type(body) is bytes
    assert mapped() == 0


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

    body, _ = encoder(store)(obj)

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
    assert mapped() == 2 * 2
    assert len(again) == 8


def test_a_forked_child_gives_nothing_back(store: SegmentStore) -> None:
    kept = put(store, MIB)
    pid = os.fork()
    if not pid:
        os._exit(mapped())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert mapped() == 2
    assert decode(kept.with_inline(pickle.dumps(3))) == 3


def test_a_system_without_it_says_so() -> None:
    code = (
        'import os; del os.memfd_create\n'
        'import looppool\n'
        'from looppool.segments import open_store\n'
        'assert open_store(1) is None\n'
        'try: looppool.shared.share(b"1")\n'
        'except OSError as error: print(error)\n'
    )
    output = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, timeout=30, text=True).stdout
    assert 'needs a system with memfd_create' in output
