"""Files that another program may hold open. On Windows they can't be read or replaced just then, so try again."""

import time

WAITS = (0.05, 0.1, 0.2, 0.4)  # seconds; a reader or a virus scanner is done by then


def patiently(action):
    """What `action()` returns. While it raises PermissionError it is tried again, for three quarters of a second."""
    for seconds in WAITS:
        try:
            return action()
        except PermissionError:
            time.sleep(seconds)
    return action()
