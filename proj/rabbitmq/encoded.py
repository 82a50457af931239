"""Messages whose headers are bytes, encoded before."""

from collections.abc import Mapping
from typing import Any, Final

import amqp
from amqp import serialization

from proj import queues


class EncodedMessage(amqp.Message):
    """A message whose headers are what `table` returns."""

    #: As AMQP orders them, up to the last one in use. A long text is encoded as a table is: its length and
    #: its bytes.
    PROPERTIES: Final = [
        (name, "S" if name == "application_headers" else kind) for name, kind in amqp.Message.PROPERTIES[:7]
    ]


def table(headers: Mapping[str, Any]) -> bytes:
    """The headers as AMQP encodes them, without their length; those of two tables can be joined."""
    encoded: bytes = serialization.dumps("F", [headers])
    return encoded[4:]


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
