'''What workers ask of their pool: to find another worker, to put a task to it, to hand a call on to it.

1. What is handed on is not unpickled here. Whoever is sent something that came by another link is sent first the
   definitions that came and went by that link.
2. A relay takes no permit: the asker bounds what it asks, and whoever it calls begins at once. So workers that wait for
   each other's answers get them, however full they are.
3. What was asked is answered once, whoever ends first: the function, its worker, the pool, or the asker by cancelling.
'''

import asyncio
import pickle
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from .asking import Op
from .codec import definitions, encode
from .errors import ProtocolError
from .kinds import Kind
from .payload import Body
from .plain import size_of
from .protocol import Terms

if TYPE_CHECKING:
    from .link import Link
    from .member import Member
    from .pool import Pool

__all__ = ['Relay', 'answer']


class _Onward:
    '''Passes on what comes by one link of the items of a call: its `Exchange`. It waits until there is another.'''

    def __init__(self, source: 'Link') -> None:
        self._source = source
        self._target: tuple[Link, int] | None = None
        self._early: list[tuple[str, tuple[Any, ...]]] = []

    def pass_to(self, link: 'Link', ident: int) -> None:
        '''From now on it goes there, as items of the call `ident`.'''
        self._target = link, ident
        for verb, args in self._early:
            self._pass(verb, *args)
        self._early.clear()

    def _pass(self, verb: str, *args: Any) -> None:
        if self._target is None:
            self._early.append((verb, args))
        else:
            link, ident = self._target
            getattr(link.end, verb)(ident, *args)

    def on_items(self, items: list[Body]) -> None:
        needs = definitions(self._source.end.known)
        for item in items:
            self._pass('send_item', item, needs)

    def on_more(self, count: int, size: int) -> None:
        self._pass('send_more', count, size)

    def on_end(self) -> None:
        self._pass('send_end')


class Relay:
    '''A call that is handed on: the `protocol.Caller` at the link of the worker that is called.

    :param asker: the link that it came by, with the id `ident`.
    :param data: the request, pickled.
    '''

    abandoned = False

    def __init__(self, asker: 'Link', ident: int, data: Body) -> None:
        self.data = data
        self.asker = asker
        self._ident = ident
        self._member: Member | None = None
        self._link: Link | None = None
        self._called = 0
        self._there = _Onward(asker)
        asker.asked[ident] = self
        asker.end.asks[ident] = self._there

    def hand_to(self, member: 'Member') -> None:
        '''Have the worker called, as soon as it is ready.'''
        self._member = member
        member.relay(self)

    def cancel(self) -> None:
        '''The asker has no use for the answer any more.'''
        if self._link is not None:
            self._link.abandon(self._called)
        elif self._member is not None:
            self._member.relays.remove(self)
            self.on_error(asyncio.CancelledError())

    # What the link tells that it went by

    def on_sent(self, link: 'Link', ident: int) -> None:
        self._link, self._called = link, ident
        self._there.pass_to(link, ident)
        back = _Onward(link)
        back.pass_to(self.asker, self._ident)
        self.on_items, self.on_more, self.on_end = back.on_items, back.on_more, back.on_end

    def on_value(self, body: Body) -> None:
        assert self._link is not None
        self.asker.answer(self._ident, Kind.ANSWER, body, definitions(self._link.end.known))

    def on_failure(self, body: bytes) -> None:
        assert self._link is not None
        self.asker.answer(self._ident, Kind.REFUSAL, body, definitions(self._link.end.known))

    def on_error(self, error: BaseException) -> None:
        self.asker.fail(self._ident, error)


def answer(pool: 'Pool[Any, Any]', link: 'Link', ident: int, head: bytes, data: Body) -> None:
    '''Do what the worker at the other end of `link` asks for.

    :raises ProtocolError: `head` is not what it has to be.
    '''
    try:
        op, address = pickle.loads(head)
        coroutine = {Op.CALL: None, Op.PUT: _put, Op.FIND: _find, Op.WAIT: _wait}[op]
    except Exception as error:
        raise ProtocolError(f'it is not clear what was asked: {error!r}') from error
    if coroutine is not None:
        _run(link, ident, coroutine(pool, link, address, data))
        return
    relay = Relay(link, ident, data)
    try:
        relay.hand_to(pool.member(address))
    except Exception as error:
        relay.on_error(error)


def _run(link: 'Link', ident: int, coroutine: Coroutine[Any, Any, Any]) -> None:
    def ended(task: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            link.answer(ident, Kind.ANSWER, *encode(task.result()))
        else:
            link.fail(ident, error)

    link.asked[ident] = task = asyncio.ensure_future(coroutine)
    task.add_done_callback(ended)


async def _put(pool: 'Pool[Any, Any]', link: 'Link', address: int | str, data: Body) -> None:
    pool.check_running('put')
    pool.member(address)
    terms = Terms(definitions(link.end.known), address, retries=pool._retries_at(address))
    await pool._accept((data, terms, size_of(data), None))


async def _find(pool: 'Pool[Any, Any]', _link: 'Link', name: int | str, _data: Body) -> None:
    if name not in pool.named:
        raise ValueError(f'pool {pool.name!r} has no worker with the name {name!r}: wait_for_worker waits for one')


async def _wait(pool: 'Pool[Any, Any]', _link: 'Link', name: str, _data: Body) -> None:
    while name not in pool.named:
        if pool.state not in ('starting', 'running'):
            raise pool._refusal()
        await pool._change()
