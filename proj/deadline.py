"""A deadline for code that waits."""

import _thread
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

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


def within(seconds: float, act: Callable[[], T]) -> T:
    """What `act` returns or raises; `TimeoutError` when it takes longer, and goes on in a thread of its own.

    For what cannot be cut: the system's resolver has timeouts of its own, 10 to 30 seconds, and a driver of a
    database may wait for ever.
    """
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(act())
        except Exception as error:
            ended.set_exception(error)

    # Not a `Thread`: that waits for a lock of all threads, which a caller whom a signal interrupted may hold.
    _thread.start_new_thread(run, ())
    return ended.result(seconds)
