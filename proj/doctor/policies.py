"""Checks of policies that weaken the guarantees of our queues.

An operator's policies add to a queue's arguments, or override them. The management API reports them up to
5 seconds late.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from proj import queues
from proj.doctor.finding import Finding, Level, ok
from proj.doctor.subject import Subject
from proj.errors import ManagementUnavailable

#: Queue names in one finding; there are 28 delay queues.
_SHOWN: Final = 3


def policies(subject: Subject) -> Iterator[Finding]:
    """Check that no policy weakens a queue of ours."""
    harmed: dict[tuple[Harm, str, str], list[str]] = {}
    for name in (*(queue.name for queue in subject.topology.queues), *queues.DELAY_QUEUES):
        queue = subject.queues.get(name, {})
        for key, value in _policy(queue).items():
            harm = _harm(subject, queue, key, value)
            if harm:
                fix = _clear(subject, queue, key)
                harmed.setdefault((harm, f"a policy sets {key} to {value} on", fix), []).append(name)
    for (harm, what, fix), names in harmed.items():
        yield Finding(harm.level, f"{what} {_enumerated(names)}", harm.why, fix)
    if all(harm.level == Level.INFO for harm, _, _ in harmed):
        yield ok("no policy weakens the queues")


@dataclass(frozen=True)
class Harm:
    """The effect of a policy's key on a queue."""

    level: Level
    why: str


def _harm(subject: Subject, queue: dict[str, Any], key: str, value: Any) -> Harm | None:
    """The effect of a policy's key on a quorum queue; None when it is harmless.

    The policy's `overflow` overrides the queue's argument, the queue's own dead-letter arguments override the
    policy's, and of most numbers the smaller one counts (`rabbit_quorum_queue:gather_policy_config/2`).
    """
    arguments = queue["arguments"]
    dead, delay = queue["name"] == queues.dead_queue.name, queue["name"] in queues.DELAY_QUEUES
    match key:
        case "expires":
            return Harm(Level.ERROR, "a queue that is unused for that long is deleted with its messages")
        case "overflow" if value != arguments.get("x-overflow", value):
            return Harm(Level.ERROR, "a message may be lost on its way to the dead-letter queue")
        case "max-length" | "max-length-bytes":
            if _policy(queue).get("overflow", arguments.get("x-overflow")) == "reject-publish":
                return Harm(Level.INFO, "a full queue refuses messages, and the publisher gets an error")
            return Harm(Level.ERROR, "a full queue drops its oldest message, and no one notices")
        case "message-ttl" if dead:
            return Harm(Level.ERROR, "dead letters are deleted after that time")
        case "message-ttl" if not delay:
            return Harm(Level.WARNING, "a task that waits longer is not executed, but becomes a dead letter")
        case "message-ttl" if value < arguments.get("x-message-ttl", value):
            return Harm(Level.WARNING, "delayed messages arrive too early")
        case "delivery-limit" if not delay and _lowers(subject, value, arguments.get("x-delivery-limit")):
            if dead:
                return Harm(Level.ERROR, "dead letters are deleted after they were read that often")
            return Harm(Level.WARNING, "a message becomes a dead letter after fewer requeues")
    return None


def _lowers(subject: Subject, limit: int, own: int | None) -> bool:
    # Since 4.0 a negative limit means unlimited; before, it drops at the first requeue.
    return own is not None and limit < own and (limit >= 0 or subject.version < (4, 0))


def _policy(queue: dict[str, Any]) -> dict[str, Any]:
    """The effective policy of a queue; RabbitMQ 3.10 reports an empty list when there is none."""
    return queue.get("effective_policy_definition") or {}


def _enumerated(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'queue' if len(names) == 1 else 'queues'} {shown}{more}"


def _clear(subject: Subject, queue: dict[str, Any], key: str) -> str:
    """How to remove the policy that has this key."""
    vhost = shlex.quote(subject.management.vhost)
    for field, kind, command in (
        ("operator_policy", "operator-policies", "clear_operator_policy"),
        ("policy", "policies", "clear_policy"),
    ):
        name = queue.get(field)
        try:
            if not name or key not in subject.ask(subject.management.path(kind, name))["definition"]:
                continue
        except ManagementUnavailable:  # deleted meanwhile, or not visible to this user
            continue
        return (
            f"exclude the queues of proj from policy {name}, or clear it with: "
            f"rabbitmqctl {command} -p {vhost} {shlex.quote(name)}"
        )
    return (
        "exclude the queues of proj from the policy; list policies with: rabbitmqctl list_policies -p "
        + vhost
    )
