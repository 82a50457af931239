"""What a worker does with a message that is never executed: log it, store how it ended, and reject it."""

import logging
from typing import Any, Final

import celery
from celery.app.task import Context
from celery.utils.log import get_logger

from proj.dead_letters.reasons import Reason
from proj.enqueue import checks
from proj.errors import NotExecuted
from proj.logs import events

log = get_logger(__name__)

#: Characters of a text that a message brings along, and that a log line or a stored result repeats. A message
#: may bring 16 MiB.
_MAX_TEXT: Final = 500

#: Reasons that somebody brought about who knew that they would; the others are errors.
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
) -> None:
    """Log that a message becomes a dead letter, and store that as its end, where the store can hold its id.

    Whoever calls rejects it afterwards, so that nobody finds the dead letter before its end. `context` is
    Celery's, of the request; with it, what waits for the task (a chord, a chain) fails too.
    """
    said_id, said_name = (text(part) if part else None for part in (task_id, task_name))
    words = f"{reason.words}: {text(problem)}" if problem else reason.words
    level = logging.WARNING if reason in _EXPECTED else logging.ERROR
    events.say(
        log, level, events.DEAD_LETTERED, said_id, said_name, f"became a dead letter: {words}", reason=reason
    )
    if not checks.is_id(task_id):
        return
    try:
        app.backend.mark_as_failure(
            task_id, NotExecuted(words), request=context or Context(id=task_id, task=said_name)
        )
    except Exception as error:  # of a chain or an errback that is no better than the message
        log.warning("What waits for message %s cannot be informed: %s", said_id, text(repr(error)))


def bury_message(consumer: Any, message: Any, reason: Reason, problem: object = None) -> None:
    """Make a dead letter of a message of which no request could be made."""
    headers, properties = message.headers, message.properties
    ids = (headers.get("id"), properties.get("correlation_id"), properties.get("message_id"))
    # The first that the store can hold; else there is only the log to name it.
    task_id = next(filter(checks.is_id, ids), ids[0])
    bury(consumer.app, task_id, headers.get("task"), reason, problem)
    if not message.acknowledged:
        message.reject_log_error(log, consumer.connection_errors)
