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
    assert 'rounds 4' in output and 'descriptors: ' in output and 'memory of the parent: ' in output


def test_memory_that_grows_is_told() -> None:
    beginning, level = [1 << 20] * 10, [100 << 20] * 90

    assert soak.check_memory([*beginning, *level]) == (100 << 20, 100 << 20)
    with pytest.raises(AssertionError, match='memory grew'):
        soak.check_memory([*beginning, *[size + 400_000 * number for number, size in enumerate(level)]])


def test_what_is_not_given_back_is_told() -> None:
    samples = [soak.Sample(1, 1, {'descriptors': count}) for count in (5, 6, 7, 7)]

    soak.check_counts(samples)
    with pytest.raises(AssertionError):
        soak.check_counts([*samples, soak.Sample(1, 1, {'descriptors': 8})])
