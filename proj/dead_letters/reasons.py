"""Why a message became a dead letter, or was given back: the one list, for code, logs and docs.

The strings are part of what users see: they are in log lines, in stored results and in `proj dead --reason`.
"""

from enum import StrEnum


class Reason(StrEnum):
    """One reason; `words` puts it into a sentence."""

    # --- The task was executed, and is not executed again by itself
    FAILED = "failed"
    #: The task raised Celery's `Reject`. As the broker's reason: any dead letter that a worker rejected.
    REJECTED = "rejected"
    TIME_LIMIT = "time_limit"

    # --- The task was never executed
    #: Its `expires` was over at a worker, or its time to live in a queue.
    EXPIRED = "expired"
    UNKNOWN_TASK = "unknown_task"
    #: It names a task, and its arguments, headers or limits are no good.
    INVALID = "invalid"
    #: Its body cannot be decoded.
    UNREADABLE = "unreadable"
    NO_TASK = "no_task"

    # --- Given back; another worker gets it
    WORKER_LOST = "worker_lost"
    CONNECTION_LOST = "connection_lost"
    SHUTDOWN = "shutdown"
    #: The broker did not confirm its copy in a delay queue, as while an alarm is on.
    NOT_CONFIRMED = "not_confirmed"
    #: What is stored of it cannot be read, or its revocation cannot be stored.
    STORE_UNREACHABLE = "store_unreachable"

    # --- What the broker says
    #: Also said by a worker, of a copy whose originals were given back too often.
    DELIVERY_LIMIT = "delivery_limit"
    MAXLEN = "maxlen"
    #: A message of the dead-letter queue that the broker says nothing about.
    UNKNOWN = "unknown"

    @property
    def words(self) -> str:
        return self.value.replace("_", " ")
