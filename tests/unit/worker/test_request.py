"""What a worker reads from the headers of a message."""

import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from proj import queues
from proj.worker.request import Request

NOW = 1_790_000_000.5


@pytest.mark.parametrize(
    ("due", "waited"),
    [
        (NOW - 2.0004, 2.0),
        (NOW, 0),
        (NOW + 5, 0),  # the publisher's clock is ahead
        *[(value, None) for value in (None, True, "1.5", math.nan, math.inf, -math.inf, [1.5])],
    ],
)
def test_how_long_a_message_has_waited(monkeypatch: pytest.MonkeyPatch, due: Any, waited: Any) -> None:
    """In milliseconds, and never less than nothing; unknown where no program of ours has written it."""
    monkeypatch.setattr(time, "time", lambda: NOW)
    request = SimpleNamespace(message=SimpleNamespace(headers={queues.DUE_HEADER: due}))

    assert Request.waited.fget(request) == waited  # type: ignore[attr-defined]
