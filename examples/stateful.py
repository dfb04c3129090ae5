'''Workers that hold state: a lookup table that every worker has, also one that starts later.

A broadcast with `retain` is kept by the pool and sent first to every worker that replaces another. Here a worker is
killed, and its replacement answers from the same table.
'''

import asyncio
import os
import signal

import looppool

POPULATION = {'Bern': 134_000, 'Graz': 292_000, 'Turin': 841_000}


class LookupWorker(looppool.Worker[tuple[str, object], str]):
    def _initialise(self) -> None:
        self._table: dict[str, int] = {}

    @looppool.task_done
    def _process_message(self, message: tuple[str, object]) -> None:
        match message:
            case 'table', dict(table):
                self._table = table
            case 'look up', str(city):
                self._put_nowait(f'{city} has {self._table[city]:,} people, says process {os.getpid()}')


async def main() -> None:
    async with looppool.Pool(pool_size=2, worker_class=LookupWorker) as pool:
        answers = pool.results()
        await pool.broadcast(('table', POPULATION), retain='table')

        await pool.put(('look up', 'Turin'), worker_num=0)
        print(await anext(answers))

        pid = pool.members[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        print(f'process {pid} was killed')

        await pool.put(('look up', 'Turin'), worker_num=0)  # waits for the replacement if it must
        print(await anext(answers))

        await pool.broadcast(('table', POPULATION | {'Turin': 0}), retain='table')  # replaces the one kept
        await pool.put(('look up', 'Turin'), worker_num=1)
        print(await anext(answers))


asyncio.run(main())
