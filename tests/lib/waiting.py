"""Waiting for what a test expects, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

#: Seconds that a condition may take before the test gives up: a busy machine is slow, a fault is for ever.
PATIENCE = 120

T = TypeVar("T")


def eventually(
    what: str,
    condition: Callable[[], T],
    patience: float = PATIENCE,
    *,
    seen: Callable[[], str] = str,
    progress: Callable[[], object] = str,
) -> T:
    """The first true value of `condition`; fails the test when there is none, for `what` did not happen.

    `seen` gives what there is to see then. A wait for a thousand things says how far it is with `progress`:
    while that changes, nothing is too slow.
    """
    deadline, pause, reached = time.monotonic() + patience, 0.01, progress()
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > deadline:
            before, reached = reached, progress()
            if before == reached:
                raise AssertionError(f"not within {patience} s: {what}\n{seen()}")
            deadline = now + patience
        # Many a look costs milliseconds of the processor that it waits for; that of a program, hundreds.
        pause = min(0.1, pause * 1.3)
        time.sleep(max(pause, min(0.5, 2 * (now - asked))))
