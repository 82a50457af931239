"""What Celery's worker itself logs about a message, made into the events of `proj.logs.events`.

Celery logs each of these lines from a template, which a filter on its logger knows. What `proj.worker.start`
and `proj.worker.request` say better, with the reason and for the right message, Celery does not say again.
"""

import logging
import sys
from typing import Any, Final

from celery.app import trace
from celery.exceptions import Retry
from celery.worker import request
from celery.worker.consumer import consumer

from proj.logs import events

# upstream: not reported; remove when Celery's log records carry the fields of their message
#: Templates of `celery.app.trace`; their one argument is a mapping.
_OF_TASKS: Final = {
    trace.LOG_SUCCESS.strip(): events.SUCCEEDED,
    trace.LOG_RETRY.strip(): events.RETRIED,
    trace.LOG_FAILURE.strip(): events.FAILED,
    trace.LOG_REJECTED.strip(): events.REJECTED,
    trace.LOG_IGNORED.strip(): events.IGNORED,
}

#: What it says in place of `ignored` when it finds a stored success.
_DUPLICATE: Final = "Task already completed successfully."

#: Templates of `celery.worker.request`, and what their arguments are.
_OF_REQUESTS: Final = {
    "Soft time limit (%ss) exceeded for %s[%s]": (
        events.SOFT_TIME_LIMIT,
        ("time_limit", "task_name", "task_id"),
    ),
    "Task %s[%s] succeeded before the worker was lost: %r": (
        events.SUCCEEDED,
        ("task_name", "task_id", "exception"),
    ),
}

#: What `proj.worker.start` and `proj.worker.request` say instead.
_SAID_ELSEWHERE: Final = {
    "Task accepted: %s[%s] pid:%r",
    "Discarding revoked task: %s[%s]",
    "Hard time limit (%ss) exceeded for %s[%s]",
    "Task handler raised error: %r",
    consumer.UNKNOWN_FORMAT,
    consumer.UNKNOWN_TASK_ERROR,
    consumer.INVALID_TASK_ERROR,
    consumer.TERMINATING_TASK_ON_RESTART_AFTER_A_CONNECTION_LOSS,
}


def install() -> None:
    """Let the workers of this process log events; a filter that is added twice works once."""
    trace.logger.addFilter(_of_task)
    request.logger.addFilter(_of_request)
    consumer.logger.addFilter(_is_not_said_elsewhere)
    # All that it says at this level is that a message was received.
    logging.getLogger("celery.worker.strategy").setLevel(logging.WARNING)


def _of_task(record: logging.LogRecord) -> bool:
    event = _OF_TASKS.get(str(record.msg))
    if event and isinstance(record.args, dict):
        said: dict[str, Any] = dict(record.args)
        if said.get("description") == _DUPLICATE:
            return False  # said by `proj.worker.request`
        fields = {"event": event, "task_id": said["id"], "task_name": said["name"]}
        if event == events.SUCCEEDED:
            fields |= {"runtime": round(said["runtime"], 6), "result": said["return_value"]}
        elif event == events.RETRIED:
            if said["name"] == events.CHORD_POLL and not trace.logger.isEnabledFor(logging.DEBUG):
                return False
            # The record has only the words; what is being handled is what the task raised.
            error = sys.exc_info()[1]
            if isinstance(error, Retry):
                fields |= {"exception": repr(error.exc), "delay": error.when}
        elif event in {events.FAILED, events.REJECTED}:
            # In one line: the traceback is in the result store too, and `proj dead show` shows it.
            fields |= {"exception": said["exc"], "traceback": said["traceback"]}
            record.exc_info = None
        vars(record).update(fields)
    return True


def _of_request(record: logging.LogRecord) -> bool:
    known = _OF_REQUESTS.get(str(record.msg))
    if known and isinstance(record.args, tuple):
        event, names = known
        vars(record).update(zip(names, record.args, strict=True), event=event)
    return _is_not_said_elsewhere(record)


def _is_not_said_elsewhere(record: logging.LogRecord) -> bool:
    return record.msg not in _SAID_ELSEWHERE
