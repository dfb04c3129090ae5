'''The soak, for a moment: it runs, and what it judges by can fail.'''

import sys
from pathlib import Path

import command
import pytest
import soak

HERE = Path(__file__).parent


async def test_it_runs_and_tells() -> None:
    code, output, errors = await command.run(
        sys.executable, '-W', 'error', HERE / 'soak.py', '--minutes', '0', '--asked', '40', LOOPPOOL_SEED='7'
    )

    assert code == 0, errors
    assert output.startswith('LOOPPOOL_SEED=7, Python 3')
    assert all(text in output for text in ('rounds 4', 'descriptors: ', 'segments: ', 'memory of the parent: '))


def test_memory_that_grows_is_told() -> None:
    beginning, level = [1 << 20] * 10, [100 << 20] * 90

    assert soak.check_flat('memory', [*beginning, *level], soak.SLACK) == (100 << 20, 100 << 20)
    growing = [size + 400_000 * number for number, size in enumerate(level)]
    with pytest.raises(AssertionError, match='memory grew'):
        soak.check_flat('memory', [*beginning, *growing], soak.SLACK)


def test_what_is_not_given_back_is_told() -> None:
    samples = [soak.Sample(1, 1, 0, {'descriptors': count}) for count in (5, 6, 7, 7)]

    soak.check_counts(samples)
    with pytest.raises(AssertionError):
        soak.check_counts([*samples, soak.Sample(1, 1, 0, {'descriptors': 8})])
