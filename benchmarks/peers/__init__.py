"""The other pools, each doing the same jobs in the way its own manual recommends.

A peer's module defines one function per job (`throughput`, `calls`, `mapped`, `latency`, `sleepers`, `start`, `large`,
`small`), each from a `Load` to values. A peer that isn't installed fails at its import, which the report shows as
``not installed``.
"""

__all__: list[str] = []
