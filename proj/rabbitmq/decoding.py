"""Decodes properties, headers and routing keys from other programs that py-amqp cannot read.

RabbitMQ does not check that AMQP's short strings are UTF-8, nor that its times are in range. Py-amqp 5.4
raises while it reads the frame: one such message ends every worker that gets it, and hides all dead letters.
Neither py-amqp nor Celery has an extension point for this, so three functions are replaced here:
https://github.com/celery/celery/issues/2873.
"""

import re
import threading
from datetime import datetime
from struct import unpack_from
from typing import Any, Final

from amqp import Message, abstract_channel, serialization, spec

#: Levels of nested tables and lists of a header that are read. Py-amqp overflows the stack at some 300, which
#: ends the worker, and what it still reads cannot always be handed to a pool, logged or stored.
MAX_NESTING: Final = 64

#: AMQP's types of headers: a table and a list, and a time.
_NESTED: Final = b"FA"
_TIME: Final = ord("T")

#: Stands for what is nested deeper.
TOO_DEEP: Final = "(nested too deep)"

_nesting = threading.local()

_decode = serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID]
# upstream: celery#2873; remove when py-amqp reads properties, headers and routing keys of other programs
_decode_header = serialization._read_item
_decode_arguments = abstract_channel.loads


def install() -> None:
    """Let this process read every message: bytes that are not UTF-8 become escapes, such as `caf\\xe9`.

    A time that is too late for Python becomes `datetime.max`, and what is nested deeper than `MAX_NESTING`
    becomes `TOO_DEEP`.
    """
    # upstream: celery#2873; remove when py-amqp reads properties, headers and routing keys of other programs
    serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID] = _read
    serialization._read_item = _read_header
    abstract_channel.loads = _read_arguments


def _read(buffer: Any, offset: int) -> tuple[dict[str, Any], int]:
    try:
        properties: tuple[dict[str, Any], int] = _decode(buffer, offset)
    except UnicodeDecodeError:
        return _read_escaped(buffer, offset)
    return properties


def _read_escaped(buffer: Any, offset: int) -> tuple[dict[str, Any], int]:
    (flags,) = unpack_from(">H", buffer, offset)
    offset += 2
    properties = {}
    for place, (name, kind) in enumerate(Message.PROPERTIES):
        if not flags & 0x8000 >> place:
            continue
        if kind == "s":
            properties[name], offset = _read_short(buffer, offset)
        else:
            (properties[name],), offset = serialization.loads(kind, buffer, offset)
    return properties, offset


def _read_header(buffer: Any, offset: int) -> tuple[Any, int]:
    kind = buffer[offset]
    if kind in _NESTED:
        return _read_nested(buffer, offset)
    try:
        value: tuple[Any, int] = _decode_header(buffer, offset)
    except (OSError, OverflowError, ValueError):
        if kind != _TIME:
            raise
        return datetime.max, offset + 1 + 8  # the type, and 64 bits
    return value


def _read_nested(buffer: Any, offset: int) -> tuple[Any, int]:
    depth = getattr(_nesting, "depth", 0)
    if depth == MAX_NESTING:
        (size,) = unpack_from(">I", buffer, offset + 1)
        return TOO_DEEP, offset + 1 + 4 + size  # the type, the size, and the value
    _nesting.depth = depth + 1
    try:
        value: tuple[Any, int] = _decode_header(buffer, offset)  # calls `_read_header` for each item
    finally:
        _nesting.depth = depth
    return value


def _read_arguments(kinds: str, buffer: Any, offset: int) -> tuple[list[Any], int]:
    try:
        arguments: tuple[list[Any], int] = _decode_arguments(kinds, buffer, offset)
    except UnicodeDecodeError:
        return _read_arguments_escaped(kinds, buffer, offset)
    return arguments


def _read_arguments_escaped(kinds: str, buffer: Any, offset: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    for others in re.findall("s|[^s]+", kinds):  # together, since bits share a byte
        if others == "s":
            value, offset = _read_short(buffer, offset)
            values.append(value)
        else:
            read, offset = _decode_arguments(others, buffer, offset)
            values += read
    return values, offset


def _read_short(buffer: Any, offset: int) -> tuple[str, int]:
    start = offset + 1
    end = start + buffer[offset]
    return bytes(buffer[start:end]).decode("utf-8", "backslashreplace"), end
