"""A deadline for a block of code that waits on a connection."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds between two cuts: what is cut may open anew, as for the next address of a name.
_AGAIN: Final = 0.1


@contextmanager
def cut_after(seconds: float, cut: Callable[[], None]) -> Iterator[None]:
    """Call `cut`, in another thread, when the block has not ended in that many seconds, until it has.

    The timeouts of a socket do not bound a block: each holds for one system call, and a slow peer makes
    many of them. When `cut` shuts the socket down, whatever waits on it fails with an `OSError`.
    """
    # Not an Event: Ctrl-C may come between the call of its `set` and what that does.
    running = threading.Lock()
    running.acquire()

    def watch() -> None:
        left = max(0, seconds)
        while not running.acquire(timeout=left):
            cut()
            left = _AGAIN

    timer = threading.Thread(target=watch, daemon=True)
    try:
        timer.start()
        yield
    finally:
        running.release()
