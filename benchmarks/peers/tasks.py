'''The tasks that every peer runs: answer at once, or after a short sleep.'''

import asyncio

__all__ = ['NAP', 'echo', 'echo_async', 'nap']

NAP = 0.05
'''Seconds that one sleeping task sleeps.'''


def echo(message: int) -> int:
    '''Return the *message*.'''
    return message


async def echo_async(message: int) -> int:
    '''Return the *message* from a coroutine.'''
    return message


async def nap(message: int) -> int:
    '''Return the *message* after `NAP` seconds.'''
    await asyncio.sleep(NAP)
    return message
