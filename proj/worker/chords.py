"""Chords: the task of Celery's that polls for the end of their header tasks, with exponential back-off."""

from typing import Any, Final

import celery

from proj.logs import events

#: Seconds between two looks: twice as many each time, and at most.
FIRST_INTERVAL: Final = 1
LONGEST_INTERVAL: Final = 30


def install(app: celery.Celery) -> None:
    """Let this application's chords be polled for less and less often."""
    app.on_after_finalize.connect(_slow_down)


def _slow_down(sender: celery.Celery, **_: Any) -> None:
    # Celery's task asks for it at each look.
    # upstream: not reported; remove when Celery polls for chords with back-off
    type(sender.tasks[events.CHORD_POLL]).default_retry_delay = property(_interval)


def _interval(task: celery.Task) -> int:
    return int(min(LONGEST_INTERVAL, FIRST_INTERVAL * 2 ** min(task.request.retries, 10)))
