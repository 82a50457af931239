"""What the doctor says."""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: Nothing is wrong, and it is good to know.
    INFO = "info"
    #: It could not be looked at.
    SKIPPED = "skipped"
    #: The promise holds now, but something is in the way of it, or of people.
    WARNING = "warning"
    #: The promise does not hold, or no work is done.
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, why it matters, and what mends it.

    What ends in `: COMMAND` is a command to be run as it stands. No text holds a password.
    """

    level: Level
    what: str
    why: str | None = None
    fix: str | None = None
    #: Filled in by the runner: the group that it is shown in, and the name of the check, for programs.
    area: str = ""
    check: str = ""


ok: Final = partial(Finding, Level.OK)
info: Final = partial(Finding, Level.INFO)
skipped: Final = partial(Finding, Level.SKIPPED)
warning: Final = partial(Finding, Level.WARNING)
error: Final = partial(Finding, Level.ERROR)
