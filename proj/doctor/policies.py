"""Policies of the broker that take from the queues what their arguments promise.

An operator sets them, and they hold beside a queue's arguments, or before them. The management API knows them
up to 5 seconds late.
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from proj import queues
from proj.doctor.finding import Finding, Level, ok
from proj.doctor.subject import Subject
from proj.errors import ManagementUnavailable

#: Names in one finding; the delay queues are 28.
_SHOWN: Final = 3


def policies(subject: Subject) -> Iterator[Finding]:
    """Whether policies leave the queues what their arguments promise."""
    harmed: dict[tuple[Harm, str, str], list[str]] = {}
    for name in (*(queue.name for queue in subject.topology.queues), *queues.DELAY_QUEUES):
        queue = subject.queues.get(name, {})
        for key, value in _policy(queue).items():
            harm = _harm(subject, queue, key, value)
            if harm:
                mended = _clear(subject, queue, key)
                harmed.setdefault((harm, f"a policy sets {key} to {value} on", mended), []).append(name)
    for (harm, what, mended), names in harmed.items():
        yield Finding(harm.level, f"{what} {_enumerated(names)}", harm.why, mended)
    if all(harm.level == Level.INFO for harm, _, _ in harmed):
        yield ok("no policy takes from the queues what they promise")


@dataclass(frozen=True)
class Harm:
    """What a policy does to a queue."""

    level: Level
    why: str


def _harm(subject: Subject, queue: dict[str, Any], key: str, value: Any) -> Harm | None:
    """What a key of a policy does to a queue, if anything.

    For quorum queues the policy's `overflow` wins over the queue's, of most numbers the smaller counts, and
    the queue's own dead-letter arguments win (`rabbit_quorum_queue:gather_policy_config/2`).
    """
    arguments = queue["arguments"]
    dead, delay = queue["name"] == queues.dead_queue.name, queue["name"] in queues.DELAY_QUEUES
    match key:
        case "expires":
            return Harm(Level.ERROR, "a queue that nobody uses for so long is deleted, with its messages")
        case "overflow" if value != arguments.get("x-overflow", value):
            return Harm(Level.ERROR, "a message may be lost on its way to the dead-letter queue")
        case "max-length" | "max-length-bytes":
            if _policy(queue).get("overflow", arguments.get("x-overflow")) == "reject-publish":
                return Harm(Level.INFO, "a full queue refuses messages, and the publisher is told")
            return Harm(Level.ERROR, "a full queue drops its oldest message, and nobody is told")
        case "message-ttl" if dead:
            return Harm(Level.ERROR, "dead letters are deleted after that time")
        case "message-ttl" if not delay:
            return Harm(
                Level.WARNING, "a task that waits for longer becomes a dead letter, and is not executed"
            )
        case "message-ttl" if value < arguments.get("x-message-ttl", value):
            return Harm(Level.WARNING, "delayed messages arrive too early")
        case "delivery-limit" if not delay and _lowers(subject, value, arguments.get("x-delivery-limit")):
            if dead:
                return Harm(Level.ERROR, "dead letters are deleted when they were looked at so often")
            return Harm(Level.WARNING, "a message that was given back so often is not tried again")
    return None


def _lowers(subject: Subject, limit: int, own: int | None) -> bool:
    # Since 4.0 a limit below 0 is none; before, it is the smallest of all.
    return own is not None and limit < own and (limit >= 0 or subject.version < (4, 0))


def _policy(queue: dict[str, Any]) -> dict[str, Any]:
    """What all policies of a queue come to; RabbitMQ 3.10 has a list when there is none."""
    return queue.get("effective_policy_definition") or {}


def _enumerated(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'queue' if len(names) == 1 else 'queues'} {shown}{more}"


def _clear(subject: Subject, queue: dict[str, Any], key: str) -> str:
    """How to be rid of the policy that has this key."""
    vhost = shlex.quote(subject.management.vhost)
    for field, kind, command in (
        ("operator_policy", "operator-policies", "clear_operator_policy"),
        ("policy", "policies", "clear_policy"),
    ):
        name = queue.get(field)
        try:
            if not name or key not in subject.ask(subject.management.path(kind, name))["definition"]:
                continue
        except ManagementUnavailable:  # gone meanwhile, or not to be seen by this user
            continue
        return (
            f"leave queues of proj out of policy {name}, or clear it with: "
            f"rabbitmqctl {command} -p {vhost} {shlex.quote(name)}"
        )
    return (
        "leave queues of proj out of the policy; policies are listed by: rabbitmqctl list_policies -p "
        + vhost
    )
