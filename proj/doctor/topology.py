"""Exchanges, queues and bindings: what the broker has, compared with what `proj.queues` wants.

Over AMQP a declaration tells whether something is as wanted: it changes nothing that exists, and is refused
for what differs. So it is asked first whether it exists. All that differs, and the bindings, are known
to the management API alone, which is asked for everything when the user may not declare.
"""

import shlex
from collections.abc import Iterator
from typing import Any, Final

from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed
from kombu import Exchange, Queue

from proj import queues
from proj.doctor.finding import Finding, error, ok, warning
from proj.doctor.subject import Subject
from proj.rabbitmq import failures, topology

_DECLARE: Final = "a worker declares it at its start: celery -A proj worker"
_BIND: Final = "a worker binds it at its start: celery -A proj worker"

_REFUSED: Final = "workers do not start, and publishes are refused, while it has other arguments"


def exchanges(subject: Subject) -> Iterator[Finding]:
    """Whether the exchanges are there, as declared."""
    for exchange in {queue.exchange.name: queue.exchange for queue in subject.topology.queues}.values():
        differs = _declared(subject, exchange)
        if differs:
            path = f"{subject.management.url}/api/{subject.management.path('exchanges', exchange.name)}"
            yield error(
                f"exchange {exchange.name} is not as declared: {differs}",
                _REFUSED,
                "an exchange holds no message: stop the workers, delete it, and start them again; delete it "
                f"with: curl -u {shlex.quote(subject.management.user)} -X DELETE {shlex.quote(path)}",
            )
        elif differs is not None:
            yield ok(f"exchange {exchange.name} is there, as declared")
        elif any(subject.exists(queue) for queue in subject.topology.queues if queue.exchange == exchange):
            yield error(
                f"exchange {exchange.name} is not there",
                "what is published to it is refused, and what died on its way to it waits",
                _DECLARE,
            )


def queues_(subject: Subject) -> Iterator[Finding]:
    """Whether the queues are there, with the arguments that they are declared with."""
    for queue in subject.topology.queues:
        differs = _declared(subject, queue)
        if differs is None:
            yield warning(
                f"queue {queue.name} is not there",
                "it is made when it is needed; if it was there before, its messages are gone with it",
                _DECLARE,
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
    """What differs, in the words of the broker; None when it is not there."""
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
    """What differs, side by side; nothing when the management API does not tell."""
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
        count = topology.look(channel, name).message_count
    if count:
        return f"move its {count} messages and declare it anew, as docs/migration.md says"
    delete = f"rabbitmqctl delete_queue -p {shlex.quote(subject.broker.virtual_host)} {shlex.quote(name)}"
    return f"it is empty: stop the workers, and let them declare it anew when it is deleted with: {delete}"


def bindings(subject: Subject) -> Iterator[Finding]:
    """Whether messages find their way from the exchanges to the queues."""
    bound = _bound(subject)
    for source, queue, key in subject.topology.bindings:
        if not {source, queue} <= _names(subject):
            continue  # that is said already
        if (source, queue, key) in bound:
            yield ok(f"queue {queue} is bound to exchange {source}")
        elif queue == queues.dead_queue.name:
            yield error(
                f"queue {queue} is not bound to exchange {source}",
                "dead letters go nowhere: each stays in the queue that it died in, out of sight",
                _BIND,
            )
        else:
            yield error(
                f"queue {queue} is not bound to exchange {source} with key {key}",
                "programs that have published before are refused until they connect anew",
                _BIND,
            )


def delays(subject: Subject) -> Iterator[Finding]:
    """Whether the broker can hold delayed messages, and retries."""
    exchange = Exchange(queues.DELAY_EXCHANGE, type="topic")
    missing = [name for name in queues.DELAY_QUEUES if not subject.exists(Queue(name))]
    if not subject.exists(exchange) and len(missing) == len(queues.DELAY_QUEUES):
        yield warning("the queues of delayed messages are not there", "they are made when needed", _DECLARE)
        return
    if missing or not subject.exists(exchange):
        yield error(
            f"of the queues of delayed messages, these are not there: {', '.join(missing) or exchange.name}",
            "delayed messages and retries are refused, or stay where they are",
            _DECLARE,
        )
        return
    yield ok(f"the {len(queues.DELAY_QUEUES)} queues of delayed messages are there")


def delay_routes(subject: Subject) -> Iterator[Finding]:
    """Whether delayed messages are kept by quorum queues, and come back from there."""
    if not subject.queues.keys() & set(queues.DELAY_QUEUES):
        return  # that is said already
    types = [str(subject.queues[name].get("type")) for name in queues.DELAY_QUEUES if name in subject.queues]
    others = [each for each in types if each != queues.DELAY_QUEUE_TYPE]
    if others:
        yield warning(
            f"{len(others)} of the queues of delayed messages are {others[0]} queues, "
            f"not {queues.DELAY_QUEUE_TYPE}",
            "a broker that crashes may lose a message on its way from one to the next; another Celery "
            "application in this virtual host has made them so",
            "set broker_native_delayed_delivery_queue_type to 'quorum' there, or use another virtual host",
        )
    else:
        yield ok(f"the queues of delayed messages are {queues.DELAY_QUEUE_TYPE} queues")
    lost = [each for each in subject.topology.delay_bindings if each not in _bound(subject)]
    if lost:
        yield error(
            "delayed messages find no way to " + ", ".join(to for _, to, _ in lost),
            "a message whose delay is over waits where nobody sees it",
            _BIND,
        )


def _bound(subject: Subject) -> set[tuple[str, str, str]]:
    return {
        (each["source"], each["destination"], each["routing_key"])
        for each in subject.ask(subject.management.path("bindings"))
    }


def _names(subject: Subject) -> set[str]:
    """Of the queues and exchanges that there are."""
    exchanges = subject.ask(subject.management.path("exchanges"))
    return {*subject.queues, *(each["name"] for each in exchanges)}
