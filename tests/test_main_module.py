'''Workers and messages that are defined where no import can reach them: in a script, a REPL, a function.

The scripts need no ``__main__`` guard and run once: a worker never runs them again. Each gets the start method as its
first argument.
'''

import asyncio
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from command import LIMIT, ROOT, run
from harness import rest_of

import looppool
from looppool import Pool, Worker, task_done

SCRIPT = '''
import asyncio, dataclasses, enum, os, sys
import looppool

print('the script runs')

FACTOR = 10
calls = 0

class Shape(enum.Enum):
    ROUND = 'round'
    SQUARE = 'square'

@dataclasses.dataclass(frozen=True)
class Question:
    number: int
    shape: Shape = Shape.ROUND

@dataclasses.dataclass
class Answer:
    question: Question
    value: int
    calls: int

class OutOfRange(ValueError):
    def __init__(self, number, limit):
        super().__init__(f'{number} is over {limit}')
        self.number, self.limit = number, limit

def check(number):
    global calls
    calls += 1
    if number > 100:
        raise OutOfRange(number, limit=100)
    return number

class Base(looppool.Worker[Question, Answer]):
    async def _initialise(self, factor):
        self._factor = factor

class Multiplier(Base):
    @looppool.task_done
    async def _process_message(self, question):
        assert type(question) is Question and question.shape is Shape.ROUND
        value = check(question.number) * FACTOR * self._factor
        await asyncio.sleep(0)
        self._put_nowait(Answer(question, value, calls))
'''

USE_OF_CLASSES = '''
def on_failure(task, error):
    assert type(task) is Question and type(error) is OutOfRange, (task, error)
    print(f'{task.number}: {error} ({error.limit})')

async def main():
    options = {'factor': 2}
    pool = looppool.Pool(
        pool_size=1, worker_class=Multiplier, context=sys.argv[1], options=options, concurrency=1
    )
    pool.process_failure = on_failure
    async with pool:
        for number in (1, 2, 101, 3):
            await pool.put(Question(number))
    async for answer in pool.results():
        assert type(answer) is Answer and type(answer.question) is Question, type(answer)
        assert answer.question == Question(answer.question.number) and answer.question.shape is Shape.ROUND
        print(answer.value, answer.calls)

asyncio.run(main())
print('calls here:', calls)
'''

OUTPUT = 'the script runs\n101: 101 is over 100 (100)\n20 1\n40 2\n60 4\ncalls here: 0\n'


async def test_a_script_with_its_own_classes(context: str, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT + USE_OF_CLASSES)
    assert await run(sys.executable, script, context) == (0, OUTPUT, '')


SIZES = '''
from looppool.codec import encode

class Sizes(Multiplier):
    @looppool.task_done
    def _process_message(self, question):
        self._put_nowait(Answer(question, 1, 1))
        self._put_nowait([len(encode(thing)[0]) for thing in (question, Answer(question, 2, 2))])

async def main():
    options = {'factor': 2}
    async with looppool.Pool(pool_size=1, worker_class=Sizes, context=sys.argv[1], options=options) as pool:
        pool.put_nowait(Question(1))
    print([result async for result in pool.results()][-1])

asyncio.run(main())
'''


async def test_a_definition_travels_once_and_messages_refer_to_it(context: str, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT + SIZES)
    code, output, errors = await run(sys.executable, script, context)
    assert (code, errors) == (0, '')
    message, result = json.loads(output.splitlines()[-1])
    # By value, each of these classes takes more than a thousand bytes.
    assert message < 300 and result < 400


USE_OF_SHARED_MEMORY = '''
import asyncio, sys
import looppool
from looppool import shared

table = shared.empty(6)

def fill(index):
    table[index] = index + 1
    return table[:2]

def seen():
    return table.tolist()

class Filler(looppool.Worker):
    rows = shared.empty(6)

    def _initialise(self, given):
        self.given = given

    @looppool.task_done
    def _process_message(self, index):
        self.given[index] = self.rows[index] = table[index] = 9

async def main():
    given = shared.empty(6)
    pool = looppool.Pool(pool_size=2, worker_class=Filler, context=sys.argv[1], options={'given': given})
    async with pool:
        returned = [await pool.members[index % 2].call(fill, index) for index in range(4)]
        await pool.members[0].kill()
        returned.append(await pool.members[0].call(fill, 4))
        table[5] = 66
        print([await member.call(seen) for member in pool.members])
        table[:2] = 77
        print([part.tolist() for part in returned])
        for index in range(6):
            await pool.put(index)
    print(table.tolist(), given.tolist(), Filler.rows.tolist())

asyncio.run(main())
'''


async def test_shared_memory_of_a_script_is_one_for_all(context: str, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(USE_OF_SHARED_MEMORY)
    code, output, errors = await run(sys.executable, script, context)
    assert (code, errors) == (0, '')
    row = [1.0, 2.0, 3.0, 4.0, 5.0, 66.0]
    assert output.splitlines() == [f'{[row] * 2}', f'{[[77.0] * 2] * 5}', f'{[9.0] * 6} {[9.0] * 6} {[9.0] * 6}']


async def test_a_module_run_with_m(context: str, tmp_path: Path) -> None:
    package = tmp_path / 'my_package'
    package.mkdir()
    (package / '__init__.py').write_text("print('the package is imported')\n")
    (package / 'tool.py').write_text(SCRIPT + USE_OF_CLASSES)
    code, output, errors = await run(sys.executable, '-m', 'my_package.tool', context, PYTHONPATH=str(tmp_path))
    assert (code, output, errors) == (0, 'the package is imported\n' + OUTPUT, '')


async def test_a_command_given_with_c(context: str) -> None:
    assert await run(sys.executable, '-c', SCRIPT + USE_OF_CLASSES, context) == (0, OUTPUT, '')


async def test_a_script_from_stdin(context: str) -> None:
    assert await feed(SCRIPT + USE_OF_CLASSES, '-', context) == (0, OUTPUT, '')


async def feed(source: str, *args: str) -> tuple[int | None, str, str]:
    '''Run Python with `source` as its stdin.'''
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *args,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(source.encode()), LIMIT)
    except TimeoutError:
        process.kill()
        raise
    return process.returncode, output.decode(), errors.decode()


REPL = '''
import asyncio, sys, looppool
class Greeter(looppool.Worker):
    @looppool.task_done
    def _process_message(self, name):
        self._put_nowait(Greeting('hello ' + name))

class Greeting(str):
    pass

async def main():
    async with looppool.Pool(pool_size=2, worker_class=Greeter, context=sys.argv[1]) as pool:
        await pool.put('world')
    async for result in pool.results():
        print('got', result, type(result) is Greeting)

asyncio.run(main())
class Greeter(Greeter):
    @looppool.task_done
    def _process_message(self, name):
        self._put_nowait(Greeting('bye ' + name))

class Greeting(str):
    second = True

asyncio.run(main())
'''


async def test_a_repl_in_which_classes_are_defined_again(context: str) -> None:
    code, output, errors = await feed(REPL, '-i', '-', context)
    assert code == 0 and 'Error' not in errors and 'Traceback' not in errors
    lines = [line for line in output.splitlines() if 'got' in line]
    assert lines == ['got hello world True', 'got bye world True']


FUNCTIONS = '''
import asyncio, functools, sys
import looppool

print('the script runs')

def double(number):
    return 2 * number

class Doer(looppool.Worker):
    @looppool.task_done
    def _process_message(self, function):
        self._put_nowait((function(), function))

async def main():
    captured = ['captured']
    async with looppool.Pool(pool_size=1, worker_class=Doer, context=sys.argv[1]) as pool:
        for function in (functools.partial(double, 3), lambda: captured[0], lambda: double(4), dict, list):
            pool.put_nowait(function)
    results = [result async for result in pool.results()]
    print([value for value, _ in results if not callable(value)][:3])
    # A function of the script comes home as itself, and those without a name as working copies.
    print(results[0][1].func is double, results[1][1](), results[2][1](), results[4][1] is list)

asyncio.run(main())
'''


async def test_functions_and_lambdas_as_messages_and_results(context: str, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(FUNCTIONS)
    code, output, errors = await run(sys.executable, script, context)
    assert (code, errors) == (0, '')
    assert output == "the script runs\n[6, 'captured', 8]\nTrue captured 8 True\n"


NOT_AGAIN = '''
import asyncio, os, sys
import looppool
print('the script runs in', os.getpid())
open(sys.argv[2], 'a').write('once ')

class Echo(looppool.Worker):
    @looppool.task_done
    def _process_message(self, message):
        self._put_nowait((os.getpid(), message))

async def main():
    async with looppool.Pool(pool_size=2, worker_class=Echo, context=sys.argv[1]) as pool:
        for number in range(4):
            pool.put_nowait(number)
    pids = {pid async for pid, _ in pool.results()}
    print(len(pids), os.getpid() in pids)

asyncio.run(main())
print('the end')
'''


async def test_the_side_effects_of_a_script_happen_once(context: str, tmp_path: Path) -> None:
    script, record = tmp_path / 'script.py', tmp_path / 'record'
    script.write_text(NOT_AGAIN)
    code, output, errors = await run(sys.executable, script, context, record)
    assert (code, errors) == (0, '')
    first, *rest = output.splitlines()
    assert first.startswith('the script runs in ') and rest == ['2 False', 'the end']
    assert record.read_text() == 'once '


async def test_classes_and_messages_that_are_local_to_a_function(context: str) -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    class Mover(Worker[Point, Point]):
        @task_done
        def _process_message(self, point: Point) -> None:
            assert type(point) is Point
            self._put_nowait(Point(point.x + step))

    step = 5
    async with Pool(pool_size=1, worker_class=Mover, context=context) as pool:
        pool.put_nowait(Point(1))
        await pool.broadcast(Point(2))
    results: list[Any] = await rest_of(pool)
    assert results == [Point(6), Point(7)]
    assert all(type(result) is Point for result in results)


async def test_a_local_class_that_fails_to_initialise_says_so(context: str) -> None:
    class Broken(Worker[Any, Any]):
        def _initialise(self) -> None:
            raise LookupError('local trouble')

    try:
        async with Pool(pool_size=1, worker_class=Broken, context=context):
            raise AssertionError('it started')
    except looppool.WorkerStartError as error:
        assert 'local trouble' in str(error) and isinstance(error.__cause__, LookupError)
