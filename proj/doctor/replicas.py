"""Checks of how many nodes of a cluster hold each quorum queue."""

import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

from proj import queues
from proj.doctor.finding import Finding, ok, warning
from proj.doctor.subject import Subject

#: Replicas that RabbitMQ gives a new quorum queue, where there are so many nodes: one of them may be lost.
USUAL: Final = 3

#: Queue names in one finding; there are 28 delay queues.
_SHOWN: Final = 3


def replicas(subject: Subject) -> Iterator[Finding]:
    """Check that the queues have a replica on three nodes of a cluster, or on both of two.

    A queue that was declared before the nodes joined has one, and keeps it.
    """
    nodes = [node["name"] for node in subject.ask("nodes")]
    wanted = min(len(nodes), USUAL)
    if wanted == 1:
        return
    ours = (*(queue.name for queue in subject.topology.queues), *queues.DELAY_QUEUES)
    members = {name: _members(subject.queues[name]) for name in ours if name in subject.queues}
    few = {name: found for name, found in members.items() if found and len(found) < wanted}
    if few:
        shown = ", ".join(list(few)[:_SHOWN])
        more = f" and {len(few) - _SHOWN} more" if len(few) > _SHOWN else ""
        least = min(map(len, few.values()))
        yield warning(
            f"{'queues' if len(few) > 1 else 'queue'} {shown}{more}: {least} of {wanted} replicas",
            f"the cluster has {len(nodes)} nodes, and the loss of one stops a queue, or loses its messages",
            "give each node a replica with: " + " && ".join(_grow(subject, few, nodes, wanted)),
        )
    elif members:
        yield ok(f"each queue has {wanted} replicas")


def _members(queue: dict[str, Any]) -> list[str]:
    """The nodes that hold a quorum queue; none of another queue, or if the API does not know them."""
    return list(queue.get("members") or []) if queue.get("type") == "quorum" else []


def _grow(subject: Subject, few: dict[str, list[str]], nodes: list[str], wanted: int) -> Iterator[str]:
    lacking = [
        [node for node in nodes if node not in members][: wanted - len(members)] for members in few.values()
    ]
    names = {re.sub(r"^(celery_delayed_)\d+$", r"\1\\d+", re.escape(name)) for name in few}
    vhost, pattern = re.escape(subject.management.vhost), "|".join(sorted(names))
    for node in sorted({node for each in lacking for node in each}):
        yield (
            f"rabbitmq-queues grow {shlex.quote(node)} all --vhost-pattern {shlex.quote(f'^{vhost}$')} "
            f"--queue-pattern {shlex.quote(f'^({pattern})$')}"
        )
