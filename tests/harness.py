'''What the contract tests share: a run of one worker from start to end, and workers that several of them use.'''

from collections.abc import Callable
from typing import Any

from looppool import Pool, Worker, task_done

Failures = list[tuple[Any, BaseException]]
ResultDone = Callable[[], None]


async def run(worker_class: type[Worker[Any, Any]], *messages: Any, **settings: Any) -> tuple[list[Any], Failures]:
    '''Put the messages to a pool of one worker and stop it; returns the results and the failures.'''
    pool: Pool[Any, Any] = Pool(pool_size=1, worker_class=worker_class, **settings)
    failures = failures_of(pool)
    async with pool:
        for message in messages:
            await pool.put(message)
    statistics = pool.statistics()
    assert (statistics.done, statistics.failed) == (len(messages) - len(failures), len(failures))
    return await rest_of(pool), failures


def failures_of(pool: Pool[Any, Any]) -> Failures:
    '''Have the failures of a pool collected in the list that is returned.'''
    failures: Failures = []
    pool.process_failure = lambda task, error: failures.append((task, error))
    return failures


async def rest_of(pool: Pool[Any, Any]) -> list[Any]:
    '''All results of a pool that has stopped or is about to.'''
    return [result async for result in pool.results()]


class Echo(Worker[Any, Any]):
    '''Gives each message back.'''

    @task_done
    def _process_message(self, message: Any) -> None:
        self._put_nowait(message)


class Number(Worker[Any, int]):
    '''Answers each message with its own number.'''

    @task_done
    def _process_message(self, _message: Any) -> None:
        self._put_nowait(self._number)
