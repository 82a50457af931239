"""The heartbeat of a beat, for `proj health --beat`."""

import logging
import os
from typing import Final

from proj.config import Settings
from proj.health.heartbeat import BEAT, READY, STANDBY
from proj.health.writer import Writer

log = logging.getLogger("proj.beat")

#: Seconds between two beats.
_INTERVAL: Final = 1.0

#: Seconds that a look at the schedule may take, beside one publish: the result store may hang.
_LOOK: Final = 30.0


class Alive:
    """The heartbeat of this process."""

    def __init__(self, settings: Settings) -> None:
        self._patience = _INTERVAL + _LOOK + settings.proj_publish_timeout
        name, failure = f"beat@{os.uname().nodename}", "beat: the heartbeat cannot be written"
        self._writer = Writer(str(settings.state_dir), name, BEAT, STANDBY, log, failure)

    def beat(self, *, leads: bool) -> None:
        """Write a beat, once a second or when the lead has changed. Call it before each publish."""
        state = READY if leads else STANDBY
        if self._writer.is_due(state, _INTERVAL):
            self._writer.write(state, self._patience)

    def end(self) -> None:
        """Delete the file."""
        self._writer.end()
