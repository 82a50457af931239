"""A deadline for a block of code that waits on a connection."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def cut_after(seconds: float, cut: Callable[[], None]) -> Iterator[None]:
    """Call `cut`, in another thread, when the block has not ended in that many seconds.

    The timeouts of a socket do not bound a block: each holds for one system call, and a slow peer makes
    many of them. When `cut` shuts the socket down, whatever waits on it fails with an `OSError`.
    """
    timer = threading.Timer(max(0, seconds), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
