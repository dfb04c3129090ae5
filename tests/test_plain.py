'''What travels without a pickle of its own counts no less than its pickle, and arrives as it was.'''

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from looppool.codec import check_encoded, encoder
from looppool.errors import MessageTooBig
from looppool.frames import ALONE, RUN, Parser, cut_run, load_alone, pack_runs
from looppool.plain import plain_size, plain_sizes, size_of

plain = st.none() | st.booleans() | st.floats() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=100)
messages = st.lists(plain | st.binary(max_size=300), min_size=1, max_size=400)

LIMIT = 1000


class Text(str):
    pass


class Number(int):
    pass


@given(plain)
def test_what_is_plain_counts_no_less_than_its_pickle(message: Any) -> None:
    assert plain_size(message) == size_of(message) >= len(pickle.dumps(message, 5))


@pytest.mark.parametrize(
    'message',
    [2**63, -(2**63) - 1, 10**5000, 'a' * 1025, b'bytes', (), [1], {}, Text('a'), Number(1), 1j, Ellipsis, object()],
    ids=lambda message: type(message).__name__,
)
def test_all_else_is_pickled(message: Any) -> None:
    assert not plain_size(message)
    assert not plain_sizes((1, message))


def test_text_counts_its_bytes() -> None:
    assert plain_size('a' * 100) < 150 < plain_size('ä' * 100) == plain_size('\N{PILE OF POO}' * 100)
    assert not plain_size('a' * 401) and not plain_size('ä' * 101)
    assert plain_sizes(('a' * 200,)) and not plain_sizes(('a' * 200, 'b' * 200)) and not plain_sizes([1] * 1000)


@pytest.mark.parametrize('message', [5, 'text', 'täxt' * 20, None, 1.5])
def test_the_cap_counts_the_bytes_that_it_would_take(message: Any) -> None:
    encoded = encoder(None)(message)
    size = len(pickle.dumps(message, 5))

    check_encoded(encoded, size)
    if encoded[2] >= size:
        with pytest.raises(MessageTooBig, match=f'{size:,} bytes'):
            check_encoded(encoded, size - 1)


@given(messages, st.booleans())
def test_runs_give_what_went_in_and_keep_to_their_limit(sent: list[Any], row: bool) -> None:
    received: dict[int, Any] = {}
    total = 0
    for kind, ident, body in Parser().feed(b''.join(pack_runs(7, 5, sent, LIMIT, row=row))):
        run = {7: lambda body: [body], 7 | RUN: cut_run, 7 | ALONE: load_alone}[kind](body)
        assert ident == 5 + total if row else ident == 5
        assert len(body) <= LIMIT or len(run) == 1
        received |= enumerate(run, total)
        total += len(run)

    assert repr(list(received.values())) == repr(sent)
