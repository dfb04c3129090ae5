'''The tasks that every peer runs: answer at once, or after a short sleep, or look at an array.'''

import asyncio
from typing import Any

__all__ = ['NAP', 'echo', 'echo_async', 'first_element', 'nap']

NAP = 0.05
'''Seconds that one sleeping task sleeps.'''


def echo(message: int) -> int:
    '''Return the *message*.'''
    return message


async def echo_async(message: int) -> int:
    '''Return the *message* from a coroutine.'''
    return message


def first_element(array: Any) -> int:
    '''Return the first number of the *array*.'''
    return int(array[0])


async def nap(message: int) -> int:
    '''Return the *message* after `NAP` seconds.'''
    await asyncio.sleep(NAP)
    return message
