"""Writes the heartbeat of `proj ingest`, from its loop, for `proj health --ingest`."""

import logging
import os
import platform
import time
from contextlib import suppress
from typing import Any, Final, Self

from proj.config import Settings
from proj.health import heartbeat
from proj.health.heartbeat import CONNECTING, NOT_CONSUMING, READY, STARTING, STOPPING, Heartbeat

log = logging.getLogger(__name__)

#: Seconds between two beats of a running loop.
INTERVAL: Final = 1.0

#: Seconds that a turn of the loop may take, besides the timeout of an operation on the broker's socket.
TURN: Final = 10.0

#: Seconds that may pass while it connects: the look-up of a host takes up to 30, a handshake up to 20.
CONNECT: Final = 80.0


class Beat:
    """The heartbeat of this process. When it cannot be written, that is one error, and all else goes on."""

    def __init__(self, settings: Settings) -> None:
        pid = os.getpid()
        name = f"ingest-{pid}@{platform.node()}"
        self._state_dir = str(settings.state_dir)
        self._file = heartbeat.file_of(self._state_dir, name, pid, heartbeat.INGEST)
        self._patience = INTERVAL + settings.proj_publish_timeout
        process, machine = heartbeat.identity(pid) or "", heartbeat.machine()
        self._beat = Heartbeat(name, pid, process, machine, STARTING, 0, 0)
        self._is_failing = False

    def __enter__(self) -> Self:
        heartbeat.clear_leftovers(self._state_dir, heartbeat.INGEST)
        self._write(STARTING, CONNECT)
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(OSError):
            os.unlink(self._file)

    def connecting(self) -> None:
        self._write(CONNECTING, CONNECT)

    def turned(self, *, consumes: bool) -> None:
        state = READY if consumes else NOT_CONSUMING
        if self._beat.state != state or time.monotonic() - self._beat.beat >= INTERVAL:
            self._write(state, TURN)

    def stopping(self) -> None:
        self._write(STOPPING, TURN)

    def _write(self, state: str, promise: float) -> None:
        now = time.monotonic()
        self._beat = self._beat._replace(state=state, beat=now, due=now + self._patience + promise)
        try:
            heartbeat.write(self._file, self._beat)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                log.error("the heartbeat cannot be written, so proj health reports this as dead: %s", error)
            self._is_failing = True
