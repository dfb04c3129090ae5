'''A web application whose handlers leave the hard work to a pool: python web_app.py [PORT]

`GET /factors/NUMBER` answers with the prime factors of a number. When the pool has as many tasks as it may have, the
answer is 503 at once, instead of a queue that grows. SIGTERM and Ctrl-C drain: what was accepted is answered first.
'''

import asyncio
import itertools
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

import looppool


class Question(NamedTuple):
    ticket: int
    number: int


class Answer(NamedTuple):
    ticket: int
    factors: list[int]


class FactorWorker(looppool.Worker[Question, Answer]):
    @looppool.task_done
    def _process_message(self, question: Question) -> None:
        factors, rest, divisor = [], question.number, 2
        while divisor * divisor <= rest:
            while rest % divisor == 0:
                factors.append(divisor)
                rest //= divisor
            divisor += 1
        self._put_nowait(Answer(question.ticket, [*factors, rest] if rest > 1 else factors))


class Factoriser:
    '''Joins questions and answers, which come back in any order: each carries a ticket.'''

    def __init__(self, pool: looppool.Pool[Question, Answer]) -> None:
        self._pool = pool
        self._tickets = itertools.count()
        self._waiting: dict[int, asyncio.Future[list[int]]] = {}
        pool.process_message = self._answered
        pool.process_failure = self._failed

    async def factors(self, number: int) -> list[int]:
        '''Raises `looppool.Full` and `looppool.PoolClosed` when the pool can't take the question.'''
        ticket = next(self._tickets)
        self._pool.put_nowait(Question(ticket, number))
        self._waiting[ticket] = future = asyncio.Future[list[int]]()
        return await future

    @looppool.task_done
    def _answered(self, answer: Answer, result_done: Callable[[], None]) -> None:
        self._waiting.pop(answer.ticket).set_result(answer.factors)

    def _failed(self, question: Question, error: BaseException) -> None:
        self._waiting.pop(question.ticket).set_exception(error)


class FactorsHandler(RequestHandler):
    def initialize(self, factoriser: Factoriser) -> None:
        self._factoriser = factoriser

    async def get(self, number: str) -> None:
        try:
            factors = await self._factoriser.factors(int(number))
        except (looppool.Full, looppool.PoolClosed) as error:
            self.set_status(503)
            self.set_header('Retry-After', '1')
            self.write({'error': type(error).__name__})
        else:
            self.write({'number': int(number), 'factors': factors})


async def main(port: int) -> None:
    pool = looppool.Pool(worker_class=FactorWorker, max_tasks=16, distribution='least_loaded', stop_timeout=30.0)
    handlers = [(r'/factors/([1-9]\d{0,14})', FactorsHandler, {'factoriser': Factoriser(pool)})]
    async with pool:
        sockets = bind_sockets(port, '127.0.0.1')
        server = HTTPServer(Application(handlers))
        server.add_sockets(sockets)
        pool.stop_on_signals(signal.SIGTERM, signal.SIGINT)
        print(f'listening on http://127.0.0.1:{sockets[0].getsockname()[1]}/', flush=True)
        await pool.join()
    server.stop()
    await server.close_all_connections()


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8888))
