"""Keeps SQLite's open files from processes that are forked, in which its locks would be wrong.

SQLite keeps the list of its locks once for a process. A forked child inherits the list, but no lock of the
system (https://www.sqlite.org/howtocorrupt.html, 2.6). When a thread of the parent was writing, the child
finds the file locked for ever. Otherwise it takes no lock itself, so that another program may delete the
write-ahead log with what the child has stored.
"""

import os
import threading
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any, Final

#: Seconds that a fork waits for the uses of other threads. A use takes milliseconds, and waits up to
#: `SQLITE_BUSY_TIMEOUT` for another writer.
PATIENCE: Final = 10

#: SQLAlchemy's engines, whose connections are closed before this process forks.
_engines: Final[list[Any]] = []


class _Turns:
    """Lets threads use SQLite, each in a `with` block or several, or one of them fork."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        #: How many uses each thread is in, one within the other.
        self._uses: Counter[int] = Counter()
        self._forking: int | None = None

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._lock:
            if self._forking and not self._uses[thread]:
                self._changed.wait_for(lambda: self._forking in (None, thread))
            self._uses[thread] += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._uses[threading.get_ident()] -= 1
            if self._forking:
                self._changed.notify_all()

    def begin_fork(self) -> None:
        thread = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._forking is None)
            self._forking = thread
            self._changed.wait_for(
                lambda: not any(uses for other, uses in self._uses.items() if other != thread), PATIENCE
            )

    def end_fork(self) -> None:
        with self._changed:
            if self._forking == threading.get_ident():
                self._forking = None
                self._changed.notify_all()


_turns = _Turns()


def using() -> AbstractContextManager[None]:
    """Use connections of the engines below; this process does not fork meanwhile."""
    return _turns


def close_before_forks(engine: Any) -> None:
    """Close the idle connections of the engine before each fork of this process."""
    _engines.append(engine)


def _before() -> None:
    if _engines:
        _turns.begin_fork()
        for engine in _engines:
            engine.dispose()  # closes those that are idle


def _after_in_parent() -> None:
    _turns.end_fork()


def _after_in_child() -> None:
    global _turns
    _turns = _Turns()  # without the locks and the uses of threads that are not here
    _engines.clear()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
