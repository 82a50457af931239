"""How often a result is asked for while it is waited for."""

import math
import time
from collections.abc import Iterator
from typing import Final

#: Seconds between two queries, at least and at most.
SHORTEST: Final = 0.001
LONGEST: Final = 0.5

#: The share of the time waited so far that passes until the next query: a result is read that much too late
#: at most, and one that takes hours costs two queries a second.
_SHARE: Final = 1 / 8

#: Celery's default of `AsyncResult.get(interval=…)`. It takes half a second to read what took a millisecond.
CELERYS_INTERVAL: Final = 0.5


def turns(timeout: float | None = None) -> Iterator[None]:
    """Yield when it is time for the next query: at once, then after ever longer pauses, and at the timeout.

    Ends after the query at the timeout, in seconds; by default it never ends.
    """
    began = time.monotonic()
    while True:
        yield
        waited = time.monotonic() - began
        left = math.inf if timeout is None else timeout - waited
        if left <= 0:
            return
        time.sleep(min(max(SHORTEST, waited * _SHARE), LONGEST, left))
