"""The broker itself: which it is, what it can do, and how much room it has."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from proj.doctor.finding import Finding, error, info, ok, skipped, warning
from proj.doctor.subject import Subject
from proj.enqueue import priorities

#: The oldest that keeps a dead letter until it has arrived: at-least-once dead lettering is new in it
#: (https://www.rabbitmq.com/blog/2022/03/29/at-least-once-dead-lettering).
OLDEST: Final = (3, 10)

#: The feature flag without which 3.10 and 3.11 move dead letters as before, and may lose them on the way
#: (`rabbit_quorum_queue:dlh/5`); later versions demand it.
DEAD_LETTER_FLAG: Final = "stream_queue"

#: Feature flags that are off for a reason: this one was an experiment until 4.2, and cannot be taken back.
_LEFT_OFF: Final = frozenset({"khepri_db"})

#: Share of the memory limit from which on it is close.
_MUCH_MEMORY: Final = 0.8

#: Bytes of disk before the alarm: two write-ahead logs of the quorum queues, which are 512 MiB each
#: (https://www.rabbitmq.com/docs/quorum-queues#segment-entry-count).
_LITTLE_DISK: Final = 2**30

#: Seconds that two clocks may differ: the broker's is known to half a second.
CLOCK_TOLERANCE: Final = 2


@dataclass(frozen=True)
class Trap:
    """What surprises people on some versions; the topology of `proj` is safe from it."""

    since: tuple[int, int]
    before: tuple[int, int]
    what: str
    why: str
    fix: str


TRAPS: Final = (
    Trap(
        (3, 10),
        priorities.KNOWN_SINCE,
        "this version ignores the priority of messages in quorum queues",
        "a message with a priority is accepted, and served in its turn",
        "4.0 and later serve priorities above 4 first; a queue of its own for urgent tasks works everywhere",
    ),
    Trap(
        (3, 10),
        (4, 0),
        "this version gives messages back without limit, in quorum queues that say no x-delivery-limit",
        "a message that kills its workers goes round for ever there; the queues of proj say their limit",
        "give quorum queues of your own an x-delivery-limit, but not -1, which drops at the first return",
    ),
    Trap(
        (4, 0),
        (99, 0),
        "this version drops messages at their 21st return, in quorum queues with no x-delivery-limit and no "
        "dead-letter exchange",
        "they are lost there without a trace; the queues of proj say both",
        "give quorum queues of your own a dead-letter exchange",
    ),
    Trap(
        (4, 3),
        (99, 0),
        "this version refuses transient queues that are not exclusive",
        "Celery before 5.7 and its monitors declare such queues; this Celery does not",
        "keep control_queue_exclusive and event_queue_exclusive on, and Celery at 5.7 or later elsewhere",
    ),
)


def reachable(subject: Subject) -> Iterator[Finding]:
    """Whether the broker lets us in."""
    problem = subject.unreachable
    if problem:
        yield error(problem.message, "no task can be enqueued or executed", problem.hint)
        return
    broker = subject.broker
    where = f"{broker.hostname}:{broker.port}, virtual host {broker.virtual_host!r}"
    yield ok(f"the broker answers at {where}, and lets user {broker.userid!r} in")


def version(subject: Subject) -> Iterator[Finding]:
    """Whether the broker is one that the promise can rest on, and its traps."""
    name = f"{subject.properties.get('product', '?')} {subject.properties.get('version', '?')}"
    if subject.properties.get("product") != "RabbitMQ" or subject.version < OLDEST:
        yield error(
            f"the broker is {name}, not RabbitMQ 3.10 or later",
            "it may lose a message on its way to the dead-letter queue",
            "install a newer one, such as: docker run -p 5672:5672 -p 15672:15672 rabbitmq:4-management",
        )
        return
    yield ok(f"the broker is {name}")
    for trap in TRAPS:
        if trap.since <= subject.version < trap.before:
            yield info(trap.what, trap.why, trap.fix)


def management(subject: Subject) -> Iterator[Finding]:
    """Whether the management API can be asked."""
    if subject.unmanaged:
        yield skipped(
            "queues, nodes and policies: not looked at in full",
            subject.unmanaged.message,
            subject.unmanaged.hint,
        )
    else:
        yield ok(f"the management API answers at {subject.management.url}")


def feature_flags(subject: Subject) -> Iterator[Finding]:
    """Whether what the promise rests on is switched on."""
    off = {flag["name"] for flag in subject.ask("feature-flags") if _is_off(flag)}
    vhost = shlex.quote(subject.management.vhost)
    if DEAD_LETTER_FLAG in off:
        yield error(
            f"the feature flag {DEAD_LETTER_FLAG} is off",
            "a message may be lost on its way to the dead-letter queue, whatever the queue demands",
            # A queue asks for the flag when it is declared, and when a policy comes or goes; tried on 3.10.8.
            "switch it on, and let a policy come and go, so that the queue looks again, with: "
            f"rabbitmqctl enable_feature_flag {DEAD_LETTER_FLAG} && "
            f"rabbitmqctl set_policy -p {vhost} --apply-to queues proj-once . "
            "'{\"max-length\":2000000000}' && "
            f"rabbitmqctl clear_policy -p {vhost} proj-once",
        )
    elif off:
        yield info(
            f"feature flags are off: {', '.join(sorted(off))}",
            "a later RabbitMQ does not start before they are on",
            "switch them on with: rabbitmqctl enable_feature_flag all",
        )
    else:
        yield ok("all stable feature flags are on")


def _is_off(flag: dict[str, Any]) -> bool:
    return (
        flag.get("state") == "disabled"
        and flag.get("stability") == "stable"
        and flag["name"] not in _LEFT_OFF
    )


def nodes(subject: Subject) -> Iterator[Finding]:
    """Whether all nodes run and see each other."""
    found = subject.ask("nodes")
    for node in found:
        if not node.get("running"):
            yield error(
                f"node {node['name']} does not run",
                "quorum queues stop when most of their members are gone",
                f"start it on its machine with: rabbitmqctl -n {node['name']} start_app",
            )
        elif node.get("partitions"):
            yield error(
                f"node {node['name']} has lost sight of {', '.join(node['partitions'])}",
                "each side of a partition goes on alone",
                f"mend the network, then: rabbitmqctl -n {node['name']} stop_app && "
                f"rabbitmqctl -n {node['name']} start_app",
            )
    if len(found) == 1:
        yield info(
            "the broker is a single node",
            "its queues have one member: a power cut may take what its disk had not written yet",
            "run a cluster of three, if that matters; see docs/guarantees.md",
        )
    elif all(node.get("running") for node in found):
        yield ok(f"all {len(found)} nodes run")


def memory(subject: Subject) -> Iterator[Finding]:
    """How far each node is from its memory alarm."""
    for node in _running_nodes(subject):
        name, used, limit = node["name"], node.get("mem_used"), node.get("mem_limit")
        # 0 is how publishing is switched off by hand; without the alarm, the node does not know its limit.
        if used is None or limit is None or not (limit or node.get("mem_alarm")):
            yield _not_collected("memory", name)
            continue
        what = f"node {name} uses {_size(used)} of memory, and raises its alarm at {_size(limit)}"
        more = f"or give it more with: rabbitmqctl -n {name} set_vm_memory_high_watermark 0.6"
        if node.get("mem_alarm"):
            yield error(
                f"the memory alarm of node {name} is on: {_size(used)} are used, {_size(limit)} allowed",
                "the broker takes no message until it is over: every publish waits, and ends in doubt",
                f"let workers empty the queues, {more}",
            )
        elif used > _MUCH_MEMORY * limit:
            yield warning(what, "then it takes no message", f"let workers empty the queues, {more}")
        else:
            yield ok(what)


def disk(subject: Subject) -> Iterator[Finding]:
    """How far each node is from its disk alarm."""
    for node in _running_nodes(subject):
        name, free, limit = node["name"], node.get("disk_free"), node.get("disk_free_limit")
        if not isinstance(free, int) or not isinstance(limit, int):
            yield _not_collected("disk", name)
            continue
        what = f"node {name} has {_size(free)} of free disk, and raises its alarm below {_size(limit)}"
        fix = f"free some on its machine; what takes it is seen with: du -xsh {node.get('db_dir', '/')}"
        if node.get("disk_free_alarm"):
            yield error(
                f"the disk alarm of node {name} is on: {_size(free)} are free, {_size(limit)} demanded",
                "the broker takes no message until it is over: every publish waits, and ends in doubt",
                fix,
            )
        elif free < limit + _LITTLE_DISK:
            yield warning(what, "then it takes no message; its logs alone may take 1 GiB at once", fix)
        else:
            yield ok(what)


def _running_nodes(subject: Subject) -> list[dict[str, Any]]:
    return [node for node in subject.ask("nodes") if node.get("running")]


def _not_collected(what: str, node: str) -> Finding:
    return skipped(
        f"{what} of node {node}: not looked at", "it has just started, and does not know yet", "run it again"
    )


def clock(subject: Subject) -> Iterator[Finding]:
    """Whether this machine and the broker agree on the time."""
    before = time.time()
    said, after = subject.clock(), time.time()
    ahead = said - (before + after) / 2
    # It was told at some time in between.
    if abs(ahead) > CLOCK_TOLERANCE + (after - before) / 2:
        yield clock_warning("the broker's clock", ahead)
    else:
        yield ok(f"the broker's clock and this machine's agree, within {CLOCK_TOLERANCE} s")


def clock_warning(whose: str, ahead: float) -> Finding:
    """That a clock differs from this machine's, by so many seconds."""
    return warning(
        f"{whose} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's",
        "times are told by one clock and kept by another: --eta, --expires, and when results were stored",
        "set the clocks of both by network time, with: timedatectl set-ntp true",
    )


def _size(number: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
