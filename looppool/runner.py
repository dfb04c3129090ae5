'''Runs coroutines side by side on the loop, and spares those that never wait an asyncio task of their own.

1. One asyncio task takes the first step of one coroutine after another. A coroutine that ends in that step has cost
   no more than a call.
2. A coroutine that waits keeps the asyncio task in which it began, to its end and for itself alone, so
   ``current_task``, ``timeout`` and task groups mean what they always mean. Another one goes on with the rest.
3. Each coroutine runs in the context that it came with, all of its steps.
'''

import asyncio
import inspect
import time
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Final, Generic, TypeVar

__all__ = ['Runner', 'as_coroutine']

SLICE: Final = 0.0005
'''For how long first steps may go on before the loop turns, in seconds.'''

TokenT = TypeVar('TokenT')


class Runner(Generic[TokenT]):
    '''Runs coroutines. All methods belong to the loop's thread.

    :param loop: the asyncio loop to run them on.
    :param ended: ``ended(token, error)`` is called when the coroutine that came with `token` has returned (None) or
        raised.
    '''

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[TokenT, BaseException | None], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._queue: deque[tuple[Coroutine[Any, Any, Any], Context, TokenT]] = deque()
        self._waiting: dict[TokenT, asyncio.Task[None]] = {}
        '''The asyncio tasks of the coroutines that wait.'''
        self._cancelled: set[TokenT] = set()
        '''Those that were cancelled before their first step.'''
        self._starter: asyncio.Task[None] | None = None
        '''The asyncio task that takes the first steps now.'''

    def run(self, coroutine: Coroutine[Any, Any, Any], context: Context, token: TokenT) -> None:
        '''Run `coroutine` in `context`, from the loop's next turn on.'''
        self._queue.append((coroutine, context, token))
        if self._starter is None:
            self._start()

    def cancel(self, token: TokenT) -> None:
        '''Cancel the coroutine that came with `token`, as ``Task.cancel`` does.'''
        task = self._waiting.get(token)
        if task is not None:
            task.cancel()
        else:
            self._cancelled.add(token)

    def _start(self) -> None:
        # Not by a task factory, which may run it at once.
        self._starter = asyncio.Task(self._run(), loop=self._loop)
        self._starter.add_done_callback(self._starter_ended)

    def _starter_ended(self, task: asyncio.Task[None]) -> None:
        '''Go on with the rest, if somebody has cancelled the asyncio task or an interrupt has flown through it.'''
        if self._starter is task:
            self._starter = None
            if self._queue:
                self._start()

    async def _run(self) -> None:
        queue, clock = self._queue, time.monotonic
        deadline = clock() + SLICE
        while queue:
            coroutine, context, token = queue.popleft()
            if self._cancelled and token in self._cancelled:
                self._cancelled.discard(token)
                coroutine = _cancelled(coroutine)
            error = None
            try:
                awaited = context.run(coroutine.send, None)
            except StopIteration:
                pass
            except BaseException as raised:
                error = raised
            else:
                self._starter = None
                if queue:
                    self._start()
                await self._follow(coroutine, context, token, awaited)
                return
            self._ended(token, error)
            if clock() > deadline:
                await asyncio.sleep(0)
                deadline = clock() + SLICE
        self._starter = None

    @types.coroutine
    def _follow(
        self, coroutine: Coroutine[Any, Any, Any], context: Context, token: TokenT, awaited: Any
    ) -> Generator[Any, Any, None]:
        '''Take the further steps of a coroutine that waits.'''
        task = asyncio.current_task()
        assert task is not None
        self._waiting[token] = task
        error = None
        try:
            while True:
                try:
                    yield awaited
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as raised:
                    awaited = context.run(coroutine.throw, raised)
                else:
                    awaited = context.run(coroutine.send, None)
        except StopIteration:
            pass
        except GeneratorExit:
            raise
        except BaseException as raised:
            error = raised
        del self._waiting[token]
        self._ended(token, error)


def as_coroutine(outcome: Any) -> Coroutine[Any, Any, Any] | None:
    '''What is left to run of what a function returned; None if that is nothing to be awaited.'''
    if type(outcome) is types.CoroutineType:
        return outcome
    return _await(outcome) if inspect.isawaitable(outcome) else None


async def _cancelled(coroutine: Coroutine[Any, Any, Any]) -> Any:
    coroutine.throw(asyncio.CancelledError())


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
