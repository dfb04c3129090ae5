'''Runs coroutines side by side on the loop, and spares those that never wait an asyncio task of their own.

1. One asyncio task takes the first step of one coroutine after another. A coroutine that ends in that step has cost
   no more than a call.
2. A coroutine that waits keeps the asyncio task in which it began, to its end and for itself alone, so
   ``current_task``, ``timeout`` and task groups mean what they always mean. Another one goes on with the rest.
3. Where the last one has waited, those that follow are expected to, and get their asyncio tasks at once: begun one by
   one, each would take a turn of the loop to itself.
4. Each coroutine runs in the context that it came with, all of its steps.
'''

import asyncio
import inspect
import time
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final, Generic, TypeVar

__all__ = ['STEPS', 'Runner', 'as_coroutine', 'caught']

SLICE: Final = 0.0005
'''For how long first steps may go on before the loop turns, in seconds.'''

TokenT = TypeVar('TokenT')
Steps = Coroutine[Any, Any, Any]


class Runner(Generic[TokenT]):
    '''Runs coroutines. All methods belong to the loop's thread.

    :param loop: the asyncio loop to run them on.
    :param ended: ``ended(token, error)`` is called when the coroutine that came with `token` has returned (None) or
        raised.
    '''

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[TokenT, BaseException | None], None]) -> None:
        self.ended = ended
        self.queue: deque[tuple[Steps, Context, TokenT]] = deque()
        self.waiting: dict[TokenT, asyncio.Task[None]] = {}
        '''The asyncio tasks of the coroutines that wait.'''
        self.cancelled: set[TokenT] = set()
        '''Those that were cancelled before their first step.'''
        self._loop = loop
        self.starter: asyncio.Task[None] | None = None
        '''The asyncio task that takes the first steps now.'''
        self.waits = False
        '''Whether the last one has waited.'''

    def run(self, coroutine: Steps, context: Context, token: TokenT) -> None:
        '''Run `coroutine` in `context`, from the loop's next turn on.'''
        self.queue.append((coroutine, context, token))
        if self.starter is None:
            self.start()

    def cancel(self, token: TokenT) -> None:
        '''Cancel the coroutine that came with `token`, as ``Task.cancel`` does.'''
        task = self.waiting.get(token)
        if task is not None:
            task.cancel()
        else:
            self.cancelled.add(token)

    def start(self) -> None:
        '''Have first steps taken, by other asyncio tasks than before.'''
        # Not by a task factory, which may run it at once.
        if self.waits:
            while self.queue:
                coroutine, context, token = self.queue.popleft()
                self.waiting[token] = asyncio.Task(_Strand(self, coroutine, context, token), loop=self._loop)
                if token in self.cancelled:
                    self.cancelled.discard(token)
                    self.waiting[token].cancel()
        self.starter = asyncio.Task(_Strand(self), loop=self._loop) if self.queue else None


class _Strand(Coroutine[Any, None, None], Generic[TokenT]):
    '''What the asyncio tasks of a runner run: first steps of many coroutines, then all steps of the one that waits.'''

    __slots__ = ('_context', '_coroutine', '_runner', '_token', '_waited')

    def __init__(
        self, runner: Runner[TokenT], coroutine: Steps | None = None, context: Any = None, token: Any = None
    ) -> None:
        self._runner = runner
        self._coroutine = coroutine
        self._context: Context = context
        self._token: TokenT = token
        self._waited = False

    def send(self, _value: None) -> Any:
        if self._coroutine is None:
            return self._first_steps()
        return self._step(self._coroutine.send, None)

    def throw(self, error: Any, *more: Any) -> Any:
        if self._coroutine is None:
            # Somebody cancels all asyncio tasks that there are; what is still to begin is none of them.
            return self._first_steps()
        try:
            return self._step(self._coroutine.throw, error)
        finally:
            # Its traceback leads here: what the coroutine had would live until somebody looks for circles.
            del error

    def close(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()

    def __await__(self) -> Any:
        raise TypeError('only asyncio runs it')

    def _first_steps(self) -> Any:
        runner, queue, clock = self._runner, self._runner.queue, time.monotonic
        deadline = clock() + SLICE
        try:
            while queue:
                wanted, context, token = queue.popleft()
                coroutine = wanted
                if runner.cancelled and token in runner.cancelled:
                    runner.cancelled.discard(token)
                    coroutine = _cancelled(wanted)
                error = None
                try:
                    awaited = context.run(coroutine.send, None)
                except StopIteration:
                    pass
                except BaseException as raised:
                    error = raised
                    _drop(wanted, coroutine)
                else:
                    self._coroutine, self._context, self._token = coroutine, context, token
                    self._waited = runner.waits = True
                    assert runner.starter is not None
                    runner.waiting[token] = runner.starter
                    runner.start()
                    return awaited
                runner.ended(token, error)
                if clock() > deadline:
                    return None  # The loop turns, and calls again.
        except BaseException:
            runner.start()
            raise
        runner.starter = None
        raise StopIteration

    def _step(self, step: Callable[[Any], Any], argument: Any) -> Any:
        try:
            awaited = self._context.run(step, argument)
        except StopIteration:
            self._end(None)
        except BaseException as error:
            assert self._coroutine is not None
            _drop(self._coroutine)
            self._end(error)
        else:
            self._waited = True
            return awaited
        finally:
            del argument
        raise StopIteration

    def _end(self, error: BaseException | None) -> None:
        self._runner.waits = self._waited
        del self._runner.waiting[self._token]
        self._runner.ended(self._token, error)

    # What asyncio and debuggers show of a task

    def __getattr__(self, name: str) -> Any:
        if name.startswith(('cr_', '__name__', '__qualname__')) and self._coroutine is not None:
            return getattr(self._coroutine, name)
        raise AttributeError(name)


STEPS: Final = (_Strand._first_steps.__code__, _Strand._step.__code__)
'''What of this module calls the code of coroutines.'''


_VALUES: Final = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict, set})
'''What is seen at once to be nothing to be awaited; to look closer takes as long as many a call.'''


def as_coroutine(outcome: Any) -> Steps | None:
    '''What is left to run of what a function returned; None if that is nothing to be awaited.'''
    if type(outcome) in _VALUES:
        return None
    if type(outcome) is types.CoroutineType:
        return outcome
    return _await(outcome) if inspect.isawaitable(outcome) else None


def _drop(*coroutines: Steps) -> None:
    '''Close those that have not begun, as an interrupt came first: nobody awaits them any more.'''
    for coroutine in coroutines:
        if type(coroutine) is types.CoroutineType and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()


async def _cancelled(coroutine: Steps) -> Any:
    coroutine.throw(asyncio.CancelledError())


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


async def caught(call: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    '''What it gives; or the SystemExit that it raises, as asyncio would let that out of a task, to the loop's end.'''
    try:
        return await call(*args, **kwargs)
    except SystemExit as error:
        return error
