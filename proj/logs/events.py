"""The events of a message in the log: one line each, with the message's id and its task's name.

A program that imports the project configures its own logging; without a handler, nothing is written.
`docs/logs.md` documents the lines that this module and `proj.logs.formats` write.
"""

import logging
from typing import Any, Final

#: Without it, Python would write warnings to the stderr of a program that configures no logging.
logging.getLogger("proj").addHandler(logging.NullHandler())

# --- Publishing
PUBLISHED: Final = "published"
#: No confirm came, and the message is published again.
PUBLISH_REPEATED: Final = "publish_repeated"
#: The message may be in a queue.
PUBLISH_UNKNOWN: Final = "publish_unknown"
#: The message is certainly in no queue.
PUBLISH_REFUSED: Final = "publish_refused"

# --- Working
RECEIVED: Final = "received"
#: A copy goes to a delay queue: for an `eta`, or until the message's turn under a rate limit.
DELAYED: Final = "delayed"
STARTED: Final = "started"
#: The progress of a task could not be stored.
PROGRESS_DROPPED: Final = "progress_dropped"
SUCCEEDED: Final = "succeeded"
RETRIED: Final = "retried"
FAILED: Final = "failed"
SOFT_TIME_LIMIT: Final = "soft_time_limit"
#: The task raised Celery's `Ignore` or `Reject`.
IGNORED: Final = "ignored"
REJECTED: Final = "rejected"
REVOKED: Final = "revoked"
#: A success is stored already, so the task is not executed again.
DUPLICATE: Final = "duplicate"
GIVEN_BACK: Final = "given_back"
DEAD_LETTERED: Final = "dead_lettered"

# --- Replies to foreign messages
REPLIED: Final = "replied"
#: Nobody takes the reply, or the broker does not confirm it.
REPLY_DROPPED: Final = "reply_dropped"

# --- Dead letters
REDRIVEN: Final = "redriven"
DROPPED: Final = "dropped"

#: Celery's task that polls for the end of a chord's header tasks. Its many events are logged at level DEBUG.
CHORD_POLL: Final = "celery.chord_unlock"

#: The `event` of any other line, such as one that a task logs.
OTHER: Final = "log"


def say(
    log: logging.Logger,
    level: int,
    event: str,
    task_id: str | None,
    task_name: str | None,
    words: str,
    *,
    at: float | None = None,
    **fields: Any,
) -> None:
    """Log one event of one message: `Task NAME[ID] WORDS`.

    `at` is when it happened (`time.time`), for an event that is logged late: a worker may begin before the
    publisher has the confirm. `fields` become keys of a line in JSON, except those that are None.
    """
    if task_name == CHORD_POLL and level == logging.INFO and event != SUCCEEDED:
        level = logging.DEBUG
    if not log.isEnabledFor(level):
        return
    extra = {name: value for name, value in fields.items() if value is not None}
    extra |= {"event": event, "task_id": task_id, "task_name": task_name}
    if at is not None:
        extra["at"] = at
    subject = f"Task {task_name}" if task_name else "Message "
    log.log(level, "%s[%s] %s", subject, task_id or "-", words, extra=extra)
