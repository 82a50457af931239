"""Messages whose headers are bytes, encoded before."""

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import Any, Final

import amqp
from amqp import serialization

from proj import queues

_LENGTH: Final = Struct(">I")
_SHORT_LENGTH: Final = Struct("B")


class EncodedMessage(amqp.Message):
    """A message whose headers are what `table` returns."""

    #: As AMQP orders them, up to the last one in use. A long text is encoded as a table is: its length and
    #: its bytes.
    PROPERTIES: Final = [
        (name, "S" if name == "application_headers" else kind) for name, kind in amqp.Message.PROPERTIES[:7]
    ]

    def encoded_properties(self) -> bytes | None:
        """All properties as AMQP encodes them; None unless they are those of a task's message, and all there.

        Py-amqp's own way, for any properties, takes most of the time of sending such a message.
        """
        given = self.properties
        if given.keys() != _OF_TASKS:
            return None
        headers, reply_to = given["application_headers"], given["reply_to"].encode()
        task_id = given["correlation_id"].encode()
        before, after = _around_headers(
            given["content_type"], given["content_encoding"], given["delivery_mode"], given["priority"]
        )
        return b"".join(
            (
                before,
                _LENGTH.pack(len(headers)),
                headers,
                after,
                _SHORT_LENGTH.pack(len(task_id)),
                task_id,
                _SHORT_LENGTH.pack(len(reply_to)),
                reply_to,
            )
        )


#: The properties of a task's message, which are the first seven of AMQP's, and their flags.
_OF_TASKS: Final = frozenset(name for name, _ in EncodedMessage.PROPERTIES)
_FLAGS: Final = 0b1111_1110_0000_0000


@lru_cache(maxsize=64)
def _around_headers(
    content_type: str, content_encoding: str, delivery_mode: int, priority: int
) -> tuple[bytes, bytes]:
    """The flags of the properties of a task's message, and those before and after the headers."""
    before = serialization.dumps("Bss", [_FLAGS, content_type, content_encoding])
    return before, serialization.dumps("oo", [delivery_mode, priority])


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


def mark_repeat(message: amqp.Message) -> None:
    """Let a worker look for a stored success before it executes the message."""
    headers = message.properties.get("application_headers") or {}
    if isinstance(headers, bytes):
        headers = headers.removesuffix(REPEAT) + REPEAT
    else:
        headers = {**headers, queues.REPEAT_HEADER: True}
    message.properties["application_headers"] = headers
