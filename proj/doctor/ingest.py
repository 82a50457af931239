"""Checks of the routes of foreign messages, and of their queues."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from amqp.exceptions import AccessRefused, NotFound, ResourceLocked

from proj.doctor.finding import Finding, ok, warning
from proj.doctor.subject import Subject
from proj.errors import ConfigError, ProjError
from proj.ingest import routes
from proj.logs.printable import counted


def foreign_queues(subject: Subject) -> Iterator[Finding]:
    """Check the routes, and that somebody consumes those foreign queues that have messages."""
    try:
        found = routes.load(subject.app)
    except ConfigError as problem:
        if subject.settings.proj_ingest_routes:  # else nobody may want to use it
            yield warning(problem.message, "proj ingest does not start", problem.hint)
        return
    for route in found:
        look = _look(subject, route.queue)
        if look is None:
            continue
        if look.consumer_count:
            yield ok(f"queue {route.queue} of other programs is consumed")
        elif look.message_count:
            messages = counted(look.message_count, "message")
            yield warning(
                f"queue {route.queue} has {messages} of other programs and no consumer",
                "they become tasks only when it is consumed",
                "start it with: proj ingest",
            )


def _look(subject: Subject, queue: str) -> Any | None:
    """The queue on the broker; None when it is missing, or cannot be seen, for which other checks say why."""
    with suppress(ProjError), subject.channel() as channel, suppress(NotFound, AccessRefused, ResourceLocked):
        return channel.queue_declare(queue, passive=True)
    return None
