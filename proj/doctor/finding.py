"""The result of one check."""

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final


class Level(StrEnum):
    """The severity of a finding."""

    OK = "ok"
    #: Not a problem, but worth knowing.
    INFO = "info"
    #: It could not be checked.
    SKIPPED = "skipped"
    #: The promise holds, but is at risk, or something does not work.
    WARNING = "warning"
    #: The promise does not hold, or no task is executed.
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What a check found, why it matters, and how to fix it.

    A `fix` that ends in `: COMMAND` has a command that can be copied and run. No text holds a password.
    """

    level: Level
    what: str
    why: str | None = None
    fix: str | None = None
    #: Set by `examine`: the group that the finding is shown in, and the name of the check.
    area: str = ""
    check: str = ""


ok: Final = partial(Finding, Level.OK)
info: Final = partial(Finding, Level.INFO)
skipped: Final = partial(Finding, Level.SKIPPED)
warning: Final = partial(Finding, Level.WARNING)
error: Final = partial(Finding, Level.ERROR)
