"""Writes the heartbeat of `proj ingest`, from its loop, for `proj health --ingest`."""

import logging
import os
import platform
from typing import Any, Final, Self

from proj.config import Settings
from proj.health.heartbeat import CONNECTING, INGEST, NOT_CONSUMING, READY, STARTING, STOPPING
from proj.health.writer import Writer

log = logging.getLogger(__name__)

#: Seconds between two beats of a running loop.
INTERVAL: Final = 1.0

#: Seconds that a turn of the loop may take, besides the timeout of an operation on the broker's socket.
TURN: Final = 10.0

#: Seconds that may pass while it connects: the look-up of a host takes up to 30, a handshake up to 20.
CONNECT: Final = 80.0

#: What is logged, with the reason.
_FAILURE: Final = "the heartbeat cannot be written, so proj health reports this as dead"


class Beat:
    """The heartbeat of this process."""

    def __init__(self, settings: Settings) -> None:
        name = f"ingest-{os.getpid()}@{platform.node()}"
        self._patience = INTERVAL + settings.proj_publish_timeout
        self._writer = Writer(str(settings.state_dir), name, INGEST, STARTING, log, _FAILURE)

    def __enter__(self) -> Self:
        self._write(STARTING, CONNECT)
        return self

    def __exit__(self, *_: Any) -> None:
        self._writer.end()

    def connecting(self) -> None:
        self._write(CONNECTING, CONNECT)

    def turned(self, *, consumes: bool) -> None:
        state = READY if consumes else NOT_CONSUMING
        if self._writer.is_due(state, INTERVAL):
            self._write(state, TURN)

    def stopping(self) -> None:
        self._write(STOPPING, TURN)

    def _write(self, state: str, promise: float) -> None:
        self._writer.write(state, self._patience + promise)
