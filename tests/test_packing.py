'''A codec of the user's: types that travel as was registered, messages that are no pickle, and what stays as it was.'''

import asyncio
import json
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import run
from conftest import LogGuard
from harness import Echo, failures_of, rest_of

import looppool
from looppool import Codec, Pool, Worker, task_done
from looppool.codec import decode, encode, sized
from looppool.packing import Packing
from looppool.plain import plain_size


class Money:
    '''Can't be pickled.'''

    def __init__(self, cents: int) -> None:
        self.cents = cents
        self.lock = threading.Lock()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.cents == other.cents  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.cents)


class Euros(Money):
    pass


def to_bytes(money: Money) -> bytes:
    return b'%d' % money.cents


def from_bytes(data: bytes) -> Money:
    return Money(int(data))


class JsonCodec(Codec):
    '''Numbers, strings, lists and dicts, and nothing else; marks what it has made.'''

    def encode(self, obj: Any) -> bytes:
        return b'json' + json.dumps(obj).encode()

    def decode(self, data: bytes) -> Any:
        assert data[:4] == b'json'
        return json.loads(data[4:])


class Reversing(Codec):
    '''Pickles, and turns the bytes round.'''

    def encode(self, obj: Any) -> bytes:
        return super().encode(obj)[::-1]

    def decode(self, data: bytes) -> Any:
        return super().decode(data[::-1])


class Textual(Codec):
    def encode(self, obj: Any) -> bytes:
        return str(obj)  # type: ignore[return-value]


class LosesThere(JsonCodec):
    '''Can't decode where it did not encode before.'''

    def __init__(self) -> None:
        self.home = os.getpid()

    def decode(self, data: bytes) -> Any:
        if os.getpid() != self.home:
            raise LookupError('lost in the worker')
        return super().decode(data)


class LosesHere(LosesThere):
    def decode(self, data: bytes) -> Any:
        if os.getpid() == self.home:
            raise LookupError('lost in the parent')
        return JsonCodec.decode(self, data)


class AnswersWithASet(Worker[Any, Any]):
    @task_done
    def _process_message(self, message: Any) -> None:
        self._put_nowait({message})


def with_money() -> Codec:
    codec = Codec()
    codec.register(Money, to_bytes, from_bytes)
    return codec


def there_and_back(packing: Packing, obj: Any) -> Any:
    return packing.unpack(packing.pack(obj)[0])


# One side alone


def test_without_a_codec_the_functions_of_the_module_are_used_as_they_are() -> None:
    packing = Packing()

    assert packing.pack is packing.pickle and packing.unpack is decode
    assert packing.pack([1]) == sized(encode([1]))


@pytest.mark.parametrize('message', [7, 'text', None, 1.5])
def test_what_is_plain_is_left_as_it_is_unless_a_codec_wants_it(message: Any) -> None:
    assert Packing().pack(message) == (message, (), plain_size(message))
    assert there_and_back(Packing(), message) == message
    for codec in (JsonCodec(), with_money()):
        assert type(Packing(codec).pack(message)[0]) is bytes
        assert there_and_back(Packing(codec), message) == message


def test_what_is_not_registered_is_pickled_as_ever() -> None:
    message = {'url': ['http://example.org/', b'body', 1.5, None, Path('x')], 'complex': 1j}

    assert Packing(with_money()).pack(message) == sized((pickle.dumps(message, 5), ()))


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: [{'deep': (x,)}], lambda x: {x: x}], ids=['', 'in', 'key'])
def test_a_registered_type_travels_as_was_said(wrap: Callable[[Any], Any]) -> None:
    packing = Packing(with_money())

    assert there_and_back(packing, wrap(Money(3))) == wrap(Money(3))
    assert decode(packing.pickle(wrap(Money(3)))[0]) == wrap(Money(3))


def test_an_object_that_is_met_twice_is_one_on_the_other_side() -> None:
    money = Money(3)

    first, second = there_and_back(Packing(with_money()), [money, money])

    assert first is second


def test_a_closure_may_hold_one() -> None:
    money = Money(3)

    assert there_and_back(Packing(with_money()), lambda: money)() == money


def test_what_derives_from_a_registered_type_is_another_one() -> None:
    with pytest.raises(TypeError, match='cannot pickle'):
        Packing(with_money()).pack(Euros(3))


def test_the_last_one_that_was_registered_counts() -> None:
    codec = with_money()
    codec.register(Money, lambda money: money.cents + 1, Money)

    assert there_and_back(Packing(codec), Money(3)) == Money(4)


def test_codecs_know_nothing_of_each_other() -> None:
    with_money()

    with pytest.raises(TypeError, match='cannot pickle'):
        Packing(Codec()).pack(Money(3))


@pytest.mark.parametrize('cls', [dict, str, int, type(None), type, 'Money', None, type(to_bytes)])
def test_only_a_class_that_pickle_asks_about_can_be_registered(cls: Any) -> None:
    with pytest.raises(TypeError, match=r'\bcls\b'):
        Codec().register(cls, to_bytes, from_bytes)


@pytest.mark.parametrize(('functions', 'name'), [((None, from_bytes), 'encode'), ((to_bytes, 'decode'), 'decode')])
def test_both_ways_have_to_be_functions(functions: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf'\b{name}\b'):
        Codec().register(Money, *functions)


def test_a_codec_of_its_own_makes_the_bytes_and_calls_stay_pickled() -> None:
    codec = JsonCodec()
    codec.register(Money, to_bytes, from_bytes)
    packing = Packing(codec)

    assert packing.pack([1, 2]) == (b'json[1, 2]', (), 10)
    assert packing.unpack(b'json[1, 2]') == [1, 2]
    assert decode(packing.pickle(({1, 2}, Money(3)))[0]) == ({1, 2}, Money(3))


def test_a_codec_may_build_upon_pickle() -> None:
    codec = Reversing()
    codec.register(Money, to_bytes, from_bytes)
    packing = Packing(codec)

    assert packing.pack({1})[0] == pickle.dumps({1}, 5)[::-1]
    assert there_and_back(packing, [Money(3)]) == [Money(3)]


def test_what_encode_returns_has_to_be_bytes() -> None:
    with pytest.raises(TypeError, match=r'Textual\.encode returned str: let it return bytes'):
        Packing(Textual()).pack(3)


# Pools


async def test_a_registered_type_goes_everywhere(context: str) -> None:
    def numbers(money: Money) -> Iterator[Money]:
        for cents in range(money.cents):
            yield Money(cents)

    async def double(stream: Any) -> Money:
        async for money in stream:
            await stream.send(Money(2 * money.cents))
        return Money(0)

    async with Pool(pool_size=1, worker_class=Echo, context=context, codec=with_money()) as pool:
        await pool.put({'price': Money(1)})
        await pool.broadcast(Money(2))
        assert await pool.call(lambda money: [money, Money(5)], Money(4)) == [Money(4), Money(5)]
        assert [item async for item in pool.stream(numbers, Money(2))] == [Money(0), Money(1)]
        assert [item async for item in pool.map(lambda money: money, [Money(7)])] == [Money(7)]
        async with pool.open_stream(double) as stream:
            await stream.send(Money(3))
            assert await stream.receive() == Money(6)
            stream.end()
            assert await stream.result() == Money(0)
    assert await rest_of(pool) == [{'price': Money(1)}, Money(2)]


async def test_options_may_hold_one(context: str) -> None:
    class Till(Worker[None, Money]):
        def _initialise(self, change: Money) -> None:
            self._put_nowait(change)

    options = {'change': Money(3)}
    async with Pool(pool_size=1, worker_class=Till, context=context, codec=with_money(), options=options) as pool:
        assert await anext(pool.results()) == Money(3)


async def test_a_codec_of_its_own_is_in_all_messages_and_not_in_calls(context: str) -> None:
    async def send_back(stream: Any) -> set[int]:
        async for item in stream:
            await stream.send(item)
        return {3}

    async with Pool(pool_size=1, worker_class=Echo, context=context, codec=JsonCodec()) as pool:
        await pool.put((1, 2))
        await pool.broadcast({'a': (1,)}, retain='key')
        assert await pool.call(set, (1, 2)) == {1, 2}
        assert [item async for item in pool.stream(lambda: [(1, 2)])] == [[1, 2]]
        async with pool.open_stream(send_back) as stream:
            await stream.send((1, 2))
            assert await stream.receive() == [1, 2]
            stream.end()
            assert await stream.result() == {3}
        with pytest.raises(TypeError, match='set is not JSON serializable'):
            await pool.put({1})
        with pytest.raises(TypeError, match='set is not JSON serializable'):
            async for _ in pool.stream(lambda: [{1}]):
                pass
    assert await rest_of(pool) == [[1, 2], {'a': [1]}]


async def test_replacements_and_workers_with_names_have_it_too(context: str, logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')
    async with Pool(pool_size=1, worker_class=Echo, context=context, codec=JsonCodec()) as pool:
        results = pool.results()
        await pool.broadcast((0,), retain='key')
        assert await anext(results) == [0]
        await pool.members[0].kill()
        await pool.put((1,))
        assert [await anext(results), await anext(results)] == [[0], [1]]
        member = await pool.spawn('kitty')
        await member.put((2,))
        assert [await anext(results), await anext(results)] == [[0], [2]]


async def ask_kitty(cents: int) -> list[Any]:
    async def send_back(stream: Any) -> Money:
        await stream.send(await stream.receive())
        return Money(cents)

    kitty = await looppool.find_worker('kitty')
    await kitty.put((1, 2))
    async with kitty.open_stream(send_back) as stream:
        await stream.send((3, 4))
        return [await kitty.call(lambda money: money, Money(cents)), await stream.receive(), await stream.result()]


@pytest.mark.parametrize('codec_class', [Codec, JsonCodec])
async def test_workers_use_it_among_themselves(context: str, codec_class: type[Codec]) -> None:
    codec = codec_class()
    codec.register(Money, to_bytes, from_bytes)
    kind = tuple if codec_class is Codec else list
    async with Pool(pool_size=1, worker_class=Echo, context=context, codec=codec) as pool:
        await pool.spawn('kitty')
        assert await pool.call(ask_kitty, 7) == [Money(7), kind((3, 4)), Money(7)]
        assert await anext(pool.results()) == kind((1, 2))


async def test_what_it_can_not_decode_in_the_worker_is_an_error_of_the_task(context: str) -> None:
    pool: Pool[Any, Any] = Pool(pool_size=1, worker_class=Echo, context=context, codec=LosesThere())
    failures = failures_of(pool)
    async with pool:
        await pool.put((1, 2))
    ((task, error),) = failures
    assert task == [1, 2]
    assert type(error) is LookupError and 'lost in the worker' in str(error)


async def test_what_it_can_not_decode_here_is_logged_as_an_error_of_the_handler(logs: LogGuard) -> None:
    logged = logs.expect('a result of worker 0 could not be processed')
    async with Pool(pool_size=1, worker_class=Echo, codec=LosesHere()) as pool:
        pool.process_message = task_done(lambda result, result_done: None)
        await pool.put(1)
    assert len(logged) == 1


async def test_what_it_can_not_encode_in_the_worker_is_an_error_of_the_task() -> None:
    pool: Pool[Any, Any] = Pool(pool_size=1, worker_class=AnswersWithASet, codec=JsonCodec())
    failures = failures_of(pool)
    async with pool:
        await pool.put(1)
    assert [(task, type(error)) for task, error in failures] == [(1, TypeError)]


async def test_a_task_whose_worker_died_is_told_and_run_again_as_it_was(logs: LogGuard) -> None:
    logs.expect('was killed by SIGKILL')

    class Dies(Worker[Any, Any]):
        def _process_message(self, message: Any) -> None:
            os.kill(os.getpid(), 9)

    pool: Pool[Any, Any] = Pool(pool_size=1, worker_class=Dies, codec=JsonCodec(), retries=1, restart_delay=0.001)
    failures = failures_of(pool)
    async with pool:
        await pool.put((1, 2))
    assert [(task, type(error)) for task, error in failures] == [([1, 2], looppool.WorkerDied)]
    assert pool.statistics().restarts == 2


async def test_a_codec_that_can_not_travel_fails_the_start() -> None:
    codec = Codec()
    codec.lock = threading.Lock()  # type: ignore[attr-defined]

    with pytest.raises(TypeError, match='cannot pickle'):
        await Pool(pool_size=1, codec=codec).start()


async def test_who_waits_for_credit_has_encoded_before() -> None:
    async with Pool(pool_size=1, worker_class=Echo, codec=JsonCodec(), max_tasks=1) as pool:
        message = [1]
        pool.put_nowait(message)
        waiting = asyncio.ensure_future(pool.put(message))
        await asyncio.sleep(0)
        message.append(2)
        await waiting
    assert await rest_of(pool) == [[1], [1]]


SCRIPT = '''
import asyncio, json, sys, threading
import looppool

class Money:
    def __init__(self, cents):
        self.cents = cents
        self.lock = threading.Lock()

FEE = Money(5)

class JsonCodec(looppool.Codec):
    def encode(self, obj):
        return json.dumps(obj, default=lambda money: {'cents': money.cents}).encode()

    def decode(self, data):
        return json.loads(data, object_hook=lambda fields: Money(fields['cents']))

def add_fee(money):
    assert type(money) is Money
    return Money(money.cents + FEE.cents)

class Adder(looppool.Worker):
    @looppool.task_done
    def _process_message(self, money):
        self._put_nowait(add_fee(money))

async def main(codec):
    codec.register(Money, lambda money: money.cents, lambda cents: Money(cents))
    async with looppool.Pool(pool_size=1, worker_class=Adder, context=sys.argv[1], codec=codec) as pool:
        await pool.put(Money(1))
        result = await anext(pool.results())
        value = await pool.call(add_fee, Money(2))
        async for item in pool.stream(lambda: [add_fee(FEE)]):
            print([(type(money) is Money, money.cents) for money in (result, value, item)])

asyncio.run(main(looppool.Codec()))
asyncio.run(main(JsonCodec()))
'''


async def test_all_of_it_may_be_defined_in_a_script(context: str, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    code, output, errors = await run(sys.executable, script, context)
    assert (code, errors) == (0, '')
    assert output == '[(True, 6), (True, 7), (True, 10)]\n' * 2
