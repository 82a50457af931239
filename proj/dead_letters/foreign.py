"""Dead letters of foreign messages, from which no task could be made: how they are written and sent back.

Reason, origin and the original properties travel in headers of ours. As properties of the copy, an
`expiration` would delete it, a `user_id` of others would be refused, and `CC` would send it to other queues.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import amqp
from amqp.serialization import dumps

from proj import queues
from proj.dead_letters.reasons import Reason
from proj.rabbitmq.publishing import UNWRITABLE

#: Header: the queue that the message came from.
ORIGIN: Final = "x-proj-origin"

#: Header: the `Reason`.
REASON: Final = "x-proj-reason"

#: Header: what is wrong, for people.
PROBLEM: Final = "x-proj-problem"

#: Header: the time at which it became a dead letter (ISO 8601, UTC).
DIED: Final = "x-proj-died"

#: Header: the table of the original properties, with the original headers in it.
ORIGINAL: Final = "x-proj-original"

#: Header of a redriven message: the time of its first death, which its other headers no longer hold.
FIRST_DEATH: Final = "x-proj-first-death"

#: Headers of ours that a redriven message brings along, and its next dead letter takes over.
_TAKEN_OVER: Final = (queues.REDRIVES_HEADER, FIRST_DEATH)

#: Headers with which the broker would send copies to other queues.
COPY_HEADERS: Final = ("CC", "BCC")

#: Properties that a redriven message does not get back: see `proj.rabbitmq.publishing`.
_NOT_RESTORED: Final = ("application_headers", "delivery_mode", "expiration", "user_id", "cluster_id")

#: Bytes of original properties that are kept. All properties of a message must fit in one frame, 128 KiB.
_MOST: Final = 120_000

#: Bytes of AMQP's short strings, and the largest numbers of its other properties.
_MOST_OF_SHORT: Final = 255
_MOST_OF_KIND: Final = {"o": 2**8 - 1, "L": 2**64 - 1}


@dataclass(frozen=True)
class Foreign:
    """What the headers of such a dead letter say."""

    origin: str
    reason: str
    problem: str
    #: Time of its death (ISO 8601, UTC); None when the header is missing or has no time.
    died: str | None
    properties: Mapping[str, Any]
    headers: Mapping[str, Any]

    @classmethod
    def of(cls, headers: Mapping[str, Any]) -> Self | None:
        """None for a dead letter of another kind."""
        origin, reason, original = (headers.get(name) for name in (ORIGIN, REASON, ORIGINAL))
        if not (isinstance(origin, str) and isinstance(reason, str) and isinstance(original, dict)):
            return None
        inner = original.get("application_headers")
        return cls(
            origin,
            reason,
            str(headers.get(PROBLEM, "")),
            _time(headers.get(DIED)),
            {name: value for name, value in original.items() if name != "application_headers"},
            inner if isinstance(inner, dict) else {},
        )

    def again(self, body: bytes, redrives: int, first: str | None) -> amqp.Message:
        """The message for a redrive: the original bytes with the original properties."""
        headers = {name: value for name, value in self.headers.items() if name not in COPY_HEADERS}
        headers |= {queues.REDRIVES_HEADER: redrives + 1} | ({FIRST_DEATH: first} if first else {})
        properties = {
            name: self.properties[name]
            for name, kind in amqp.Message.PROPERTIES
            if name not in _NOT_RESTORED and _can_be(kind, self.properties.get(name))
        }
        return amqp.Message(body, application_headers=headers, delivery_mode=queues.PERSISTENT, **properties)


def dead_letter(
    message: amqp.Message, letter_id: str, origin: str, reason: Reason, problem: str, headers: dict[str, Any]
) -> amqp.Message:
    """The message for `proj.dead`; `headers` are further ones."""
    own = message.properties.get("application_headers") or {}
    return amqp.Message(
        message.body,
        message_id=letter_id,
        delivery_mode=queues.PERSISTENT,
        application_headers={
            ORIGIN: origin,
            REASON: str(reason),
            PROBLEM: problem,
            DIED: f"{datetime.now(UTC):%FT%TZ}",
            ORIGINAL: _kept(message.properties),
            **{name: own[name] for name in _TAKEN_OVER if isinstance(own.get(name), int | str)},
            **headers,
        },
    )


def _time(value: object) -> str | None:
    """The time in the form in which `dead_letter` writes it: other programs may write others."""
    try:
        moment = datetime.fromisoformat(value)  # type: ignore[arg-type]
        if moment.tzinfo:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    except (TypeError, ValueError, OverflowError):
        return None
    return f"{moment.isoformat(timespec='seconds')}Z"


def _kept(properties: dict[str, Any]) -> dict[str, Any]:
    """The properties that a header can hold; without the headers among them if these are too large."""
    if _is_writable(properties):
        return properties
    kept = {name: value for name, value in properties.items() if _is_writable({name: value})}
    headers = properties.get("application_headers") or {}
    if "application_headers" not in kept:
        some = {name: value for name, value in headers.items() if _is_writable({name: value})}
        kept["application_headers"] = some if _is_writable(some) else {}
    return kept


def _can_be(kind: str, value: object) -> bool:
    """Whether a property of this kind, in py-amqp's letters, can have the value."""
    if kind == "s":
        return isinstance(value, str) and len(value.encode("utf-8", "surrogatepass")) <= _MOST_OF_SHORT
    return isinstance(value, int) and 0 <= value <= _MOST_OF_KIND[kind]


def _is_writable(table: dict[str, Any]) -> bool:
    try:
        return len(dumps("F", (table,))) <= _MOST
    except UNWRITABLE:
        return False
