"""Checks of the broker itself: version, features, nodes, alarms and clock."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from proj.doctor.finding import Finding, error, info, ok, skipped, warning
from proj.doctor.subject import Subject
from proj.enqueue import priorities

#: The first version with at-least-once dead lettering, so that no dead letter is lost on its way
#: (https://www.rabbitmq.com/blog/2022/03/29/at-least-once-dead-lettering).
OLDEST: Final = (3, 10)

#: The feature flag that at-least-once dead lettering needs on 3.10 and 3.11 (`rabbit_quorum_queue:dlh/5`);
#: later versions require it.
DEAD_LETTER_FLAG: Final = "stream_queue"

#: Feature flags that may stay off: this one was experimental until 4.2, and cannot be disabled again.
_LEFT_OFF: Final = frozenset({"khepri_db"})

#: Share of the memory limit above which to warn.
_MUCH_MEMORY: Final = 0.8

#: Bytes above the disk alarm below which to warn: two write-ahead logs of quorum queues, 512 MiB each
#: (https://www.rabbitmq.com/docs/quorum-queues#segment-entry-count).
_LITTLE_DISK: Final = 2**30

#: Seconds that two clocks may differ; the broker's is only known to half a second.
CLOCK_TOLERANCE: Final = 2


@dataclass(frozen=True)
class Trap:
    """A pitfall of some RabbitMQ versions, for queues other than those of `proj`."""

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
        "messages are delivered in order, whatever their priority",
        "use RabbitMQ 4.0 or later, or a separate queue for urgent tasks",
    ),
    Trap(
        (3, 10),
        (4, 0),
        "this version requeues messages without limit in quorum queues that have no x-delivery-limit",
        "a message that kills its workers is redelivered for ever; the queues of proj have a limit",
        "give your own quorum queues an x-delivery-limit, but not -1, which drops at the first requeue",
    ),
    Trap(
        (4, 0),
        (99, 0),
        "this version drops a message at its 21st requeue in quorum queues that have no x-delivery-limit and "
        "no dead-letter exchange",
        "it is lost without a trace; the queues of proj have both",
        "give your own quorum queues a dead-letter exchange",
    ),
    Trap(
        (4, 3),
        (99, 0),
        "this version refuses transient queues that are not exclusive",
        "Celery before 5.7 declares such queues; the Celery of proj does not",
        "keep control_queue_exclusive and event_queue_exclusive on, and use Celery 5.7 or later elsewhere",
    ),
)


def reachable(subject: Subject) -> Iterator[Finding]:
    """Check that the broker accepts a connection."""
    problem = subject.unreachable
    if problem:
        yield error(problem.message, "no task can be enqueued or executed", problem.hint)
        return
    broker = subject.broker
    where = f"{broker.hostname}:{broker.port}, virtual host {broker.virtual_host!r},"
    yield ok(f"the broker at {where} accepts user {broker.userid!r}")


def version(subject: Subject) -> Iterator[Finding]:
    """Check that the broker's version can keep the promise, and list its pitfalls."""
    name = f"{subject.properties.get('product', '?')} {subject.properties.get('version', '?')}"
    if subject.properties.get("product") != "RabbitMQ" or subject.version < OLDEST:
        yield error(
            f"the broker is {name}, not RabbitMQ 3.10 or later",
            "it may lose a message on its way to the dead-letter queue",
            "install a newer one, for example: docker run -p 5672:5672 -p 15672:15672 rabbitmq:4-management",
        )
        return
    yield ok(f"the broker is {name}")
    for trap in TRAPS:
        if trap.since <= subject.version < trap.before:
            yield info(trap.what, trap.why, trap.fix)


def management(subject: Subject) -> Iterator[Finding]:
    """Check that the management API is available."""
    if subject.unmanaged:
        yield skipped(
            "queues, nodes and policies: not fully checked",
            subject.unmanaged.message,
            subject.unmanaged.hint,
        )
    else:
        yield ok(f"the management API answers at {subject.management.url}")


def feature_flags(subject: Subject) -> Iterator[Finding]:
    """Check that the feature flags are on."""
    off = {flag["name"] for flag in subject.ask("feature-flags") if _is_off(flag)}
    vhost = shlex.quote(subject.management.vhost)
    if DEAD_LETTER_FLAG in off:
        yield error(
            f"the feature flag {DEAD_LETTER_FLAG} is off",
            "a message may be lost on its way to the dead-letter queue, whatever the queue's arguments",
            # A queue reads the flag when it is declared and when a policy changes; tried on 3.10.8.
            "switch it on, then set and clear a policy so that the queue reads it again: "
            f"rabbitmqctl enable_feature_flag {DEAD_LETTER_FLAG} && "
            f"rabbitmqctl set_policy -p {vhost} --apply-to queues proj-once . "
            "'{\"max-length\":2000000000}' && "
            f"rabbitmqctl clear_policy -p {vhost} proj-once",
        )
    elif off:
        yield info(
            f"feature flags are off: {', '.join(sorted(off))}",
            "a later RabbitMQ does not start until they are on",
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
    """Check that all nodes run and that none is partitioned."""
    found = subject.ask("nodes")
    for node in found:
        if not node.get("running"):
            yield error(
                f"node {node['name']} is not running",
                "quorum queues stop when most of their members are down",
                f"if only its application is stopped, rabbitmqctl -n {node['name']} start_app is enough; "
                "else start RabbitMQ on its machine with: systemctl start rabbitmq-server",
            )
        elif node.get("partitions"):
            yield error(
                f"node {node['name']} is partitioned from {', '.join(node['partitions'])}",
                "the two sides work independently, and disagree",
                f"fix the network, then: rabbitmqctl -n {node['name']} stop_app && "
                f"rabbitmqctl -n {node['name']} start_app",
            )
    if len(found) == 1:
        yield info(
            "the broker is a single node",
            "its queues have one member: a power cut may lose what its disk had not written yet",
            "run a cluster of three if that matters; see docs/guarantees.md",
        )
    elif all(node.get("running") for node in found):
        yield ok(f"all {len(found)} nodes run")


def memory(subject: Subject) -> Iterator[Finding]:
    """Check each node's distance to its memory alarm."""
    for node in _running_nodes(subject):
        name, used, limit = node["name"], node.get("mem_used"), node.get("mem_limit")
        # A limit of 0 blocks publishers on purpose; 0 without an alarm means that it is not known yet.
        if used is None or limit is None or not (limit or node.get("mem_alarm")):
            yield _not_collected("memory", name)
            continue
        what = f"node {name} uses {_size(used)} of memory and raises its alarm at {_size(limit)}"
        more = f"or raise its limit with: rabbitmqctl -n {name} set_vm_memory_high_watermark 0.6"
        if node.get("mem_alarm"):
            yield error(
                f"the memory alarm of node {name} is on: {_size(used)} of {_size(limit)} are used",
                "the broker accepts no messages until it ends: every publish times out, its outcome unknown",
                f"let workers empty the queues, {more}",
            )
        elif used > _MUCH_MEMORY * limit:
            yield warning(what, "the alarm stops all publishing", f"let workers empty the queues, {more}")
        else:
            yield ok(what)


def disk(subject: Subject) -> Iterator[Finding]:
    """Check each node's distance to its disk alarm."""
    for node in _running_nodes(subject):
        name, free, limit = node["name"], node.get("disk_free"), node.get("disk_free_limit")
        if not isinstance(free, int) or not isinstance(limit, int):
            yield _not_collected("disk", name)
            continue
        what = f"node {name} has {_size(free)} of free disk and raises its alarm below {_size(limit)}"
        fix = f"free disk space on its machine; measure its data with: du -xsh {node.get('db_dir', '/')}"
        if node.get("disk_free_alarm"):
            yield error(
                f"the disk alarm of node {name} is on: {_size(free)} are free, {_size(limit)} are required",
                "the broker accepts no messages until it ends: every publish times out, its outcome unknown",
                fix,
            )
        elif free < limit + _LITTLE_DISK:
            yield warning(what, "the alarm stops all publishing; its logs may grow by 1 GiB at once", fix)
        else:
            yield ok(what)


def _running_nodes(subject: Subject) -> list[dict[str, Any]]:
    return [node for node in subject.ask("nodes") if node.get("running")]


def _not_collected(what: str, node: str) -> Finding:
    return skipped(
        f"{what} of node {node}: not checked", "it has just started and has no figures yet", "run this again"
    )


def clock(subject: Subject) -> Iterator[Finding]:
    """Check the broker's clock against this machine's."""
    before = time.time()
    broker_time, after = subject.clock(), time.time()
    ahead = broker_time - (before + after) / 2
    # The broker read its clock somewhere between the two.
    if abs(ahead) > CLOCK_TOLERANCE + (after - before) / 2:
        yield clock_warning("the broker's clock", ahead)
    else:
        yield ok(f"the broker's clock and this machine's agree, within {CLOCK_TOLERANCE} s")


def clock_warning(whose: str, ahead: float) -> Finding:
    """A warning about a clock that is `ahead` seconds ahead of this machine's."""
    return warning(
        f"{whose} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's",
        "--eta, --expires and the times of results are set by one clock and read by another",
        "synchronise both clocks with network time: timedatectl set-ntp true",
    )


def _size(number: float) -> str:
    """Bytes in the fitting unit."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
