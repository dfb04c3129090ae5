'''What can't be reached by name in the other process travels by value, and comes home as what it was.'''

import contextlib
import functools
import io
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

import looppool
from looppool.codec import Definition, check_encoded, decode, define, encode, sized, unpack_error
from looppool.errors import MessageTooBig, ProtocolError
from looppool.functions import address_of, function_at

ROOT = Path(looppool.__file__).parent.parent
LIMIT = 30.0  # seconds for a script

PEER = '''
import pickle, sys
from looppool.codec import decode, define, encode, pack_error

def answer(definitions, body):
    for definition in definitions:
        define(definition)
    try:
        return encode(do(decode(body)))
    except Exception as error:
        return encode(error)

messages, code = pickle.load(sys.stdin.buffer)
do = eval(code)
sys.stdout.buffer.write(pickle.dumps([answer(*message) for message in messages]))
'''

SCRIPT = f'''
import contextvars, dataclasses, enum, functools, pickle, subprocess, sys, types, typing
from looppool.codec import decode, define, encode, forget_bodies, pack_error, unpack_error

def abroad(*objects, do='lambda obj: obj'):
    """Send objects to a process that isn't this script; get back what `do`, run there in turn, makes of each."""
    encoded = [encode(obj) for obj in objects]
    question = pickle.dumps(([([definition.body for definition in needs], data) for data, needs in encoded], do))
    peer = subprocess.run([sys.executable, '-c', {PEER!r}], input=question, stdout=subprocess.PIPE, check=True)
    answers = pickle.loads(peer.stdout)
    for definition in [definition for _, needs in answers for definition in needs]:
        define(definition.body)
    found = [decode(data) for data, _ in answers]
    return found[0] if len(found) == 1 else found

def raised_abroad(make):
    body, needs = abroad(make, do='lambda make: pack_error(make())')
    for definition in needs:
        define(definition.body)
    return unpack_error(body, 'raised abroad')

def needs(obj):
    return [definition.key for definition in encode(obj)[1]]

def make_local():
    class Local:
        pass
    return Local

@dataclasses.dataclass
class Point:
    x: int
    class Inner:
        pass
    def times(self, factor):
        return self.x * factor
    @staticmethod
    def double(x):
        return 2 * x

class Deep(Point):
    def twin(self):
        return Deep(self.x)

class Pair(typing.NamedTuple):
    a: int
    b: int

class Colour(enum.Enum):
    RED = 1

class Mishap(Exception):
    def __init__(self, what, where):
        super().__init__(what)
        self.where = where

class Haunted(types.new_class('Ghost', exec_body=lambda body: body.update(__module__='ghost'))):
    pass

sys.modules['ghost'] = types.ModuleType('ghost')
sys.modules['ghost'].Ghost = Haunted.__base__

def double(x):
    return 2 * helper(x)

def helper(x):
    return x

def make_point(x):
    return Point(x)

def make_mishap():
    return Mishap('lost', where='here')

@functools.lru_cache
def remembered(x):
    return 2 * x

def calls_remembered(x):
    return remembered(x)

Number = typing.NewType('Number', int)
T = typing.TypeVar('T')

def with_a_new_type(x: Number) -> Number:
    return Number(2 * x)

def with_a_type_variable(x: T) -> typing.List[T]:
    return 2 * x

def ping(x):
    return pong(x, 2) if x else 42

def pong(x, step):
    return ping(0)

class Node:
    def make(self):
        return make_node()

def make_node():
    return Node()

count, counted = 0, []

def count_up():
    global count
    count += 1
    counted.append(count)
    return count

def how_many():
    return count, counted

class Counter:
    def __call__(self):
        return count_up()

variable = contextvars.ContextVar('variable', default=42)

def value_of_variable():
    return variable.get()

Local = make_local()
twenty = 20
print(eval(sys.argv[1]))
'''


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    '''Prints what an expression is in a script's `__main__`.'''
    path = tmp_path / 'script.py'
    path.write_text(SCRIPT)

    def evaluate(expression: str) -> str:
        command = [sys.executable, str(path), expression]
        env = {'PYTHONPATH': str(ROOT)}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=env)
        assert not ended.returncode, ended.stderr
        return ended.stdout.strip()

    return evaluate


Script = Callable[[str], str]

# By value, from one script to another process and back


@pytest.mark.parametrize(
    'function',
    [
        'lambda x: 2 * x',
        'lambda x: x + twenty + 1',
        'double',
        'functools.partial(lambda a, b: a + b, 21)',
        'Point(2).times',
        'Point.double',
        'remembered',
        'calls_remembered',
        'with_a_new_type',
        'with_a_type_variable',
        'ping',
        'lambda _: value_of_variable()',
    ],
)
def test_a_function_of_a_script_runs_elsewhere(script: Script, function: str) -> None:
    assert script(f"abroad({function}, do='lambda function: function(21)')") == '42'


@pytest.mark.parametrize('made', ['Point(1)', 'Deep(1)', 'Pair(1, 2)', 'Point.Inner()', 'Local()'])
def test_what_comes_home_is_an_instance_of_the_very_class(script: Script, made: str) -> None:
    assert script(f'type(abroad({made})) is type({made})') == 'True'


@pytest.mark.parametrize('value', ['Point(1)', '[Point(1), {"deep": Deep(2)}]', 'Pair(1, 2)', '"__main__"'])
def test_what_comes_home_is_equal(script: Script, value: str) -> None:
    assert script(f'abroad({value}) == {value}') == 'True'


@pytest.mark.parametrize('definition', ['Point', 'Deep', 'Local', 'Colour.RED', 'double'])
def test_what_is_one_of_a_kind_comes_home_as_itself(script: Script, definition: str) -> None:
    assert script(f'abroad({definition}) is {definition}') == 'True'


@pytest.mark.parametrize(
    ('sent', 'do', 'home'),
    [
        ('Point', 'lambda cls: cls(1)', 'Point'),
        ('Deep(1)', 'lambda deep: deep.twin()', 'Deep'),
        ('make_point', 'lambda make: make(1)', 'Point'),
        ('lambda: Local()', 'lambda make: make()', 'Local'),
        ('Node()', 'lambda node: node.make().make()', 'Node'),
    ],
)
def test_what_was_made_elsewhere_comes_home_as_well(script: Script, sent: str, do: str, home: str) -> None:
    assert script(f'type(abroad({sent}, do={do!r})) is {home}') == 'True'


def test_a_class_and_its_base_belong_together_elsewhere(script: Script) -> None:
    check = "'lambda pair: isinstance(pair[0], type(pair[1]))'"

    assert script(f'abroad((Deep(1), Point(2)), do={check})') == 'True'


def test_a_function_that_is_mentioned_twice_is_one_elsewhere(script: Script) -> None:
    assert script("abroad((double, [double]), do='lambda pair: pair[0] is pair[1][0]')") == 'True'


def test_definitions_share_their_globals_elsewhere_as_they_do_in_the_script(script: Script) -> None:
    sent = 'count_up, Counter(), lambda: count_up(), how_many'

    assert script(f"abroad({sent}, do='lambda function: function()')") == '[1, 2, 3, (3, [1, 2, 3])]'


def test_what_happens_elsewhere_leaves_the_script_alone(script: Script) -> None:
    assert script("(abroad(count_up, do='lambda function: function()'), count, counted)") == '(1, 0, [])'


def test_a_context_variable_is_one_for_all_that_refer_to_it(script: Script) -> None:
    sets = "'lambda pair: pair[0].set(3) and pair[1]()'"

    assert script(f'abroad((variable, value_of_variable), do={sets})') == '3'
    assert script('abroad(variable) is variable') == 'True'


def test_a_definition_has_one_key_in_all_messages(script: Script) -> None:
    assert script('needs(Point(1)) == needs([Point, Point(2)]) and len(needs(Point(3)))') == '1'


def test_a_message_refers_to_a_definition_instead_of_holding_it(script: Script) -> None:
    assert script("b'times' in encode(Point(1))[0]") == 'False'


def test_a_definition_is_as_it_was_when_it_was_first_sent_until_it_is_to_be_made_anew(script: Script) -> None:
    change = "encode(Point), setattr(Point, 'extra', 42)"
    look = "abroad(Point, do='lambda cls: getattr(cls, \\'extra\\', None)')"

    assert script(f'({change}, {look}, forget_bodies(), {look})[2:]') == '(None, None, 42)'


def test_what_was_sent_before_a_definition_was_made_anew_still_comes_home(script: Script) -> None:
    home = script('[type(decode(data)) is Point for data in [encode(Point(1))[0]] if not forget_bodies()]')

    assert home == '[True]'


@pytest.mark.parametrize('obj', ['lambda: 1', 'Local()', 'dataclasses.dataclass', '"__main__"'])
def test_what_is_not_at_the_top_of_a_script_is_no_definition(script: Script, obj: str) -> None:
    assert script(f'needs({obj})') == '[]'


def test_a_definition_that_can_not_be_loaded_fails_only_who_uses_it(script: Script) -> None:
    answer = script('abroad(Haunted(), Point(1))')

    assert 'ghost' in answer and answer.endswith('Point(x=1)]')


def test_an_exception_of_a_script_comes_home_as_its_own_type(script: Script) -> None:
    assert script('[(type(e) is Mishap, str(e), e.where) for e in [raised_abroad(make_mishap)]]') == (
        "[(True, 'lost', 'here')]"
    )


def test_the_definitions_of_an_exception_keep_to_the_limit_too(script: Script) -> None:
    assert script('[len(body) <= 300 for _, body in pack_error(make_mishap(), 300)[1]] in ([], [True])') == 'True'


# Within one process


def test_what_pickle_can_do_is_left_to_it() -> None:
    message = {'url': ['http://example.org/', b'body', 1.5, None, Path('x')]}

    assert encode(message) == (pickle.dumps(message, 5), ())


def test_functions_without_a_name_travel_by_value() -> None:
    data, needs = encode(lambda x: x + 1)

    assert decode(data)(1) == 2
    assert needs == ()


@pytest.mark.parametrize('message', [threading.Lock(), (x for x in ()), sys._getframe()], ids=type)
def test_what_can_not_travel_is_an_error_of_encode(message: object) -> None:
    with pytest.raises((TypeError, pickle.PicklingError)):
        encode(message)


NUMBERS = numpy.arange(24.0).reshape(4, 6)


@pytest.mark.parametrize(
    'view',
    [
        NUMBERS.data, NUMBERS.T.data, NUMBERS[:, ::2].data, NUMBERS[1, ::-1].data, NUMBERS[0, :0].data,
        memoryview(b''), memoryview(bytearray(b'many bytes'))[::3], memoryview(numpy.asfortranarray(NUMBERS)),
    ],
)  # fmt: skip
def test_a_memoryview_shows_the_same_elsewhere(view: memoryview) -> None:
    found = decode(encode(view)[0])

    assert (found.shape, found.format, found.tolist()) == (view.shape, view.format, view.tolist())


@pytest.mark.parametrize('array', [numpy.zeros((0, 3)), numpy.zeros(3, '>f8'), numpy.zeros(3, [('a', 'i4')])])
def test_a_memoryview_that_cannot_be_made_elsewhere_is_an_error_of_encode(array: Any) -> None:
    with pytest.raises(pickle.PicklingError, match='send what it is a view of'):
        encode(array.data)


def test_what_is_nested_too_deeply_is_an_error_of_encode() -> None:
    nest: list[Any] = []
    for _ in range(50_000):
        nest = [nest]

    with pytest.raises((RecursionError, pickle.PicklingError)):
        encode(nest)


def test_encode_gives_the_error_of_the_object_itself() -> None:
    class Shy:
        def __reduce__(self) -> str:
            raise LookupError('too shy to travel')

    with pytest.raises(LookupError, match='too shy to travel'):
        encode(Shy())


def test_the_cap_counts_for_an_object_and_for_each_definition() -> None:
    encoded = sized((b'x' * 10, (Definition(('a', 1), b'y' * 10, ()), Definition(('a', 2), b'z' * 11, ()))))

    check_encoded(encoded, 11)

    for limit in (9, 10):
        with pytest.raises(MessageTooBig, match=f'over the cap of {limit}'):
            check_encoded(encoded, limit)


@pytest.mark.parametrize('body', [b'', b'garbage', pickle.dumps(3), pickle.dumps(()), pickle.dumps([[], 3])])
@pytest.mark.parametrize('take', [define, lambda body: unpack_error(body, 'a note')], ids=['definition', 'error'])
def test_a_body_that_is_not_what_it_has_to_be_breaks_the_protocol(take: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(ProtocolError):
        take(body)


# Functions in requests


def test_a_function_of_a_module_is_said_by_its_names() -> None:
    assert address_of(shutil.which, {}) == (('shutil', 'which'), ())
    assert function_at(('shutil', 'which')) is shutil.which


@pytest.mark.parametrize('function', [
    abs, str.upper, functools.partial(abs), lambda: 0, int, 'text'.upper, function_at.__call__
])  # fmt: skip
def test_what_has_no_address_stands_for_itself(function: Any) -> None:
    assert address_of(function, {}) == (function, ())


def test_a_function_that_its_module_has_no_longer_stands_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    old = shutil.which
    monkeypatch.setattr(shutil, 'which', None)

    assert address_of(old, {}) == (old, ())


def test_a_module_is_imported_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, 'this', raising=False)
    with contextlib.redirect_stdout(io.StringIO()):
        assert function_at(('this', 'd'))
    with pytest.raises(ImportError):
        function_at(('no_such_module', 'function'))
    with pytest.raises(AttributeError):
        function_at(('shutil', 'no_such_function'))
