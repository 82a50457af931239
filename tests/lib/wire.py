"""Messages as bytes, by hand: py-amqp refuses much of this, and fills its stack with nested tables."""

import json
import math
import struct
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import amqp

#: AMQP's short string.
_MAX_SHORT: Final = 255


@dataclass(frozen=True)
class Text:
    """A long text, which a failure does not print."""

    length: int

    def __str__(self) -> str:
        return "x" * self.length


@dataclass(frozen=True)
class Deep:
    """An empty table or list in a table or list, so many times."""

    depth: int


@dataclass(frozen=True)
class Raw:
    """A body of bytes that are no JSON, `times` over."""

    data: bytes
    times: int = 1


class Encoded(amqp.Message):
    def __init__(self, properties: bytes, body: bytes) -> None:
        super().__init__(body)
        self._encoded = properties

    @property
    def size(self) -> int:
        return len(self._encoded)

    def _serialize_properties(self) -> bytes:
        return self._encoded


#: The properties in the order of their flags, and how each is written.
_ORDER: Final = (
    *("content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id"),
    *("reply_to", "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id"),
)


def encode_properties(properties: dict[str, Any], table: Any) -> bytes:
    flags, written = 0, b""
    for place, name in enumerate(_ORDER):
        if name == "headers":
            value = None if table is None else _table(table)
        elif name not in properties:
            value = None
        elif name in {"delivery_mode", "priority"}:
            value = struct.pack(">B", properties[name])
        elif name == "timestamp":
            value = struct.pack(">Q", properties[name])
        else:
            value = _short(properties[name])
        if value is not None:
            flags |= 0x8000 >> place
            written += value
    return struct.pack(">H", flags) + written


def _short(value: Any) -> bytes:
    data = value if isinstance(value, bytes) else str(value).encode()
    return bytes([len(data[:_MAX_SHORT])]) + data[:_MAX_SHORT]


def _table(value: Any) -> bytes:
    if isinstance(value, Deep):
        inner = b""
        for _ in range(value.depth):
            inner = b"\x01xF" + struct.pack(">I", len(inner)) + inner
        return struct.pack(">I", len(inner)) + inner
    items = b"".join(_short(name) + _item(each) for name, each in value.items())
    return struct.pack(">I", len(items)) + items


def _item(value: Any) -> bytes:
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\1" if value else b"t\0"
        case int():
            return b"l" + struct.pack(">q", value)
        case float():
            # RabbitMQ answers an infinity, or what is no number, with 541, and closes the connection.
            return b"d" + struct.pack(">d", value) if math.isfinite(value) else _item(str(value))
        case Decimal():
            return b"D" + struct.pack(">BI", 1, int(value * 10))
        case datetime():
            return b"T" + struct.pack(">Q", int(value.timestamp()))
        case bytes():
            return b"S" + struct.pack(">I", len(value)) + value
        case str() | Text():
            data = str(value).encode("utf-8", "surrogatepass")
            return b"S" + struct.pack(">I", len(data)) + data
        case list() | tuple():
            items = b"".join(map(_item, value))
            return b"A" + struct.pack(">I", len(items)) + items
        case _:
            return b"F" + _table(value)


def encode_body(value: Any) -> bytes:
    if isinstance(value, Raw):
        return value.data * value.times
    deep: dict[str, str] = {}

    def other(one: Any) -> Any:
        if isinstance(one, Deep):
            mark = f"\0deep-{one.depth}"
            deep[json.dumps(mark)] = "[" * one.depth + "]" * one.depth
            return mark
        return one.decode("latin-1") if isinstance(one, bytes) else str(one)

    text = json.dumps(value, default=other)
    for mark, nested in deep.items():
        text = text.replace(mark, nested)
    return text.encode()
