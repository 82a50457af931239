"""Deadlines for blocking code that has no timeout."""

import _thread
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds between two cuts: the code may open another socket, such as for the next address of a host.
_AGAIN: Final = 0.1


@contextmanager
def cut_after(seconds: float, cut: Callable[[], None]) -> Iterator[None]:
    """Call `cut` in another thread when the block takes longer, and repeat it until the block has ended.

    A socket's timeout does not bound the block: it holds for one system call, and a slow peer causes many.
    When `cut` shuts the socket down, whatever waits on it fails with an `OSError`.
    """
    # Not an Event, whose `set` is Python code that Ctrl-C can interrupt.
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
    """Return or raise what `act` does. Raises `TimeoutError` when it takes longer; it goes on in its thread.

    For code that cannot be cut: the system's resolver takes 10 to 30 seconds, and a database driver may wait
    for ever.
    """
    ended: Future[T] = Future()

    def run() -> None:
        try:
            ended.set_result(act())
        except Exception as error:
            ended.set_exception(error)

    # Not a `Thread`: its start needs a global lock, which the caller may hold when a signal interrupts it.
    _thread.start_new_thread(run, ())
    return ended.result(seconds)
