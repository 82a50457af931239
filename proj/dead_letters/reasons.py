"""The reasons why a message became a dead letter or was requeued: the one list for code, logs and docs.

Users see the strings: in log lines, in stored results and in `proj dead --reason`.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a message became a dead letter or was requeued."""

    # --- The task was executed and is not retried
    FAILED = "failed"
    #: The task raised Celery's `Reject`; in the broker's header, any rejection by a worker.
    REJECTED = "rejected"
    TIME_LIMIT = "time_limit"

    # --- The task was never executed
    #: Its `expires` had passed at a worker, or its time to live in a queue.
    EXPIRED = "expired"
    UNKNOWN_TASK = "unknown_task"
    #: It names a task, but its arguments, headers or limits are invalid.
    INVALID = "invalid"
    #: Its body cannot be decoded.
    UNREADABLE = "unreadable"
    NO_TASK = "no_task"

    # --- Requeued, for another worker
    WORKER_LOST = "worker_lost"
    CONNECTION_LOST = "connection_lost"
    SHUTDOWN = "shutdown"
    #: The broker did not confirm its copy in a delay queue, for example during an alarm.
    NOT_CONFIRMED = "not_confirmed"
    #: Its state in the result store cannot be read, or its revocation not be stored.
    STORE_UNREACHABLE = "store_unreachable"

    # --- Reasons of the broker
    #: Also of a worker, for a copy whose originals were requeued too often.
    DELIVERY_LIMIT = "delivery_limit"
    MAXLEN = "maxlen"
    #: The message has no death header of the broker.
    UNKNOWN = "unknown"

    @property
    def words(self) -> str:
        """The reason within a sentence."""
        return self.value.replace("_", " ")
