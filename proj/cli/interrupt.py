"""Deferring Ctrl-C around library calls that do not survive it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Defer a Ctrl-C until the yielded function is called, which raises it; a second one is raised at once.

    SQLAlchemy prints a traceback when it is interrupted while it closes a connection, and Python drops an
    exception that is raised in a finalizer.
    """
    pressed = False

    def defer(_number: int, _frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def deliver() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # shells ignore SIGINT for a script's background commands
        signal.signal(signal.SIGINT, defer)
    try:
        yield deliver
    finally:
        signal.signal(signal.SIGINT, before)
