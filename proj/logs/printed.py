"""A worker's `sys.stdout` and `sys.stderr`, which write to its log what tasks print."""

import logging
import sys
import threading
from typing import Any, Final, TextIO

from celery.utils.log import LoggingProxy
from kombu.utils.encoding import safe_str

#: Writes after which an unfinished line is logged.
_LONGEST_BEGUN: Final = 16_384


class Printed(LoggingProxy):
    """Logs each printed line at its end; Celery's own logs each write, and `print` writes each argument.

    Everything else is passed to the original stream: what is written to its descriptor or its `buffer`, such
    as by another program, goes there and not to the log.
    """

    def __init__(self, logger: logging.Logger, level: Any, stream: TextIO | None) -> None:
        super().__init__(logger, level)
        self._stream = stream
        self._begun = threading.local()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._stream, name)

    def fileno(self) -> int:
        """The descriptor of the stream. Raises `OSError` when the worker was started without one."""
        if self._stream is None:
            raise OSError("this worker was started with its output closed")
        return self._stream.fileno()

    def write(self, data: str) -> int:
        parts = self._parts()
        parts.append(safe_str(data))
        if parts[-1].endswith("\n") or len(parts) > _LONGEST_BEGUN:
            self._log()
        return len(data)

    def flush(self) -> None:
        self._log()
        if self._stream is not None:
            self._stream.flush()

    def close(self) -> None:
        """Log the unfinished line. The stream stays open, since other tasks use it."""
        self._log()

    def _log(self) -> None:
        if parts := self._parts():
            text = "".join(parts)
            parts.clear()
            super().write(text)

    def _parts(self) -> list[str]:
        """The parts of this thread's unfinished line."""
        try:
            return self._begun.parts  # type: ignore[no-any-return]
        except AttributeError:
            self._begun.parts = []
            return self._begun.parts  # type: ignore[no-any-return]


def end_line(**_: Any) -> None:
    """Log the unfinished line of a task, before another task prints: at `task_postrun`."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # the task may have replaced or closed the stream
            continue
