"""What tasks do, in whatever application: they write at their end that they were executed."""

import functools
import os
import time
from pathlib import Path
from typing import Any, Final

from tests.chaos.ledger import FOLDER, HELD, HOLD, Kind, Ledger

#: Seconds between two looks of a task that holds.
_INTERVAL: Final = 0.02


def folder() -> Path:
    """Where the ledgers are."""
    return Path(os.environ[FOLDER])


@functools.cache
def _ledger(_process: int) -> Ledger:
    return Ledger(folder(), "tasks")


def executed(request: Any, token: str) -> None:
    """Write that the task has been executed: its effect."""
    delivery = int(getattr(request, "x-delivery-count", None) or 0) + 1
    _ledger(os.getpid()).write(Kind.EXECUTED, token, delivery)


def hold(request: Any, token: str) -> None:
    """Last for as long as the file `hold` is there, and tell so by a file."""
    (folder() / f"{HELD}-{request.hostname}-{token}").touch()
    while (folder() / HOLD).exists():
        time.sleep(_INTERVAL)
    executed(request, token)
