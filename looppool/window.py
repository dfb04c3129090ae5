'''The bounded semaphore that counts messages and bytes.'''

__all__ = ['Window']


class Window:
    '''A bounded semaphore that counts messages and bytes. One message larger than the window passes alone.'''

    __slots__ = ('bytes', 'limit', 'max_bytes', 'used')

    def __init__(self, limit: int, max_bytes: int) -> None:
        self.limit = limit
        self.max_bytes = max_bytes
        self.used = 0
        self.bytes = 0

    def admits(self, size: int) -> bool:
        return self.used < self.limit and (self.bytes + size <= self.max_bytes or not self.used)

    def try_take(self, size: int) -> bool:
        '''Take a permit if there is one for a message of `size` bytes.'''
        if self.used >= self.limit or (self.bytes + size > self.max_bytes and self.used):
            return False
        self.used += 1
        self.bytes += size
        return True

    def take(self, size: int) -> None:
        '''Take a permit, whether there is one or not.'''
        self.used += 1
        self.bytes += size

    def give(self, size: int, count: int) -> None:
        '''Give back the permits of `count` messages of `size` bytes in all.'''
        if count > self.used or size > self.bytes:
            raise ValueError('a permit was given back that nobody holds')
        self.used -= count
        self.bytes -= size
