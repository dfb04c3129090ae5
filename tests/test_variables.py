'''The values of context variables travel along with what is put and called, to just that task, and to no other.'''

import asyncio
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest
from command import run
from conftest import LogGuard
from harness import failures_of, rest_of
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

import looppool
from looppool import Codec, Pool, Worker, in_thread, task_done
from looppool.codec import decode, define, encode, forget_bodies
from looppool.packing import Packing
from looppool.variables import adopt, home_of, values_of

REQUEST: ContextVar[Any] = ContextVar('request')
TENANT: ContextVar[str] = ContextVar('tenant', default='nobody')
BOTH = [REQUEST, TENANT]

Seen = tuple[Any, str]


def here() -> Seen:
    return REQUEST.get('unset'), TENANT.get()


def sets(request: str) -> None:
    REQUEST.set(request)


async def here_later() -> Seen:
    await asyncio.sleep(0)
    return await asyncio.create_task(soon())


async def soon() -> Seen:
    return here()


def here_for(_item: int) -> Seen:
    return here()


def items() -> Iterator[Seen]:
    yield here()
    yield here()


async def items_later() -> AsyncIterator[Seen]:
    yield here()
    await asyncio.sleep(0)
    yield here()


async def over_a_stream(stream: Any) -> Seen:
    await stream.send(here())
    return here()


class Tells(Worker[Any, Any]):
    '''Tells with each message what the variables are; coroutine if the message is odd.'''

    @task_done
    def _process_message(self, message: Any) -> Any:
        if message in (1, 3):
            return self._later(message)
        self._put_nowait((message, *here()))
        return None

    async def _later(self, message: Any) -> None:
        self._put_nowait((message, *await here_later()))


class SetsAndEnds(Tells):
    def _process_message(self, message: Any) -> Any:
        super()._process_message(message)
        REQUEST.set('of another task')

    def _finalise(self) -> None:
        self._put_nowait(here())


class Ticket:
    '''Can't be pickled.'''

    def __init__(self, number: int) -> None:
        self.number = number
        self.lock = threading.Lock()


class JsonCodec(Codec):
    def encode(self, obj: Any) -> bytes:
        return json.dumps(obj).encode()

    def decode(self, data: bytes) -> Any:
        return json.loads(data)


def within(request: Any, make: Callable[[], Coroutine[Any, Any, Any]], tenant: str | None = None) -> asyncio.Task[Any]:
    '''A task with these values; None: unset.'''
    context = Context()
    for variable, value in ((REQUEST, request), (TENANT, tenant)):
        if value is not None:
            context.run(variable.set, value)
    return asyncio.get_running_loop().create_task(make(), context=context)


async def by_every_verb(pool: Pool[Any, Any]) -> set[Seen]:
    '''What runs in the workers, however it was called, sees.'''
    seen = [await pool.call(function) for function in (here, here_later, in_thread(here), lambda: here())]
    seen += [await pool.call_nowait(here), *await pool.call_all(here), await pool.members[0].call(here)]
    for generator in (items, items_later):
        seen += [item async for item in pool.stream(generator)]
    async with pool.open_stream(over_a_stream) as stream:
        seen += [await stream.receive(), await stream.result()]
    seen += [value async for value in pool.map(here_for, range(5))]
    async with pool.reserve() as lease:
        seen.append(await lease.call(here))
    return set(seen)


# One process alone


def test_a_variable_of_a_module_is_found_there_by_name() -> None:
    assert home_of(REQUEST) == (__name__, 'REQUEST')
    data, needs = encode([REQUEST])

    assert decode(data) == [REQUEST] and not needs


def test_any_other_is_a_definition_and_stays_the_same_one() -> None:
    local: ContextVar[int] = ContextVar('local', default=3)
    data, needs = encode((local, lambda: local))

    assert home_of(local) is None and len(needs) == 1
    first, function = decode(data)
    assert first is function() is local
    assert define(needs[0].body) == needs[0].key

    forget_bodies()
    assert encode(local)[1] == needs


@pytest.mark.parametrize('request_id', [None, 'a'])
def test_what_is_not_set_is_not_set_there(request_id: str | None) -> None:
    context = Context()
    if request_id:
        context.run(REQUEST.set, request_id)

    values = context.run(values_of, BOTH)

    assert values == ({0: request_id} if request_id else {})
    there = Context()
    there.run(adopt, BOTH, values)
    assert dict(there) == ({REQUEST: request_id} if request_id else {})


def test_without_variables_nothing_travels_along() -> None:
    packing = Packing()

    assert (packing.pack_task, packing.unpack_task) == (packing.pack, packing.unpack)
    assert packing.pack_request((0, abs, (1,), {})) == packing.pickle((0, abs, (1,), {}))


@pytest.mark.parametrize('codec', [None, Codec(), JsonCodec()])
def test_the_values_are_beside_the_message(codec: Codec | None) -> None:
    packing = Packing(codec, tuple(BOTH))
    context, there = copy_context(), Context()
    context.run(REQUEST.set, {'a set'})

    body, *_ = context.run(packing.pack_task, ['message'])

    assert packing.unpack_task(body) == ['message']
    assert packing.unpack(packing.set_values(there, body)) == ['message']
    assert there.run(here) == ({'a set'}, 'nobody')


# Pools


async def test_what_is_called_sees_the_values_of_its_caller(context: str) -> None:
    async with Pool(pool_size=2, context=context, contextvars=BOTH) as pool:
        assert await within('a', lambda: by_every_verb(pool)) == {('a', 'nobody')}
        assert await within(None, lambda: by_every_verb(pool)) == {('unset', 'nobody')}
        assert await within('b', lambda: by_every_verb(pool), 'tenant') == {('b', 'tenant')}
        assert await within(None, lambda: by_every_verb(pool), 'tenant') == {('unset', 'tenant')}


async def by_way_of_another() -> Seen:
    return await (await looppool.find_worker('kitty')).call(here_later)  # type: ignore[no-any-return]


async def put_by_way_of_another() -> None:
    await (await looppool.find_worker('kitty')).put(0)


async def test_they_travel_on_to_other_workers(context: str) -> None:
    async with Pool(pool_size=1, worker_class=Tells, context=context, contextvars=BOTH) as pool:
        await pool.spawn('kitty')
        for request, seen in (('a', 'a'), (None, 'unset')):
            assert await within(request, lambda: pool.call(by_way_of_another)) == (seen, 'nobody')
            await within(request, lambda: pool.call(put_by_way_of_another))
            assert await anext(pool.results()) == (0, seen, 'nobody')


class Looks:
    def __init__(self) -> None:
        self.made = here()

    def look(self) -> Seen:
        return here()

    async def look_twice(self) -> AsyncIterator[Seen]:
        yield here()
        yield await here_later()


async def test_methods_of_objects_in_a_worker_see_them_too(context: str) -> None:
    async def use() -> list[Seen]:
        async with await pool.create(Looks) as looking:
            return [await looking.get('made'), await looking.look(), *[seen async for seen in looking.look_twice()]]

    async with Pool(pool_size=1, context=context, contextvars=BOTH) as pool:
        assert await within('a', use) == [('a', 'nobody')] * 4


async def test_what_is_not_picked_does_not_travel(context: str) -> None:
    async with Pool(pool_size=1, context=context, contextvars=[TENANT]) as pool:
        assert await within('a', lambda: by_every_verb(pool), 'tenant') == {('unset', 'tenant')}


async def test_without_variables_none_travels_and_none_is_inherited(context: str) -> None:
    TENANT.set('of whoever has started the pool')
    async with Pool(pool_size=1, context=context) as pool:
        assert await within('a', lambda: by_every_verb(pool), 'tenant') == {('unset', 'nobody')}


async def test_messages_are_handled_with_the_values_of_whoever_puts_them(context: str) -> None:
    async def put(pool: Pool[Any, Any], first: int) -> None:
        await pool.put(first)
        await pool.put(first + 1)
        await pool.members[0].put(first + 2)

    REQUEST.set('of whoever has started the pool')
    async with Pool(pool_size=1, worker_class=Tells, context=context, contextvars=BOTH, max_tasks=1) as pool:
        for request, first in (('a', 0), (None, 3), ('b', 6)):
            await within(request, lambda first=first: put(pool, first), request)
        await within('c', lambda: pool.broadcast(9, retain='key'))
    assert sorted(await rest_of(pool)) == [
        *((number, 'a', 'a') for number in (0, 1, 2)),
        *((number, 'unset', 'nobody') for number in (3, 4, 5)),
        *((number, 'b', 'b') for number in (6, 7, 8)),
        (9, 'c', 'nobody'),
    ]


async def test_a_value_stays_within_its_task(context: str) -> None:
    async with Pool(pool_size=1, worker_class=SetsAndEnds, context=context, contextvars=BOTH) as pool:
        await within('a', lambda: pool.put(2))
        await within(None, lambda: pool.put(4))
        assert await within(None, lambda: pool.call(here)) == ('unset', 'nobody')
        await pool.call(sets, 'of a call')
        await within(None, lambda: pool.put(6))
    assert await rest_of(pool) == [
        (2, 'a', 'nobody'),
        (4, 'unset', 'nobody'),
        (6, 'unset', 'nobody'),
        ('unset', 'nobody'),
    ]


class Meets(Worker[int, tuple[int, Any]]):
    '''Its tasks go on when ten have begun.'''

    def _initialise(self) -> None:
        self._barrier = asyncio.Barrier(10)

    @task_done
    async def _process_message(self, message: int) -> None:
        before = REQUEST.get()
        await self._barrier.wait()
        assert before == REQUEST.get()
        self._put_nowait((message, before))


async def test_tasks_side_by_side_have_each_their_own(context: str) -> None:
    async with Pool(pool_size=1, worker_class=Meets, context=context, contextvars=[REQUEST]) as pool:
        for number in range(20):
            REQUEST.set(f'request {number}')
            await pool.put(number)
        assert await asyncio.gather(*(within(n, lambda: pool.call(here_later)) for n in range(50))) == [
            (number, 'nobody') for number in range(50)
        ]
    assert sorted(await rest_of(pool)) == [(number, f'request {number}') for number in range(20)]


async def test_the_values_are_those_where_a_stream_was_asked_for_and_not_where_it_is_used() -> None:
    async with Pool(pool_size=1, contextvars=[REQUEST]) as pool:
        REQUEST.set('early')
        stream, mapped, opened = pool.stream(items), pool.map(here_for, range(9)), pool.open_stream(over_a_stream)
        REQUEST.set('late')
        seen = [item async for item in stream] + [item async for item in mapped]
        async with opened:
            seen.append(await opened.receive())
        assert set(seen) == {('early', 'nobody')}
        assert await pool.call(here) == ('late', 'nobody')


def dies_at_first(path: str) -> Any:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return REQUEST.get()
    os.kill(os.getpid(), signal.SIGKILL)


class DiesAtFirst(Worker[str, Any]):
    @task_done
    def _process_message(self, path: str) -> None:
        self._put_nowait(dies_at_first(path))


async def test_what_is_run_again_has_the_same_values(context: str, logs: LogGuard, tmp_path: Path) -> None:
    logs.expect('was killed by SIGKILL')
    async with Pool(pool_size=1, worker_class=DiesAtFirst, context=context, contextvars=[REQUEST], retries=1) as pool:
        await within('put', lambda: pool.put(str(tmp_path / 'put')))
        assert await anext(pool.results()) == 'put'
        assert await within('called', lambda: pool.call(dies_at_first, str(tmp_path / 'called'))) == 'called'


async def test_a_broadcast_that_is_retained_keeps_its_values() -> None:
    async with Pool(pool_size=1, worker_class=Tells, contextvars=[REQUEST]) as pool:
        await within('broadcast', lambda: pool.broadcast(0, retain='key'))
        await within('spawn', lambda: pool.spawn('kitty'))
    assert await rest_of(pool) == [(0, 'broadcast', 'nobody')] * 2


class Fails(Worker[Any, Any]):
    def _process_message(self, message: Any) -> None:
        raise LookupError(*here())


async def test_process_failure_is_given_the_message_alone(context: str) -> None:
    pool: Pool[Any, Any] = Pool(pool_size=1, worker_class=Fails, context=context, contextvars=BOTH)
    failures = failures_of(pool)
    async with pool:
        await within('a', lambda: pool.put({'url': 1}))
    ((task, error),) = failures
    assert (task, error.args) == ({'url': 1}, ('a', 'nobody'))


async def test_a_value_that_can_not_be_pickled_is_the_error_of_whoever_puts() -> None:
    async with Pool(pool_size=1, worker_class=Tells, contextvars=BOTH) as pool:
        for verb in (lambda: pool.put(0), lambda: pool.call(here), lambda: pool.broadcast(0)):
            with pytest.raises(TypeError, match='cannot pickle') as caught:
                await within(Ticket(3), verb)
            assert caught.value.__notes__ == [
                'while pickling the values of the context variables that travel along: request'
            ]
        assert pool.statistics().in_flight == 0


async def test_a_codec_sees_no_values_but_its_types_count_there(context: str) -> None:
    codec = JsonCodec()
    codec.register(Ticket, lambda ticket: ticket.number, lambda number: f'ticket {number}')
    async with Pool(pool_size=1, worker_class=Tells, context=context, contextvars=[REQUEST], codec=codec) as pool:
        await within(Ticket(3), lambda: pool.put('message'))
        assert await anext(pool.results()) == ['message', 'ticket 3', 'nobody']


async def test_a_variable_that_no_module_has_is_the_same_for_all_that_refer_to_it(context: str) -> None:
    local: ContextVar[int] = ContextVar('local', default=3)

    def look() -> int:
        return local.get()

    async with Pool(pool_size=1, context=context, contextvars=[local]) as pool:
        assert await pool.call(look) == 3
        local.set(4)
        assert await pool.call(look) == await pool.call(lambda: local.get()) == 4
        async with Pool(pool_size=1, context=context, contextvars=[local]) as other:
            local.set(5)
            assert await pool.call(look) == await other.call(look) == 5
            assert await pool.call(lambda: local) is local


SCRIPT = '''
import asyncio, contextvars, sys
import looppool

REQUEST = contextvars.ContextVar('request', default='nobody')

class Id:
    def __init__(self, text):
        self.text = text

def look():
    value = REQUEST.get()
    return value.text if type(value) is Id else value

class Looker(looppool.Worker):
    @looppool.task_done
    async def _process_message(self, message):
        await asyncio.sleep(0)
        self._put_nowait((message, look()))

async def use(pool):
    await pool.put('message')
    print(await anext(pool.results()), await pool.call(look), await pool.call(lambda: REQUEST.get() and look()))

async def main():
    pools = [looppool.Pool(pool_size=1, worker_class=Looker, context=sys.argv[1], contextvars=[REQUEST]) for _ in 'ab']
    async with pools[0]:
        await use(pools[0])
        REQUEST.set(Id('mine'))
        await use(pools[0])
        async with pools[1]:
            await use(pools[1])
            await use(pools[0])

asyncio.run(main())
'''


async def test_a_variable_of_a_script(context: str, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    code, output, errors = await run(sys.executable, script, context)
    assert (code, errors) == (0, '')
    assert output.splitlines() == ["('message', 'nobody') nobody nobody", *["('message', 'mine') mine mine"] * 3]


class Logs(Worker[Any, Any]):
    '''Logs with the id of the request that it works for, as applications do.'''

    def _initialise(self) -> None:
        handler = logging.StreamHandler(written)
        handler.addFilter(with_request)
        handler.setFormatter(logging.Formatter('%(request)s: %(message)s'))
        application_log.addHandler(handler)
        application_log.propagate = False


application_log = logging.getLogger('application')
written = io.StringIO()


def with_request(record: logging.LogRecord) -> bool:
    record.request = REQUEST.get('none')
    return True


async def find(what: str) -> list[str]:
    await asyncio.sleep(0)
    application_log.warning('looks for %s', what)
    return written.getvalue().splitlines()


class Find(RequestHandler):
    async def get(self, what: str) -> None:
        REQUEST.set(self.request.headers['X-Request-Id'])
        self.write({'log': await self.settings['pool'].call(find, what)})


async def test_the_log_of_a_worker_names_the_request_that_it_works_for(context: str) -> None:
    sock, port = bind_unused_port()
    client = AsyncHTTPClient(force_instance=True)
    async with Pool(pool_size=1, worker_class=Logs, context=context, contextvars=[REQUEST]) as pool:
        server = HTTPServer(Application([('/(.*)', Find)], pool=pool))
        server.add_sockets([sock])
        try:
            urls = [f'http://127.0.0.1:{port}/{what}' for what in ('tea', 'cup', 'pot')]
            await asyncio.gather(*(client.fetch(url, headers={'X-Request-Id': url[-3:][::-1]}) for url in urls))
            log = await pool.call(find, 'the end')
        finally:
            server.stop()
            await server.close_all_connections()
            client.close()
    assert sorted(log) == ['aet: looks for tea', 'none: looks for the end', 'puc: looks for cup', 'top: looks for pot']
