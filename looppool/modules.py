'''The modules that this process has loaded from given files and folders.

Only modules of Python source count, and never looppool itself or the main script. What lies in a hidden folder, or
among installed packages, inside a given folder is not the application's own, and so is left alone.
'''

import importlib
import os
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Final

__all__ = ['forget_modules', 'is_under', 'modules_from']

_FOREIGN: Final = {'__pycache__', 'dist-packages', 'node_modules', 'site-packages'}


def is_under(file: str, paths: Collection[str]) -> bool:
    '''Whether a file is one of `paths`, or the application's own in a folder that is.

    :param file: a path; it need not exist.
    :param paths: as `os.path.realpath` gives them.
    '''
    real = os.path.realpath(file)
    return any(real == path or _is_inside(real, os.path.join(path, '')) for path in paths)


def _is_inside(file: str, folder: str) -> bool:
    parts = file.removeprefix(folder).split(os.sep)
    return file.startswith(folder) and not any(part.startswith('.') or part in _FOREIGN for part in parts)


def modules_from(paths: Collection[str]) -> dict[str, ModuleType]:
    '''The loaded modules whose source is under `paths`, by name, in the order in which their imports ended.'''
    # A copy, as another thread may import.
    loaded = list(sys.modules.items()) if paths else []
    return {name: module for name, module in loaded if _is_ours(name) and _is_from(module, paths)}


def _is_ours(name: str) -> bool:
    return name.partition('.')[0] not in ('looppool', '__main__')


def _is_from(module: ModuleType, paths: Collection[str]) -> bool:
    file = getattr(module, '__file__', None)
    return isinstance(file, str) and file.endswith('.py') and is_under(file, paths)


def forget_modules(paths: Collection[str]) -> None:
    '''Have the modules from `paths` imported anew, by whoever imports them next.'''
    for name, module in modules_from(paths).items():
        del sys.modules[name]
        package, _, attribute = name.rpartition('.')
        # `from package import module` would find it there.
        if getattr(sys.modules.get(package), attribute, None) is module:
            delattr(sys.modules[package], attribute)
    if paths:
        # What a forked process knows of the folders may be older than the files in there.
        importlib.invalidate_caches()
