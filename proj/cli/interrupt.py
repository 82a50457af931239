"""Ctrl-C, where a library would be hurt by it in the middle of its work."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[Callable[[], None]]:
    """Keep a Ctrl-C until what this gives is called, which raises it; a second one is raised at once.

    SQLAlchemy prints a traceback when it is interrupted while it closes a connection, and Python drops what
    is raised in a finalizer.
    """
    pressed = False

    def keep(_number: int, _frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def let_go() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell sets it for what a script runs in the background
        signal.signal(signal.SIGINT, keep)
    try:
        yield let_go
    finally:
        signal.signal(signal.SIGINT, before)
