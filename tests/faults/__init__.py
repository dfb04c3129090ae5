'''Every fault that the pool survives, made to happen.'''
