'''However a stream is split, it gives the same frames; what is over the cap is refused on both sides.'''

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looppool.errors import MessageTooBig, ProtocolError
from looppool.frames import HEADER_SIZE, MAX_BODY, Frame, Parser, check_size, pack_header

CAP = 64

frames = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**64 - 1), st.binary(max_size=CAP)), max_size=8)
quick = settings(deadline=None)


def pack(stream: list[Frame]) -> bytes:
    return b''.join(pack_header(len(body), kind, ident) + body for kind, ident, body in stream)


@st.composite
def split(draw: st.DrawFn, data: bytes) -> list[bytes]:
    '''The same bytes in any pieces, empty ones too.'''
    cuts = [0, *sorted(draw(st.lists(st.integers(0, len(data)), max_size=12))), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


def feed(parser: Parser, pieces: list[bytes]) -> list[Frame]:
    return [frame for piece in pieces for frame in parser.feed(piece)]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


@quick
@given(frames, st.data())
def test_every_split_gives_the_same_frames(stream: list[Frame], data: st.DataObject) -> None:
    pieces = data.draw(split(pack(stream)))
    parser = Parser(CAP)

    assert feed(parser, pieces) == stream
    assert parser.error is None


@quick
@given(frames)
def test_single_bytes_give_the_same_frames(stream: list[Frame]) -> None:
    assert feed(Parser(CAP), one_by_one(pack(stream))) == stream


@quick
@given(frames)
def test_a_frame_comes_with_its_last_byte_and_not_before(stream: list[Frame]) -> None:
    parser = Parser(CAP)

    for frame in stream:
        data = pack([frame])
        assert feed(parser, one_by_one(data[:-1])) == []
        assert parser.feed(data[-1:]) == [frame]


@quick
@given(frames, st.binary(max_size=200))
def test_what_was_given_does_not_depend_on_the_buffer(stream: list[Frame], later: bytes) -> None:
    parser = Parser(CAP)
    given_frames = parser.feed(pack(stream) + b'\x01')

    parser.feed(later)

    assert given_frames == stream


def test_a_header_takes_its_stated_size() -> None:
    assert len(pack_header(MAX_BODY, 255, 2**64 - 1)) == HEADER_SIZE


# The cap


def test_the_sender_may_fill_the_cap() -> None:
    check_size(CAP, CAP)


def test_the_sender_may_not_exceed_the_cap() -> None:
    with pytest.raises(MessageTooBig) as caught:
        check_size(CAP + 1, CAP)

    assert (caught.value.size, caught.value.limit) == (CAP + 1, CAP)


def test_a_body_of_the_cap_is_received() -> None:
    frame = (1, 1, bytes(CAP))

    assert Parser(CAP).feed(pack([frame])) == [frame]


def test_a_header_over_the_cap_is_refused_before_its_body_comes() -> None:
    parser = Parser(CAP)

    assert parser.feed(pack_header(CAP + 1, 7, 1)) == []

    assert isinstance(parser.error, ProtocolError)
    assert 'kind 7' in str(parser.error)
    assert str(CAP + 1) in str(parser.error) and str(CAP) in str(parser.error)


def test_the_cap_can_be_lowered_on_the_way() -> None:
    parser = Parser()
    assert parser.feed(pack([(1, 1, bytes(100))]))

    parser.max_body = CAP

    assert parser.feed(pack([(1, 1, bytes(100))])) == []
    assert parser.error


# Broken streams


@quick
@given(frames, st.integers(CAP + 1, MAX_BODY), st.binary(max_size=100), st.data())
def test_frames_before_a_broken_header_are_still_given(
    stream: list[Frame], length: int, rest: bytes, data: st.DataObject
) -> None:
    pieces = data.draw(split(pack(stream) + pack_header(length, 3, 9) + rest))
    parser = Parser(CAP)

    assert feed(parser, pieces) == stream
    assert parser.error


@quick
@given(frames)
def test_nothing_is_given_after_a_broken_header(stream: list[Frame]) -> None:
    parser = Parser(CAP)
    parser.feed(pack_header(CAP + 1, 3, 9))
    error = parser.error

    assert parser.feed(pack(stream)) == []
    assert parser.error is error


@quick
@given(st.lists(st.binary(max_size=50), max_size=10))
def test_garbage_is_cut_like_anything_or_refused(pieces: list[bytes]) -> None:
    parser = Parser(CAP)
    whole = b''.join(pieces)

    found = feed(parser, pieces)

    assert whole.startswith(pack(found))
    rest = whole[len(pack(found)) :]
    claimed = int.from_bytes(rest[:4], 'little')
    assert (parser.error is not None) == (len(rest) >= HEADER_SIZE and claimed > CAP)
    assert parser.error or len(rest) < HEADER_SIZE + claimed or len(rest) < HEADER_SIZE
