"""Writes the heartbeat of a process that has a loop of its own: `celery beat` and `proj ingest`."""

import logging
import os
import time
from contextlib import suppress

from proj.health import heartbeat
from proj.health.heartbeat import Heartbeat


class Writer:
    """The heartbeat file of this process. A failure to write it is one error, and all else goes on."""

    def __init__(
        self, state_dir: str, name: str, kind: str, state: str, log: logging.Logger, failure: str
    ) -> None:
        """`failure` is what `log` says before the reason when the file cannot be written."""
        pid = os.getpid()
        self._state_dir, self._kind = state_dir, kind
        self._file = heartbeat.file_of(state_dir, name, pid, kind)
        self._beat = Heartbeat(name, pid, heartbeat.identity(pid) or "", heartbeat.machine(), state, 0, 0)
        self._log, self._failure = log, failure
        self._is_failing = False

    def is_due(self, state: str, interval: float) -> bool:
        """Whether the state has changed, or the last beat is at least so many seconds old."""
        return self._beat.state != state or time.monotonic() - self._beat.beat >= interval

    def write(self, state: str, promise: float) -> None:
        """Write a beat, with the promise that the next one follows within so many seconds."""
        if not self._beat.beat:
            heartbeat.clear_leftovers(self._state_dir, self._kind)
        now = time.monotonic()
        self._beat = self._beat._replace(state=state, beat=now, due=now + promise)
        try:
            heartbeat.write(self._file, self._beat)
        except OSError as error:
            if not self._is_failing:
                self._log.error("%s: %s", self._failure, error)
            self._is_failing = True
        else:
            self._is_failing = False

    def end(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            os.unlink(self._file)
