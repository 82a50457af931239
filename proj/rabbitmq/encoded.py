"""Messages whose properties are bytes, encoded before: py-amqp's way takes most of the time of a publish."""

from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, Self

import amqp
from amqp import serialization

from proj import queues

_LENGTH: Final = Struct(">I")
_SHORT_LENGTH: Final = Struct("B")

#: The flags of the properties of a task's message, the first seven of AMQP's, and the flag of the priority.
_FLAGS: Final = 0b1111_0110_0000_0000
_PRIORITY_FLAG: Final = 0b0000_1000_0000_0000


@dataclass(frozen=True, slots=True)
class Common:
    """The properties that all messages of a task have, and what is written before and after the headers."""

    properties: Mapping[str, Any]
    before: bytes
    after: bytes
    #: The larger is served first.
    priority: int

    @classmethod
    def of(
        cls, *, content_type: str, content_encoding: str, delivery_mode: int, priority: int | None = None
    ) -> Self:
        """Encode these."""
        properties: dict[str, Any] = {
            "content_type": content_type,
            "content_encoding": content_encoding,
            "delivery_mode": delivery_mode,
        }
        flags, after = _FLAGS, bytes([delivery_mode])
        if priority is not None:
            properties["priority"] = priority
            flags, after = flags | _PRIORITY_FLAG, bytes([delivery_mode, priority])
        before = serialization.dumps("Bss", [flags, content_type, content_encoding])
        return cls(properties, before, after, priority or 0)


@dataclass(slots=True, eq=False)
class EncodedMessage:
    """As much of an `amqp.Message` as `proj.rabbitmq.publishing.Window` sends; its headers are a `table`."""

    body: bytes
    headers: bytes
    correlation_id: str
    reply_to: str
    common: Common

    @property
    def properties(self) -> dict[str, Any]:
        """All properties, as py-amqp has them; a copy."""
        return {
            **self.common.properties,
            "application_headers": self.headers,
            "correlation_id": self.correlation_id,
            "reply_to": self.reply_to,
        }

    def encoded_properties(self) -> bytes:
        """All properties as AMQP encodes them."""
        headers, common = self.headers, self.common
        task_id, reply_to = self.correlation_id.encode(), self.reply_to.encode()
        return b"".join(
            (
                common.before,
                _LENGTH.pack(len(headers)),
                headers,
                common.after,
                _SHORT_LENGTH.pack(len(task_id)),
                task_id,
                _SHORT_LENGTH.pack(len(reply_to)),
                reply_to,
            )
        )

    def for_py_amqp(self) -> amqp.Message:
        """The same message, which py-amqp encodes and divides into frames."""
        return _WithEncodedHeaders(self.body, **self.properties)


class _WithEncodedHeaders(amqp.Message):
    """A message whose headers are what `table` returns."""

    #: A long text is encoded as a table is: its length and its bytes.
    PROPERTIES: Final = [
        (name, "S" if name == "application_headers" else kind) for name, kind in amqp.Message.PROPERTIES
    ]


def table(headers: Mapping[str, Any]) -> bytes:
    """The headers as AMQP encodes them, without their length; those of two tables can be joined."""
    encoded: bytes = serialization.dumps("F", [headers])
    return encoded[4:]


_DUE_NAME: Final = queues.DUE_HEADER.encode()
_DUE: Final = Struct(f">B{len(_DUE_NAME)}scd")


def due(moment: float) -> bytes:
    """The header of a message that is due at this moment (`time.time`)."""
    return _DUE.pack(len(_DUE_NAME), _DUE_NAME, b"d", moment)


#: The header of a message that may have been executed before.
REPEAT: Final = table({queues.REPEAT_HEADER: True})


def mark_repeat(message: amqp.Message | EncodedMessage) -> None:
    """Let a worker look for a stored success before it executes the message."""
    if isinstance(message, EncodedMessage):
        message.headers = message.headers.removesuffix(REPEAT) + REPEAT
        return
    headers = message.properties.get("application_headers") or {}
    message.properties["application_headers"] = {**headers, queues.REPEAT_HEADER: True}
