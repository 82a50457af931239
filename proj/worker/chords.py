"""Exponential back-off for `celery.chord_unlock`, which polls for the end of a chord's header tasks."""

from typing import Any, Final

import celery

from proj.logs import events

#: Seconds between two polls: the first time, then twice as many each time, and at most.
FIRST_INTERVAL: Final = 1
LONGEST_INTERVAL: Final = 30


class BackOff:
    """Celery's `task_annotations` for the task that polls."""

    def annotate(self, task: Any) -> dict[str, Any] | None:
        # Celery's task reads it at each poll.
        return {"default_retry_delay": property(_interval)} if task.name == events.CHORD_POLL else None


def _interval(task: celery.Task) -> int:
    return int(min(LONGEST_INTERVAL, FIRST_INTERVAL * 2 ** min(task.request.retries, 10)))
