"""Exchanges, queues and bindings: what the broker has, compared with what `proj.queues` wants.

Over AMQP a declaration tells whether something is as wanted: it changes nothing that exists, and is refused
for what differs. So it is asked first whether it exists. All that differs, the bindings and the policies are
known to the management API alone.
"""

import shlex
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed
from kombu import Exchange, Queue

from proj import connection, queues
from proj.doctor.finding import Finding, error, info, ok, skipped, warning
from proj.doctor.subject import Subject

_WORKER: Final = "a worker declares it at its start: celery -A proj worker"

_REFUSED: Final = "workers do not start, and publishes are refused, while it has other arguments"


def exchanges(subject: Subject) -> Iterator[Finding]:
    """Whether the exchanges are there, as declared."""
    for exchange in {queue.exchange.name: queue.exchange for queue in queues.topology}.values():
        differs = _declared(subject, exchange)
        if differs is None:
            yield warning(f"exchange {exchange.name} is not there", "it is made when it is needed", _WORKER)
        elif differs:
            path = (
                f"{subject.management.url}/api/exchanges/{_quoted(subject)}/{quote(exchange.name, safe='')}"
            )
            yield error(
                f"exchange {exchange.name} is not as declared: {differs}",
                _REFUSED,
                "an exchange holds no message: stop the workers, delete it, and start them again; delete it "
                f"with: curl -u {shlex.quote(subject.management.user)} -X DELETE {shlex.quote(path)}",
            )
        else:
            yield ok(f"exchange {exchange.name} is there, as declared")


def queues_(subject: Subject) -> Iterator[Finding]:
    """Whether the queues are there, with the arguments that they are declared with."""
    for queue in queues.topology:
        try:
            differs = _declared(subject, queue)
        except AccessRefused as refused:
            yield skipped(
                f"the arguments of queue {queue.name}: not looked at",
                connection.words(refused),
                "ask as a user who may configure it",
            )
            continue
        if differs is None:
            yield warning(
                f"queue {queue.name} is not there",
                "it is made when it is needed; if it was there before, its messages are gone with it",
                _WORKER,
            )
        elif differs:
            yield error(
                f"queue {queue.name} is not as declared: {_differences(subject, queue) or differs}",
                _REFUSED,
                _migration(subject, queue.name),
            )
        else:
            yield ok(f"queue {queue.name} is there, as declared")


def _declared(subject: Subject, entity: Queue | Exchange) -> str | None:
    """What differs, in the words of the broker; None when it is not there. Raises `AccessRefused`."""
    with subject.channel() as channel:
        mine = entity(channel)
        declare = mine.queue_declare if isinstance(entity, Queue) else mine.declare
        try:
            declare(passive=True)
            declare()
        except NotFound:
            return None
        except PreconditionFailed as differs:
            return connection.words(differs)
    return ""


def _differences(subject: Subject, queue: Queue) -> str:
    """The arguments that differ, side by side; nothing when the management API does not tell."""
    if subject.unmanaged or queue.name not in subject.queues:
        return ""
    found = subject.queues[queue.name]
    has = {
        "durable": found["durable"],
        "auto_delete": found["auto_delete"],
        "x-queue-type": found.get("type"),
    }
    has |= found["arguments"]
    wants = {"durable": queue.durable, "auto_delete": queue.auto_delete, **queue.queue_arguments}
    return ", ".join(
        f"{name} is {has.get(name, 'not set')}, not {wants.get(name, 'unset')}"
        for name in sorted(has.keys() | wants.keys())
        if has.get(name) != wants.get(name)
    )


def _migration(subject: Subject, name: str) -> str:
    with subject.channel() as channel:
        count = channel.queue_declare(name, passive=True).message_count
    if count:
        return f"move its {count} messages and declare it anew, as docs/migration.md says"
    delete = f"rabbitmqctl delete_queue -p {shlex.quote(subject.broker.virtual_host)} {shlex.quote(name)}"
    return f"it is empty: stop the workers, and let them declare it anew when it is deleted with: {delete}"


def bindings(subject: Subject) -> Iterator[Finding]:
    """Whether messages find their way from the exchanges to the queues."""
    bound = _bound(subject)
    for source, queue, key in queues.bindings:
        if not {source, queue} <= _names(subject):
            continue  # that is said already
        if (source, queue, key) in bound:
            yield ok(f"queue {queue} is bound to exchange {source}")
        elif queue == queues.dead_queue.name:
            yield error(
                f"queue {queue} is not bound to exchange {source}",
                "dead letters go nowhere: each stays in the queue that it died in, out of sight",
                f"bound by a worker at its start: {_WORKER.rpartition(': ')[2]}",
            )
        else:
            yield error(
                f"queue {queue} is not bound to exchange {source} with key {key}",
                "programs that have published before are refused until they connect anew",
                f"bound by a worker at its start: {_WORKER.rpartition(': ')[2]}",
            )


def delays(subject: Subject) -> Iterator[Finding]:
    """Whether the broker can hold delayed messages, and retries."""
    exchange = Exchange(queues.DELAY_EXCHANGE, type="topic")
    missing = [name for name in queues.DELAY_QUEUES if not subject.exists(Queue(name))]
    if not subject.exists(exchange) and len(missing) == len(queues.DELAY_QUEUES):
        yield warning("the queues of delayed messages are not there", "they are made when needed", _WORKER)
        return
    if missing or not subject.exists(exchange):
        yield error(
            f"of the queues of delayed messages, these are not there: {', '.join(missing) or exchange.name}",
            "delayed messages and retries are refused, or stay where they are",
            _WORKER,
        )
        return
    yield ok(f"the {len(queues.DELAY_QUEUES)} queues of delayed messages are there")
    others = [name for name in queues.DELAY_QUEUES if _kind(subject, name) != queues.DELAY_QUEUE_TYPE]
    if others:
        yield warning(
            f"{len(others)} of the queues of delayed messages are {_kind(subject, others[0])} queues, "
            f"not {queues.DELAY_QUEUE_TYPE}",
            "a broker that crashes may lose a message on its way from one to the next; another Celery "
            "application in this virtual host has made them so",
            "set broker_native_delayed_delivery_queue_type to 'quorum' there, or use another virtual host",
        )
    lost = [each for each in queues.delay_bindings if each not in _bound(subject)]
    if lost:
        yield error(
            "no way leads from the queues of delayed messages to " + ", ".join(to for _, to, _ in lost),
            "a message whose delay is over stays behind the scenes",
            f"bound by a worker at its start: {_WORKER.rpartition(': ')[2]}",
        )


def policies(subject: Subject) -> Iterator[Finding]:
    """Whether policies leave the queues what their arguments promise."""
    harmless = True
    for name in (*(queue.name for queue in queues.topology), *queues.DELAY_QUEUES):
        queue = subject.queues.get(name)
        for key, value in (_effective_policy(queue) if queue else {}).items():
            finding = _harm(subject, queue or {}, key, value)
            if finding:
                harmless = False
                yield finding
    if harmless:
        yield ok("no policy takes from the queues what they promise")


def _harm(subject: Subject, queue: dict[str, Any], key: str, value: Any) -> Finding | None:
    """What a policy takes from a queue. For quorum queues the policy's `overflow` wins over the queue's, the
    smaller of most numbers counts, and the queue's own dead-letter arguments win
    (`rabbit_quorum_queue:gather_policy_config/2`).
    """
    name, arguments = queue["name"], queue["arguments"]
    what = f"a policy sets {key} to {value} on queue {name}"
    fix = _clear(subject, queue, key)
    dead, delay = name == queues.dead_queue.name, name in queues.DELAY_QUEUES
    refuses = _effective_policy(queue).get("overflow", arguments.get("x-overflow")) == "reject-publish"
    if key == "expires":
        return error(what, "the queue is deleted, with its messages, when nobody uses it for so long", fix)
    if key == "overflow" and value != "reject-publish" and "x-overflow" in arguments:
        return error(what, "then a message may be lost on its way to the dead-letter queue", fix)
    if key in {"max-length", "max-length-bytes"}:
        if not refuses:
            return error(what, "a full queue drops its oldest message, and nobody is told", fix)
        return info(what, "a full queue refuses messages; the publisher is told", fix)
    if key == "message-ttl" and dead:
        return error(what, "dead letters are deleted after that time", fix)
    if key == "message-ttl" and not delay:
        return warning(what, "a task that waits for longer is not executed, but becomes a dead letter", fix)
    if key == "message-ttl" and value < arguments.get("x-message-ttl", value):
        return warning(what, "delayed messages arrive too early", fix)
    if key == "delivery-limit" and not delay:
        return _harm_of_limit(subject, arguments.get("x-delivery-limit"), value, what, fix, dead=dead)
    return None


def _harm_of_limit(
    subject: Subject, own: int | None, value: int, what: str, fix: str, *, dead: bool
) -> Finding | None:
    # Since 4.0 a limit below 0 is none; before, it is the smallest of all.
    if own is None or value >= own or (value < 0 and subject.version >= (4, 0)):
        return None
    if dead:
        return error(what, "dead letters are deleted when they have been looked at so often", fix)
    return warning(
        what, f"a message that was given back so often becomes a dead letter, not after {own}", fix
    )


def _effective_policy(queue: dict[str, Any]) -> dict[str, Any]:
    # RabbitMQ 3.10 has a list where there is none.
    return queue.get("effective_policy_definition") or {}


def _clear(subject: Subject, queue: dict[str, Any], key: str) -> str:
    """How to be rid of the policy that has this key."""
    vhost = shlex.quote(subject.broker.virtual_host)
    for kind, command in (("operator_policy", "clear_operator_policy"), ("policy", "clear_policy")):
        policy = queue.get(kind)
        if policy and key in subject.ask_vhost(kind.replace("_", "-")[:-1] + "ies", policy)["definition"]:
            return (
                f"leave queues of proj out of policy {policy}, or clear it with: "
                f"rabbitmqctl {command} -p {vhost} {shlex.quote(policy)}"
            )
    return "leave queues of proj out of the policy"


def _bound(subject: Subject) -> set[tuple[str, str, str]]:
    vhost = _quoted(subject)
    return {
        (each["source"], each["destination"], each["routing_key"])
        for each in subject.ask(f"bindings/{vhost}")
    }


def _names(subject: Subject) -> set[str]:
    """Of the queues and exchanges that there are."""
    return {*subject.queues, *(each["name"] for each in subject.ask(f"exchanges/{_quoted(subject)}"))}


def _kind(subject: Subject, name: str) -> str:
    return str(subject.queues.get(name, {}).get("type"))


def _quoted(subject: Subject) -> str:
    return quote(subject.management.vhost, safe="")
