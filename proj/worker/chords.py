"""Exponential back-off for `celery.chord_unlock`, which polls for the end of a chord's header tasks."""

from typing import Any, Final

import celery

from proj.logs import events

#: Seconds between two polls: the first time, then twice as many each time, and at most.
FIRST_INTERVAL: Final = 1
LONGEST_INTERVAL: Final = 30


def install(app: celery.Celery) -> None:
    """Poll with back-off in this application."""
    app.on_after_finalize.connect(_slow_down)


def _slow_down(sender: celery.Celery, **_: Any) -> None:
    # Celery's task reads it at each poll.
    # upstream: not reported; remove when Celery polls for chords with back-off
    type(sender.tasks[events.CHORD_POLL]).default_retry_delay = property(_interval)


def _interval(task: celery.Task) -> int:
    return int(min(LONGEST_INTERVAL, FIRST_INTERVAL * 2 ** min(task.request.retries, 10)))
