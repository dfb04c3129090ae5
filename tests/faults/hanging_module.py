'''A module whose import never ends, for a fork server to preload.'''

import threading

threading.Event().wait()
