'''Benchmarks of looppool against a bare ceiling and its peers: ``python -m benchmarks messages`` and ``calls``.'''

__all__: list[str] = []
