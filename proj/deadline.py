"""Deadlines for blocking code that has no timeout."""

import _thread
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")

#: Seconds between two cuts: the code may open another socket, such as for the next address of a host.
_AGAIN: Final = 0.1

#: Seconds without a block after which the thread that watches over them sleeps.
_LINGER: Final = 5.0


class NoThread(OSError):
    """The system starts no more threads for this process, so that nothing can bound its waits."""


def _start(run: Callable[[], None]) -> None:
    """Start a thread; not a `Thread`, since a signal may interrupt a caller that holds its lock."""
    try:
        _thread.start_new_thread(run, ())
    except RuntimeError as error:
        raise NoThread(str(error)) from error


class _Watcher:
    """One thread that watches over all blocks: to start one for each would take longer than most blocks do.

    A signal handler may interrupt its methods in the same thread, so there is no lock to wait for.
    """

    def __init__(self) -> None:
        #: When to cut each block that is running, and how.
        self.blocks: dict[object, tuple[float, Callable[[], None]]] = {}
        self._started = False
        self._sleeps = False
        self._alarm = threading.Lock()
        self._alarm.acquire()

    def watch(self, block: object, until: float, cut: Callable[[], None]) -> None:
        self.blocks[block] = until, cut
        if not self._started:
            self._started = True
            try:
                _start(self._run)
            except BaseException:
                self._started = False
                raise
        elif self._sleeps:
            with suppress(RuntimeError):  # another thread has woken it
                self._alarm.release()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            for block, (until, cut) in list(self.blocks.items()):
                idle_since = now
                if until <= now and block in self.blocks:
                    with suppress(Exception):  # other blocks must be cut too
                        cut()
            if now - idle_since > _LINGER:
                self._sleeps = True
                if not self.blocks:
                    self._alarm.acquire()
                self._sleeps = False
                idle_since = time.monotonic()
            time.sleep(_AGAIN)


_watcher = _Watcher()


def _forget() -> None:
    global _watcher
    _watcher = _Watcher()


os.register_at_fork(after_in_child=_forget)


class CutAfter:
    """Calls `cut` in another thread when the block takes longer, and repeats it until the block has ended.

    A socket's timeout does not bound the block: it holds for one system call, and a slow peer causes many.
    When `cut` shuts the socket down, whatever waits on it fails with an `OSError`. It must not wait, and
    comes up to a tenth of a second late. Raises `NoThread` before the block.
    """

    __slots__ = ("_cut", "_seconds", "_watcher")

    def __init__(self, seconds: float, cut: Callable[[], None]) -> None:
        self._seconds, self._cut = seconds, cut

    def __enter__(self) -> None:
        self._watcher = _watcher
        try:
            self._watcher.watch(self, time.monotonic() + self._seconds, self._cut)
        except BaseException:  # such as a signal's
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self._watcher.blocks.pop(self, None)


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

    _start(run)
    return ended.result(seconds)
