"""Checks of exchanges, queues and bindings on the broker against `proj.queues`.

Each queue or exchange is looked up first, and if it exists, declared: that changes nothing, and fails when
the arguments differ. Only the management API reports all differences, and the bindings. It is also used
instead of declaring when the user may not declare.
"""

import shlex
from collections.abc import Iterator
from typing import Any, Final

from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed
from kombu import Exchange, Queue

from proj import queues
from proj.doctor.finding import Finding, error, ok, warning
from proj.doctor.subject import Subject
from proj.logs.printable import counted
from proj.rabbitmq import failures, topology

_DECLARE: Final = "start a worker, which declares it: celery -A proj worker"
_BIND: Final = "start a worker, which binds it: celery -A proj worker"

_REFUSED: Final = "workers do not start, and publishes are refused, until its arguments match"


def exchanges(subject: Subject) -> Iterator[Finding]:
    """Check that the exchanges exist as declared."""
    for exchange in subject.topology.exchanges:
        bound = {each.destination for each in subject.topology.bindings if each.source == exchange.name}
        differs = _declared(subject, exchange)
        if differs:
            path = f"{subject.management.url}/api/{subject.management.path('exchanges', exchange.name)}"
            yield error(
                f"exchange {exchange.name} differs from its declaration: {differs}",
                _REFUSED,
                "stop the workers, delete the exchange (it holds no messages), and start them again; delete "
                f"with: curl -u {shlex.quote(subject.management.user)} -X DELETE {shlex.quote(path)}",
            )
        elif differs is not None:
            yield ok(f"exchange {exchange.name} exists as declared")
        elif any(subject.exists(queue) for queue in subject.topology.queues if queue.name in bound):
            yield error(
                f"exchange {exchange.name} is missing",
                "messages published to it are refused, and dead letters for it wait in their queues",
                _DECLARE,
            )


def queues_(subject: Subject) -> Iterator[Finding]:
    """Check that the queues exist with the declared arguments."""
    for queue in subject.topology.queues:
        differs = _declared(subject, queue)
        if differs is None:
            yield warning(
                f"queue {queue.name} is missing",
                "it is declared when needed; if it existed before, its messages are lost",
                _DECLARE,
            )
        elif differs:
            yield error(
                f"queue {queue.name} differs from its declaration: {_differences(subject, queue) or differs}",
                _REFUSED,
                _migration(subject, queue.name),
            )
        else:
            yield ok(f"queue {queue.name} exists as declared")


def _declared(subject: Subject, entity: Queue | Exchange) -> str | None:
    """The broker's words about a difference; empty when there is none, None when the entity is missing."""
    with subject.channel() as channel:
        mine = entity(channel)
        declare = mine.queue_declare if isinstance(entity, Queue) else mine.declare
        try:
            declare(passive=True)
            declare()
        except NotFound:
            return None
        except PreconditionFailed as differs:
            return failures.words(differs)
        except AccessRefused:
            if subject.unmanaged:
                raise
            return _differences(subject, entity)
    return ""


def _differences(subject: Subject, entity: Queue | Exchange) -> str:
    """All differences, as "NAME is X, not Y"; empty without the management API."""
    if subject.unmanaged:
        return ""
    wants: dict[str, Any] = {"durable": entity.durable, "auto_delete": entity.auto_delete}
    if isinstance(entity, Queue):
        found = subject.queues.get(entity.name)
        wants |= entity.queue_arguments
    else:
        path = subject.management.path("exchanges")
        found = {each["name"]: each for each in subject.ask(path)}.get(entity.name)
        wants |= {"type": entity.type} | (entity.arguments or {})
    if found is None:
        return ""
    type_ = "x-queue-type" if isinstance(entity, Queue) else "type"
    has = {"durable": found["durable"], "auto_delete": found["auto_delete"], type_: found.get("type")}
    has |= found["arguments"]
    return ", ".join(
        f"{name} is {has.get(name, 'not set')}, not {wants.get(name, 'unset')}"
        for name in sorted(has.keys() | wants.keys())
        if has.get(name) != wants.get(name)
    )


def _migration(subject: Subject, name: str) -> str:
    with subject.channel() as channel:
        found = topology.look(channel, name)
    if found.message_count:
        messages = counted(found.message_count, "message")
        return f"move its {messages} and declare it again, as in docs/migration.md"
    # Those that are held are not in that count. The management API counts them, up to 5 s late.
    path = subject.management.path("queues", name, columns="name,messages")
    if found.consumer_count or (not subject.unmanaged and subject.ask(path).get("messages")):
        return "its workers may hold messages: stop them, and look again with: proj doctor"
    delete = f"rabbitmqctl delete_queue -p {shlex.quote(subject.broker.virtual_host)} {shlex.quote(name)}"
    return f"it is empty: stop the workers, delete it, and start them again; delete with: {delete}"


def bindings(subject: Subject) -> Iterator[Finding]:
    """Check that the queues are bound to their exchanges."""
    bound = _bound(subject)
    for source, queue, key in subject.topology.bindings:
        if not {source, queue} <= _names(subject):
            continue  # reported by another check
        if (source, queue, key) in bound:
            yield ok(f"queue {queue} is bound to exchange {source}")
        elif queue == queues.dead_queue.name:
            yield error(
                f"queue {queue} is not bound to exchange {source}",
                "dead letters stay in the queues that they died in, out of sight",
                _BIND,
            )
        else:
            yield error(
                f"queue {queue} is not bound to exchange {source} with key {key}",
                "programs that published before are refused until they reconnect",
                _BIND,
            )


def delays(subject: Subject) -> Iterator[Finding]:
    """Check that the delay queues exist, for delayed messages and retries."""
    exchange = Exchange(queues.DELAY_EXCHANGE, type="topic")
    missing = [name for name in queues.DELAY_QUEUES if not subject.exists(Queue(name))]
    if not subject.exists(exchange) and len(missing) == len(queues.DELAY_QUEUES):
        yield warning("the delay queues are missing", "they are declared when needed", _DECLARE)
        return
    if missing or not subject.exists(exchange):
        yield error(
            f"parts of the delay queues are missing: {', '.join(missing) or exchange.name}",
            "delayed messages and retries are refused, or get stuck",
            _DECLARE,
        )
        return
    yield ok(f"the {len(queues.DELAY_QUEUES)} delay queues exist")


def delay_routes(subject: Subject) -> Iterator[Finding]:
    """Check that the delay queues are quorum queues and lead back to the work queues."""
    if not subject.queues.keys() & set(queues.DELAY_QUEUES):
        return  # reported by another check
    types = [str(subject.queues[name].get("type")) for name in queues.DELAY_QUEUES if name in subject.queues]
    others = [each for each in types if each != queues.DELAY_QUEUE_TYPE]
    if others:
        yield warning(
            f"{len(others)} of the delay queues are {others[0]} queues, not {queues.DELAY_QUEUE_TYPE}",
            "a broker that crashes may lose messages between them; they were declared by another Celery "
            "application in this virtual host",
            "set broker_native_delayed_delivery_queue_type to 'quorum' there, or use another virtual host",
        )
    else:
        yield ok(f"the delay queues are {queues.DELAY_QUEUE_TYPE} queues")
    lost = [each for each in subject.topology.delay_bindings if each not in _bound(subject)]
    if lost:
        yield error(
            "the delay queues are not bound to " + ", ".join(to for _, to, _ in lost),
            "a message whose delay is over gets stuck, out of sight",
            _BIND,
        )


def _bound(subject: Subject) -> set[tuple[str, str, str]]:
    return {
        (each["source"], each["destination"], each["routing_key"])
        for each in subject.ask(subject.management.path("bindings"))
    }


def _names(subject: Subject) -> set[str]:
    """Names of all queues and exchanges of the virtual host."""
    exchanges = subject.ask(subject.management.path("exchanges"))
    return {*subject.queues, *(each["name"] for each in exchanges)}
