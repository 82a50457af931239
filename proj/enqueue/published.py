"""How the publish of one request of a batch ended, and the errors that say why."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from celery.canvas import Signature

from proj.errors import BrokerRefused, OutcomeUnknown, ProjError


class Status(StrEnum):
    """The outcome of a publish."""

    #: The broker is responsible for the message.
    CONFIRMED = "confirmed"
    #: The message is certainly in no queue.
    REFUSED = "refused"
    #: No confirm came, and the message may be in a queue.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Published:
    """How the publish of one request ended."""

    request: Signature
    status: Status
    #: The name of the task; empty for a request that is no signature.
    task: str
    #: The id of the message; None for a request that was refused before it had one.
    id: str | None
    #: Why it was not confirmed: what `.delay()` would have raised.
    error: ProjError | None = None
    #: What the caller of `Batch.put` passed.
    key: Any = None


#: Why the broker did not confirm a message for several queues: the others may have it.
FULL: Final = "since one of its queues is full"


def full_queue(task: str) -> BrokerRefused:
    """For a message that the broker has refused with a nack."""
    return BrokerRefused(
        f"{task}: the broker refused the message: the queue is full, or lacks the majority of its nodes",
        "retry when workers have made room or the nodes are up",
    )


def no_route(task: str) -> BrokerRefused:
    """For a message that the broker has returned."""
    return BrokerRefused(
        f"{task}: no queue takes the message", "does its queue exist, bound to its exchange?"
    )


def unknown(task: str, task_id: str, why: str = "") -> OutcomeUnknown:
    """For a message that may be in a queue; `why` the broker did not confirm it, if that is known."""
    return OutcomeUnknown(
        f"{task}: the broker did not confirm message {task_id}{f', {why}' if why else ''}",
        f"it may be in the queue; to repeat it with --id {task_id} is safe",
    )
