'''Every exception can travel: as itself if that is possible at all, else as its type, text and traceback.'''

import dataclasses
import errno
import pickle
import subprocess
import sys
import threading
import traceback
import types
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looppool.codec import pack_error, unpack_error
from looppool.errors import RemoteError

NOTE = 'raised in worker 1 (pid 42)'


def arrive(error: BaseException) -> Any:
    '''The error as it arrives in the parent when a worker raised it.'''
    try:
        raise error
    except BaseException as caught:
        return unpack_error(pack_error(caught)[0], NOTE)


class TwoArguments(Exception):
    def __init__(self, what: str, where: str) -> None:
        super().__init__(f'no {what} in {where}')
        self.what = what
        self.where = where


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        self.code = code

    def __str__(self) -> str:
        return f'code {self.code}'


class Slotted(Exception):
    __slots__ = ('code',)

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code

    def __str__(self) -> str:
        return f'code {self.code}'


@dataclasses.dataclass
class Record(Exception):
    code: int
    text: str


class NotThere(OSError):
    def __init__(self, name: str, where: str) -> None:
        super().__init__(errno.ENOENT, f'{name} is not in {where}')
        self.name = name


class Broken(UnicodeDecodeError):
    def __init__(self, data: bytes) -> None:
        super().__init__('utf-8', data, 0, 1, 'broken')


ORDINARY = [
    ValueError('bad', 1),
    KeyError('key'),
    FileNotFoundError(errno.ENOENT, 'not there', 'file'),
    UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'invalid start byte'),
    ImportError('no such module', name='ghost'),
    StopIteration(5),
    SystemExit(3),
    KeyboardInterrupt(),
    MemoryError(),
    subprocess.CalledProcessError(1, 'false'),
    pickle.PicklingError('as a result can raise it'),
]

PECULIAR = [
    TwoArguments('page', 'site'),
    KeywordOnly(code=3),
    Slotted(3),
    Record(3, 'text'),
    NotThere('page', 'site'),
    Broken(b'\xff'),
]

of_each = pytest.mark.parametrize('error', ORDINARY + PECULIAR, ids=lambda error: type(error).__name__)


@of_each
def test_an_exception_arrives_as_itself(error: BaseException) -> None:
    arrived = arrive(error)

    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.args == error.args


@of_each
def test_its_cause_is_the_remote_traceback(error: BaseException) -> None:
    cause = arrive(error).__cause__

    assert isinstance(cause, RemoteError)
    assert cause.type_name.endswith(type(error).__name__)
    assert cause.text == str(error)
    assert 'raise error' in cause.traceback


@of_each
def test_a_note_tells_where_it_was_raised(error: BaseException) -> None:
    assert arrive(error).__notes__[-1] == NOTE


def test_its_attributes_arrive() -> None:
    assert vars(arrive(TwoArguments('page', 'site')))['where'] == 'site'
    assert arrive(KeywordOnly(code=3)).code == 3
    assert arrive(Slotted(3)).code == 3
    assert arrive(NotThere('page', 'site')).errno == errno.ENOENT
    assert arrive(SystemExit(3)).code == 3
    assert arrive(ImportError('x', name='ghost')).name == 'ghost'


def test_its_own_notes_stay() -> None:
    error = TwoArguments('page', 'site')
    error.add_note('while crawling')

    assert arrive(error).__notes__ == ['while crawling', NOTE]


def test_the_remote_traceback_shows_what_led_to_it() -> None:
    error = ValueError('second')
    error.__cause__ = KeyError('first')

    assert "KeyError: 'first'" in arrive(error).__cause__.traceback


def test_a_group_arrives_with_its_members_and_their_notes() -> None:
    strange = TwoArguments('page', 'site')
    strange.add_note('of the strange one')
    group = ExceptionGroup('both', [ExceptionGroup('inner', [strange]), KeyError('key')])
    group.add_note('of the group')

    arrived = arrive(group)

    assert (type(arrived), arrived.message) == (ExceptionGroup, 'both')
    assert arrived.__notes__ == ['of the group', NOTE]
    found = arrived.exceptions[0].exceptions[0]
    assert (type(found), found.where, found.__notes__) == (TwoArguments, 'site', ['of the strange one'])
    assert repr(arrived.exceptions[1]) == "KeyError('key')"


def test_a_group_with_a_member_that_can_not_travel_arrives_as_text() -> None:
    member = ValueError('bad')
    member.lock = threading.Lock()  # type: ignore[attr-defined]

    arrived = arrive(ExceptionGroup('both', [member]))

    assert (type(arrived), arrived.type_name, arrived.text) == (RemoteError, 'ExceptionGroup', 'both (1 sub-exception)')
    assert 'ValueError: bad' in arrived.traceback


def test_an_exception_that_can_not_travel_arrives_as_text() -> None:
    error = TwoArguments('page', 'site')
    error.lock = threading.Lock()  # type: ignore[attr-defined]

    arrived = arrive(error)

    assert type(arrived) is RemoteError
    assert arrived.type_name == f'{__name__}.TwoArguments'
    assert arrived.text == 'no page in site'
    assert 'raise error' in arrived.traceback
    assert arrived.__notes__ == [NOTE]


def test_an_exception_that_can_not_be_loaded_here_arrives_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    ghost = types.ModuleType('ghost')
    ghost.Ghost = type('Ghost', (Exception,), {'__module__': 'ghost'})  # type: ignore[attr-defined]
    with monkeypatch.context() as here:
        here.setitem(sys.modules, 'ghost', ghost)
        body, _ = pack_error(ghost.Ghost('boo'))

    arrived = unpack_error(body, NOTE)

    assert (type(arrived), arrived.type_name, arrived.text) == (RemoteError, 'ghost.Ghost', 'boo')  # type: ignore[attr-defined]
    assert 'could not be loaded here' in arrived.__notes__[0]
    assert arrived.__notes__[-1] == NOTE


# Those that mean no good


class UnprintableError(Exception):
    def __repr__(self) -> str:
        raise self


class StrRaises(Exception):
    def __str__(self) -> str:
        raise ValueError('no text')


class StrRaisesTheUnprintable(Exception):
    def __str__(self) -> str:
        raise UnprintableError


class StrExits(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class StrIsOfAStrangeType(Exception):
    def __str__(self) -> str:
        return type('Local', (str,), {})('text')


class ReduceRaises(Exception):
    def __reduce__(self) -> str:
        raise ValueError('stays here')


class ReduceExits(Exception):
    def __reduce__(self) -> str:
        raise SystemExit(3)


class LoadingExits(Exception):
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class LoadsAsAnother(Exception):
    def __reduce__(self) -> Any:
        return KeyError, ('key',)


class GroupLoadsAsAnother(ExceptionGroup[Exception]):
    def __new__(cls, text: str) -> 'GroupLoadsAsAnother':
        return super().__new__(cls, text, [ValueError('inner')])

    def __reduce__(self) -> Any:
        return KeyError, ('key',)


class LoadsAsNoException(Exception):
    def __reduce__(self) -> Any:
        return int, ('3',)


class TakesNoNotes(Exception):
    __notes__ = None  # type: ignore[assignment]


class CauseRaises(Exception):
    @property
    def __cause__(self) -> None:  # type: ignore[override]
        raise ValueError('no cause')


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(name)


HOSTILE = [
    StrRaises, StrRaisesTheUnprintable, StrExits, StrIsOfAStrangeType, ReduceRaises, ReduceExits, LoadingExits,
    LoadsAsAnother, GroupLoadsAsAnother, LoadsAsNoException, TakesNoNotes,
    CauseRaises, Frozen,
]  # fmt: skip


@pytest.mark.parametrize('kind', HOSTILE)
def test_whatever_an_exception_does_it_arrives_somehow(kind: type[Exception]) -> None:
    arrived = arrive(kind('text'))

    assert type(arrived) in (kind, RemoteError)
    told = ''.join(traceback.format_exception(arrived))
    assert kind.__name__ in told
    assert 'raise error' in told
    assert NOTE in told


# The limit


@settings(deadline=None)
@given(st.text(min_size=1), st.integers(1, 10_000), st.integers(300, 3000))
def test_a_packed_error_keeps_to_the_limit(text: str, times: int, limit: int) -> None:
    body, _ = pack_error(ValueError(text * times), limit)

    assert len(body) <= limit
    arrived = unpack_error(body, NOTE)
    assert isinstance(arrived, (ValueError, RemoteError))
    assert type(arrived) is ValueError or (arrived.type_name == 'ValueError' and text.startswith(arrived.text[:1]))


def test_an_error_is_not_cut_without_need() -> None:
    error = ValueError('x' * 1000)

    whole, _ = pack_error(error)

    assert pack_error(error, len(whole))[0] == whole
    assert len(pack_error(error, len(whole) - 1)[0]) < len(whole)
