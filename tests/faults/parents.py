'''Runs `parent.py`.'''

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from command import Command, started

from .observed import Watch

__all__ = ['PARENT', 'TESTS', 'parent']

PARENT = Path(__file__).with_name('parent.py')
TESTS = PARENT.parent.parent


@contextlib.asynccontextmanager
async def parent(*arguments: str) -> AsyncIterator[tuple[Command, Watch]]:
    '''Run the parent; gives it and the watch on its workers and fork servers.'''
    async with started(sys.executable, PARENT, *arguments) as command:
        pids = json.loads(await command.line())
        assert len(pids['workers']) == 2
        assert len(pids['servers']) == (arguments[0] == 'forkserver')
        with Watch([*pids['workers'], *pids['servers']]) as watch:
            assert watch.alive() == {*pids['workers'], *pids['servers']}
            yield command, watch
