"""The process of one contender in one round: ``python -m benchmarks.child MODULE JOB LOAD``.

Its last line on stdout is JSON: ``{"values": {...}}`` or ``{"missing": "name of a module"}``. Anything else that ends
it is told by its exit code and stderr. It imports nothing that a contender doesn't need: start methods that import the
main module again in each worker would make that contender pay for it.
"""

import json
import sys
from importlib import import_module

from benchmarks.load import Load

__all__ = ['main']


def main(module: str, job: str, load: str) -> None:
    """Run one job and print what it measured.

    Args:
        module: name of the contender's module.
        job: name of a function in it.
        load: a `Load` as JSON.
    """
    answer: dict[str, object]
    try:
        # A job may import what other jobs of its module don't need.
        answer = {'values': getattr(import_module(module), job)(Load(**json.loads(load)))}
    except ModuleNotFoundError as error:
        answer = {'missing': error.name}
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
