"""Deferring Ctrl-C around code that does not survive it, or that is to end in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Deferred:
    """Whether Ctrl-C was pressed; calling it raises the `KeyboardInterrupt` then."""

    pressed = False
    #: While it is set, a Ctrl-C is raised at once, as in a read that may take for ever.
    at_once = False

    def __call__(self) -> None:
        if self.pressed:
            raise KeyboardInterrupt


@contextmanager
def deferred_interrupt() -> Iterator[Deferred]:
    """Defer a Ctrl-C until the yielded object is called, which raises it; a second one is raised at once.

    SQLAlchemy prints a traceback when it is interrupted while it closes a connection, and Python drops an
    exception that is raised in a finalizer.
    """
    deferred = Deferred()

    def defer(_number: int, _frame: object) -> None:
        if deferred.pressed or deferred.at_once:
            raise KeyboardInterrupt
        deferred.pressed = True

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # shells ignore SIGINT for a script's background commands
        signal.signal(signal.SIGINT, defer)
    try:
        yield deferred
    finally:
        signal.signal(signal.SIGINT, before)
