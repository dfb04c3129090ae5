'''Coroutines side by side: what they see of asyncio, how they end, and that nothing stops the others.'''

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from looppool.errors import TaskInterrupted
from looppool.runner import Runner, as_coroutine

NAME: contextvars.ContextVar[str] = contextvars.ContextVar('name', default='')


class Ends:
    '''A runner and what has ended on it: None or the error, by token.'''

    def __init__(self) -> None:
        self.errors: dict[object, BaseException | None] = {}
        self._changed = asyncio.Event()
        self.runner: Runner[object] = Runner(asyncio.get_running_loop(), self._ended)

    def _ended(self, token: object, error: BaseException | None) -> None:
        assert token not in self.errors
        self.errors[token] = error
        self._changed.set()

    def run(self, *functions: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        for token, function in enumerate(functions, len(self.errors)):
            self.runner.run(function(), contextvars.copy_context(), token)

    async def count(self, count: int) -> dict[object, BaseException | None]:
        while len(self.errors) < count:
            self._changed.clear()
            await self._changed.wait()
        return self.errors


async def at_once() -> None:
    pass


async def later() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)


async def test_all_end_whether_they_wait_or_not() -> None:
    ends = Ends()
    ends.run(*[at_once, later] * 50)

    assert set((await ends.count(100)).values()) == {None}


class Interrupting:
    '''A context that lets nothing run: an interrupt comes first.'''

    def run(self, *_: Any) -> Any:
        raise TaskInterrupted('early')


@pytest.mark.parametrize('waits', [False, True])
@pytest.mark.parametrize('cancelled', [False, True])
async def test_what_is_interrupted_before_its_first_step_is_closed(waits: bool, cancelled: bool) -> None:
    ends = Ends()
    ends.runner.waits = waits

    ends.runner.run(at_once(), Interrupting(), 'token')  # type: ignore[arg-type]
    if cancelled:
        ends.runner.cancel('token')

    assert isinstance((await ends.count(1))['token'], TaskInterrupted)
    gc.collect()  # What was never awaited would say so now, and a warning is an error.


async def test_those_that_never_wait_share_an_asyncio_task_and_others_have_their_own() -> None:
    ends = Ends()
    seen: list[tuple[str, object]] = []

    async def never_waits() -> None:
        seen.append(('never', asyncio.current_task()))

    async def waits() -> None:
        begun = asyncio.current_task()
        await asyncio.sleep(0.001)
        assert asyncio.current_task() is begun
        seen.append(('waits', begun))

    ends.run(never_waits, never_waits, waits, waits, never_waits)
    await ends.count(5)

    assert len({task for kind, task in seen if kind == 'waits'}) == 2
    assert len({task for kind, task in seen if kind == 'never'}) == 2


async def test_all_steps_of_each_run_in_its_own_context() -> None:
    ends = Ends()
    async def names(name: str) -> None:
        assert NAME.get() == ''
        NAME.set(name)
        await asyncio.sleep(0)
        assert NAME.get() == name
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.create_task(in_a_task(name))
        assert NAME.get() == name

    async def in_a_task(name: str) -> None:
        assert NAME.get() == name
        raise asyncio.CancelledError

    ends.run(lambda: names('a'), lambda: names('b'))

    assert (await ends.count(2)) == {0: None, 1: None}
    assert NAME.get() == ''


async def test_errors_are_told_and_hurt_nobody_else() -> None:
    ends = Ends()
    error, late = ValueError('at once'), ValueError('late')

    async def fails() -> None:
        raise error

    async def fails_late() -> None:
        await later()
        raise late

    async def exits() -> None:
        raise SystemExit(3)

    ends.run(fails, later, fails_late, exits, at_once)
    errors = await ends.count(5)

    assert (errors[0], errors[1], errors[2], errors[4]) == (error, None, late, None)
    assert isinstance(errors[3], SystemExit)


async def test_timeouts_and_task_groups_work() -> None:
    ends = Ends()
    async def times_out() -> None:
        async with asyncio.timeout(0.001):
            await asyncio.sleep(100)

    async def groups() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(later())
            group.create_task(later())

    async def gathers() -> None:
        await asyncio.gather(later(), later())

    ends.run(times_out, groups, gathers)
    errors = await ends.count(3)

    assert isinstance(errors[0], TimeoutError)
    assert (errors[1], errors[2]) == (None, None)


async def test_a_cancel_meets_the_one_it_is_for_before_and_after_its_first_step() -> None:
    ends = Ends()
    steps: list[str] = []

    async def forever() -> None:
        steps.append('begun')
        await asyncio.sleep(100)

    async def survives() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(100)

    ends.run(later, forever, survives)
    await asyncio.sleep(0.0001)
    ends.runner.cancel(1)
    ends.runner.cancel(2)
    await ends.count(3)
    ends.run(forever, at_once)
    ends.runner.cancel(3)
    errors = await ends.count(5)

    assert [type(errors[token]) for token in range(5)] == [
        type(None), asyncio.CancelledError, type(None), asyncio.CancelledError, type(None)
    ]  # fmt: skip
    assert steps == ['begun']


async def test_those_that_wait_begin_together_and_one_that_does_not_ends_that() -> None:
    ends = Ends()
    loop_turns = 0
    begun: list[int] = []

    def turn() -> None:
        nonlocal loop_turns
        loop_turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async def waits() -> None:
        begun.append(loop_turns)
        await asyncio.sleep(0.01)

    turn()
    ends.run(*[waits] * 100)
    await ends.count(100)
    assert len(set(begun)) <= 2

    seen: set[object] = set()

    async def never_waits() -> None:
        seen.add(asyncio.current_task())

    ends.run(never_waits)
    await ends.count(101)
    ends.run(*[never_waits] * 10)
    await ends.count(111)
    assert len(seen) == 2


async def test_who_is_cancelled_in_line_ends_so_when_the_line_begins_together() -> None:
    ends = Ends()
    steps: list[str] = []

    async def forever() -> None:
        steps.append('begun')
        await asyncio.sleep(100)

    ends.run(later, forever, later)
    ends.runner.cancel(1)
    errors = await ends.count(3)

    assert [type(errors[token]) for token in range(3)] == [type(None), asyncio.CancelledError, type(None)]
    assert not steps


async def test_who_cancels_every_task_of_the_loop_leaves_none_without_an_end() -> None:
    ends = Ends()
    ends.run(later, at_once, later)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await ends.count(3)
    ends.run(later, later)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    errors = await ends.count(5)

    assert [errors[token] for token in range(3)] == [None] * 3
    assert [type(errors[token]) for token in (3, 4)] == [asyncio.CancelledError] * 2


async def test_a_long_row_of_first_steps_lets_the_loop_turn() -> None:
    ends = Ends()
    turns = 0

    async def slow() -> None:
        deadline = asyncio.get_running_loop().time() + 0.0006
        while asyncio.get_running_loop().time() < deadline:
            pass

    def turn() -> None:
        nonlocal turns
        turns += 1
        if len(ends.errors) < 20:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    ends.run(*[slow] * 20)
    await ends.count(20)

    assert turns >= 20


async def test_what_can_be_awaited_becomes_a_coroutine() -> None:
    future = asyncio.get_running_loop().create_future()
    future.set_result(5)
    coroutine = at_once()

    assert as_coroutine(coroutine) is coroutine
    await coroutine
    waiting = as_coroutine(future)
    assert waiting is not None and await waiting == 5
    assert as_coroutine('nothing') is None
