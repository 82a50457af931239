"""The tasks of a run: they write into a ledger that they were executed, at their end.

The application imports them as it does a user's: a line of its `proj/tasks.py`.
"""

import os
import signal
from typing import Any, Final

from proj.celery import app
from tests.chaos import acts
from tests.chaos.ledger import FAIL

#: A file that the first task writes that is to need more memory than there is: the second attempt needs none.
DEVOURED: Final = "devoured"

#: Bytes that a task takes at once until the system ends its process, and how often at most.
_BITE: Final = 16 * 2**20
_BITES: Final = 64


@app.task(name="chaos.mark", bind=True)
def mark(self: Any, token: str) -> None:
    """Write that it was executed."""
    acts.executed(self.request, token)


@app.task(name="chaos.silent", bind=True, ignore_result=True)
def silent(self: Any, token: str) -> None:
    """Write that it was executed, and store no result."""
    acts.executed(self.request, token)


@app.task(name="chaos.hold", bind=True)
def hold(self: Any, token: str) -> None:
    """Last for as long as the file `hold` is there."""
    acts.hold(self.request, token)


@app.task(name="chaos.fail", bind=True)
def fail(self: Any, token: str) -> None:
    """Fail for as long as the file `fail` is there."""
    if (acts.folder() / FAIL).exists():
        raise ValueError("it is to fail")
    acts.executed(self.request, token)


@app.task(name="chaos.poison", bind=True)
def poison(self: Any, token: str) -> None:
    """Kill the process that executes it, each time."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="chaos.devour", bind=True)
def devour(self: Any, token: str) -> None:
    """At its first attempt, take all memory that there is for its process."""
    mark_of_it = acts.folder() / f"{DEVOURED}-{token}"
    if not mark_of_it.exists():
        mark_of_it.touch()
        taken = [bytearray(b"x" * _BITE) for _ in range(_BITES)]
        del taken
    acts.executed(self.request, token)
