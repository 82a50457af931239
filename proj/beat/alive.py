"""The heartbeat of a beat, for `proj health --beat`."""

import logging
import os
import time
from contextlib import suppress
from typing import Final

from proj.config import Settings
from proj.health import heartbeat
from proj.health.heartbeat import BEAT, READY, STANDBY, Heartbeat

log = logging.getLogger("proj.beat")

#: Seconds between two beats.
_INTERVAL: Final = 1.0

#: Seconds that a look at the schedule may take, beside one publish: the result store may hang.
_LOOK: Final = 30.0


class Alive:
    """Writes the heartbeat file. When that fails, it logs one error, and the beat goes on."""

    def __init__(self, settings: Settings) -> None:
        pid = os.getpid()
        self._patience = _INTERVAL + _LOOK + settings.proj_publish_timeout
        self._state_dir = str(settings.state_dir)
        name = f"beat@{os.uname().nodename}"
        self._file = heartbeat.file_of(self._state_dir, name, pid, BEAT)
        self._beat = Heartbeat(name, pid, heartbeat.identity(pid) or "", heartbeat.machine(), STANDBY, 0, 0)
        self._is_failing = False

    def beat(self, *, leads: bool) -> None:
        """Write a beat, once a second or when the lead has changed."""
        now = time.monotonic()
        state = READY if leads else STANDBY
        if state == self._beat.state and now - self._beat.beat < _INTERVAL:
            return
        if not self._beat.beat:
            heartbeat.clear_leftovers(self._state_dir, BEAT)
        self._beat = self._beat._replace(state=state, beat=now, due=now + self._patience)
        try:
            heartbeat.write(self._file, self._beat)
        except OSError as error:
            if not self._is_failing:
                log.error("beat: the heartbeat cannot be written: %s", error)
            self._is_failing = True
        else:
            self._is_failing = False

    def end(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            os.unlink(self._file)
