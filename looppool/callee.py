'''The worker's side of calls: runs what was asked for, and answers once.

1. A plain function runs at once, on the loop; what it returns to be awaited, or to be iterated over, runs on.
2. A call ends once: with its value, or with the error that it raised. Then it has no items any more.
3. While a step of a call runs, the status page names the call: so the parent can tell which one blocks the loop, and
   interrupt exactly that one.
'''

import asyncio
import contextvars
import inspect
import signal
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Generator
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

from .child import INTERRUPT_SIGNAL
from .codec import check_encoded, pack_error
from .errors import TaskInterrupted
from .exchange import Exchange
from .kinds import RELAYED
from .packing import Packing, unpack_request
from .payload import Body
from .protocol import WorkerEnd
from .runner import STEPS, Runner, as_coroutine
from .status import INTERRUPT, STEPPING, Words

__all__ = ['ANY', 'BOTH', 'CALL', 'STREAM', 'Callee', 'calls_tasks', 'interruptible']

Function = TypeVar('Function', bound=Callable[..., Any])

CALL: Final = 0
STREAM: Final = 1
BOTH: Final = 2
'''What a call is for: its value, its items, or items both ways.'''
ANY: Final = 2**64 - 1
'''Interrupt whatever runs.'''


class Callee:
    '''Runs calls. All methods belong to the loop's thread.

    :param end: the worker's end of the link.
    :param words: of the status page.
    :param left: called when the code of a call was left, with what it raised; it ends a child that the code has forked.
    :param forget: called with the id of each call that has ended.
    :ivar packing: what is done with values and items.
    '''

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        end: WorkerEnd,
        words: Words,
        left: Callable[[BaseException | None], None],
        forget: Callable[[int], None],
    ) -> None:
        self.packing = Packing()
        self._loop = loop
        self._end = end
        self._words = words
        self._left = left
        self._forget = forget
        self._runner: Runner[int] = Runner(loop, self._ended)
        self._unbegun: dict[int, Coroutine[Any, Any, Any]] = {}
        '''What functions have returned and nobody has awaited yet, by the ids of their calls.'''
        self.where = ''
        '''Which worker this is, for the errors that other workers get.'''

    def take_up(self, ident: int, body: Body) -> None:
        '''Begin a call.'''
        context = _Watched(self._words, ident)
        try:
            if self.packing.variables:
                body = self.packing.set_values(context, body)
            mode, function, args, kwargs = unpack_request(body)
            coroutine = self._begin(ident, context, mode, function, args, kwargs)
        except BaseException as error:
            self._ended(ident, error)
            return
        if coroutine is None:
            self._ended(ident, None)
        else:
            self._runner.run(coroutine, context, ident)  # type: ignore[arg-type]

    def abort(self, ident: int) -> None:
        '''Cancel a call that was taken up and has not ended.'''
        self._runner.cancel(ident)

    def exchange(self, ident: int) -> Exchange:
        '''This side of the items of a call; some may come before the call is taken up.'''
        exchange = self._end.exchanges.get(ident)
        if not isinstance(exchange, Exchange):
            exchange = self._end.exchanges[ident] = Exchange(self._loop, self.packing)
            exchange.attach(self._end, ident)
        return exchange

    def _begin(
        self,
        ident: int,
        context: '_Watched',
        mode: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Coroutine[Any, Any, None] | None:
        if mode == CALL:
            outcome = context.run(function, *args, **kwargs)
            if self._is_to_be_awaited(ident, outcome):
                return self._answer_later(ident)
            self._answer(ident, outcome)
            return None
        exchange = self.exchange(ident)
        if mode == STREAM:
            outcome = context.run(function, *args, **kwargs)
            self._is_to_be_awaited(ident, outcome)
            return self._produce(ident, exchange, outcome)
        if not self._is_to_be_awaited(ident, context.run(function, exchange, *args, **kwargs)):
            raise TypeError(f'open_stream needs a coroutine function, which {function!r} is not')
        return self._answer_later(ident)

    def _is_to_be_awaited(self, ident: int, outcome: Any) -> bool:
        coroutine = as_coroutine(outcome)
        if coroutine is not None:
            self._unbegun[ident] = coroutine
        return coroutine is not None

    def _answer(self, ident: int, value: Any) -> None:
        self._left(None)
        try:
            body, needs, size = encoded = self.packing.pickle(value)
        except Exception as error:
            if isinstance(value, (Generator, AsyncGenerator)):
                error.add_note('the function is a generator: use stream(...) instead of call(...)')
            raise
        if needs or size > self._end.max_body:
            check_encoded(encoded, self._end.max_body)
        self._end.value(ident, body, needs)

    async def _answer_later(self, ident: int) -> None:
        self._answer(ident, await self._unbegun.pop(ident))

    async def _produce(self, ident: int, exchange: Exchange, outcome: Any) -> None:
        if ident in self._unbegun:
            outcome = await self._unbegun.pop(ident)
        try:
            if isinstance(outcome, AsyncIterable):
                async for item in outcome:
                    self._left(None)
                    await exchange.send(item)
            else:
                for item in outcome:
                    self._left(None)
                    await exchange.send(item)
        finally:
            # Left early: its ``finally`` runs now, not when somebody collects it.
            if isinstance(outcome, AsyncGenerator):
                await outcome.aclose()
            elif isinstance(outcome, Generator):
                outcome.close()
        self._answer(ident, None)

    def _ended(self, ident: int, error: BaseException | None) -> None:
        if error is not None:
            self._left(error)
        exchange = self._end.exchanges.pop(ident, None)
        if isinstance(exchange, Exchange):
            exchange.close()
        if ident in self._unbegun:
            # Cancelled before its first step: it does not expect to be awaited any more.
            self._unbegun.pop(ident).close()
        if error is not None:
            if ident & RELAYED:
                error.add_note(f'raised in {self.where}')
            self._end.failed(ident, *pack_error(error, self._end.max_own_body))
        self._forget(ident)


_calling: Final[contextvars.ContextVar[int]] = contextvars.ContextVar('looppool_call')
'''The id of the call that a piece of code belongs to. It is set where code of a call runs, and nowhere else.'''


class _Watched:
    '''A copy of the current context in which whatever runs is named in the status page.'''

    __slots__ = ('_context', '_ident', '_words')

    def __init__(self, words: Words, ident: int) -> None:
        self._words = words
        self._ident = ident
        self._context = contextvars.copy_context()
        self._context.run(_calling.set, ident)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._words[STEPPING] = self._ident
        try:
            return self._context.run(function, *args, **kwargs)
        finally:
            self._words[STEPPING] = 0
            # Among them may be an exception whose traceback leads here.
            del args


def calls_tasks(function: Function) -> Function:
    '''Mark the function of a call that calls the code of its user: what it does may be interrupted anywhere.'''
    _CALLS_TASKS.add(function.__code__)
    _HARMLESS.add(function.__code__)
    return function


def interruptible(words: Words, *calls_tasks: CodeType) -> None:
    '''Let the parent interrupt what runs here: for the main thread of a worker.

    :param calls_tasks: the code that calls the handler of messages, and what else calls the code of tasks.
    '''
    _CALLS_TASKS.update(calls_tasks)

    def interrupt(_signum: int, frame: FrameType | None) -> None:
        wanted = words[INTERRUPT]
        # An asyncio task that the call has begun does not run as a step of it, but in its context.
        if wanted and wanted in (ANY, words[STEPPING], _calling.get(0)) and _is_users(frame):
            words[INTERRUPT] = 0
            raise TaskInterrupted('it blocked the loop of its worker')

    signal.signal(INTERRUPT_SIGNAL, interrupt)


def _is_users(frame: FrameType | None) -> bool:
    '''Whether the code that runs is a task's, and may be interrupted where it is.

    looppool and the loop may not, nor what they call for themselves: their books must stay right. The parent tries
    again soon.
    '''
    if frame is None or _package(frame) in _OF_LOOPS:
        return False
    if _package(frame) == 'looppool':
        # Of a coroutine function, only the coroutine is made there, and would be lost.
        return frame.f_code in _HARMLESS and not inspect.iscoroutinefunction(frame.f_locals.get('function'))
    while frame is not None and _package(frame) != 'looppool':
        if frame.f_code is asyncio.Handle._run.__code__:
            # An asyncio task or a callback of the user's.
            return True
        frame = frame.f_back
    return frame is not None and frame.f_code in _CALLS_TASKS


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get('__name__', '')).partition('.')[0]


_OF_LOOPS: Final = ('asyncio', 'selectors', 'uvloop')
'''Where loops are at work. What of uvloop is written in C has no frames.'''
_CALLS_TASKS: Final = {_Watched.run.__code__, Callee._answer_later.__code__, Callee._produce.__code__, *STEPS}
'''What of looppool calls the code of tasks.'''
_HARMLESS: Final = {_Watched.run.__code__}
'''Where an interrupt does no harm. A function that is written in C runs in the frame of whoever calls it.'''
