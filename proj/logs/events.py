"""What becomes of a message, in the log: a line an event, with the message's id and its task's name.

A program that imports the project decides itself what it logs: without a handler of its own, nothing is
written. What `docs/logs.md` promises about the lines is kept here and in `proj.logs.formats`.
"""

import logging
from typing import Any, Final

#: Without it, Python would write warnings to the stderr of a program that configures no logging.
logging.getLogger("proj").addHandler(logging.NullHandler())

# --- Publishing
PUBLISHED: Final = "published"
#: The confirm was lost, and the message is published once more.
PUBLISH_REPEATED: Final = "publish_repeated"
#: It is not known whether the message is in a queue.
PUBLISH_UNKNOWN: Final = "publish_unknown"
#: The message is in no queue.
PUBLISH_REFUSED: Final = "publish_refused"

# --- Working
RECEIVED: Final = "received"
#: Its copy goes to a delay queue: it has an `eta`, or waits for its turn under a rate limit.
DELAYED: Final = "delayed"
STARTED: Final = "started"
#: The result store has not taken a state that is no end, such as a task's own.
PROGRESS_DROPPED: Final = "progress_dropped"
SUCCEEDED: Final = "succeeded"
RETRIED: Final = "retried"
FAILED: Final = "failed"
SOFT_TIME_LIMIT: Final = "soft_time_limit"
#: The task itself asked for it: Celery's `Ignore` and `Reject`.
IGNORED: Final = "ignored"
REJECTED: Final = "rejected"
REVOKED: Final = "revoked"
#: A success is stored already, so the task is not executed again.
DUPLICATE: Final = "duplicate"
GIVEN_BACK: Final = "given_back"
DEAD_LETTERED: Final = "dead_lettered"

# --- Dead letters
REDRIVEN: Final = "redriven"
DROPPED: Final = "dropped"

#: The task of Celery's that polls for the end of a chord's header tasks. That a poll is published, received
#: or retried, is logged at level DEBUG: there are many.
CHORD_POLL: Final = "celery.chord_unlock"

#: The `event` of a line that is none of these, such as one that a task writes.
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

    `at` is when it happened (of `time.time`), for an event that is known later than others that follow from
    it: a worker may begin before the publisher has the confirm. `fields` are keys of the line in JSON;
    those that are None are left out.
    """
    if task_name == CHORD_POLL and level == logging.INFO:
        level = logging.DEBUG
    if not log.isEnabledFor(level):
        return
    extra = {name: value for name, value in fields.items() if value is not None}
    extra |= {"event": event, "task_id": task_id, "task_name": task_name}
    if at is not None:
        extra["at"] = at
    subject = f"Task {task_name}" if task_name else "Message "
    log.log(level, "%s[%s] %s", subject, task_id or "-", words, extra=extra)
