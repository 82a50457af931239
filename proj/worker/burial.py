"""Turns a message that a worker will not execute into a dead letter: logged, stored as failed, rejected."""

import logging
from typing import Any, Final

import celery
from celery.app.task import Context
from celery.utils.log import get_logger

from proj.dead_letters.reasons import Reason
from proj.enqueue import checks
from proj.errors import NotExecuted
from proj.logs import events
from proj.worker import watchers

log = get_logger(__name__)

#: Characters of a text from a message that a log line or a stored result repeats. A message may have 16 MiB.
_MAX_TEXT: Final = 500

#: Reasons that a publisher or an operator intended; they are logged as warnings, and all others as errors.
_EXPECTED: Final = (Reason.EXPIRED, Reason.DELIVERY_LIMIT)


def text(value: object) -> str:
    """The value for people, shortened."""
    words = str(value)
    return words if len(words) <= _MAX_TEXT else f"{words[:_MAX_TEXT]}… ({len(words)} characters)"


def bury(
    app: celery.Celery,
    task_id: object,
    task_name: object,
    reason: Reason,
    problem: object = None,
    context: Any = None,
) -> Exception:
    """Log that a message becomes a dead letter, and store this as its end if the store can hold its id.

    The caller rejects it afterwards, so that the end is stored before the dead letter can be found. `context`
    is the request's; with it, a chord or chain that waits for the task fails too. Returns the end's error.
    """
    short_id, short_name = (text(part) if part else None for part in (task_id, task_name))
    words = f"{reason.words}: {text(problem)}" if problem else reason.words
    level = logging.WARNING if reason in _EXPECTED else logging.ERROR
    became = f"became a dead letter: {words}"
    events.say(log, level, events.DEAD_LETTERED, short_id, short_name, became, reason=reason)
    error = NotExecuted(words)
    if checks.is_id(task_id):
        app.backend.mark_as_failure(task_id, error, request=context or Context(id=task_id, task=short_name))
    return error


def bury_message(consumer: Any, message: Any, reason: Reason, problem: object = None) -> None:
    """Make a message a dead letter that cannot be turned into a request."""
    headers, properties = message.headers, message.properties
    ids = (headers.get("id"), properties.get("correlation_id"), properties.get("message_id"))
    # The first one that the store can hold; without one, only the log names the message.
    task_id = next(filter(checks.is_id, ids), ids[0])
    error = bury(consumer.app, task_id, headers.get("task"), reason, problem)
    if not message.acknowledged:
        message.reject_log_error(log, consumer.connection_errors)
    watchers.tell_failure(consumer.event_dispatcher, task_id, reason, error, headers)
