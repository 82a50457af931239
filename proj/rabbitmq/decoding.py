"""Decodes properties, headers and routing keys from other programs that py-amqp cannot read.

RabbitMQ does not check that AMQP's short strings are UTF-8, nor that its times are in range. Py-amqp 5.4
raises while it reads the frame: one such message ends every worker that gets it, and hides all dead letters.
Neither py-amqp nor Celery has an extension point for this, so two functions are replaced here:
https://github.com/celery/celery/issues/2873.
"""

import re
from collections.abc import Callable
from datetime import datetime
from struct import Struct, unpack_from
from typing import Any, Final

from amqp import Message, abstract_channel, serialization, spec

#: Levels of nested tables and lists of a header that are read. Py-amqp overflows the stack at some 300, which
#: ends the worker, and what it still reads cannot always be handed to a pool, logged or stored.
MAX_NESTING: Final = 64

#: Types of headers: most of a message's are texts, nothing, and numbers.
_TABLE: Final = ord("F")
_LIST: Final = ord("A")
_TEXT: Final = ord("S")
_NOTHING: Final = ord("V")
_NUMBER: Final = ord("I")
_TRUTH: Final = ord("t")
_TIME: Final = ord("T")

_size: Final = Struct(">I").unpack_from
_number: Final = Struct(">i").unpack_from

#: The arguments of `basic.deliver`: the consumer, the message's number, whether it came before, its address.
_DELIVERY: Final = "sLbss"
_number_and_bits: Final = Struct(">QB").unpack_from

#: The flag of each property, its name and its type.
_PROPERTIES: Final = [(0x8000 >> place, *each) for place, each in enumerate(Message.PROPERTIES)]

#: What reads a text of a header.
_Decode = Callable[[bytes], Any]

#: Stands for what is nested deeper.
TOO_DEEP: Final = "(nested too deep)"

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
    abstract_channel.loads = _read_arguments


def _read(buffer: Any, offset: int) -> tuple[dict[str, Any], int]:
    """The properties of a message, and where they end. It takes half of py-amqp's time."""
    (flags,) = unpack_from(">H", buffer, offset)
    offset += 2
    properties: dict[str, Any] = {}
    for flag, name, kind in _PROPERTIES:
        if not flags & flag:
            continue
        if kind == "s":
            properties[name], offset = _read_short(buffer, offset)
        elif kind == "F":
            properties[name], offset = _read_headers(buffer, offset)
        elif kind == "o":
            properties[name], offset = buffer[offset], offset + 1
        else:
            (properties[name],), offset = _decode_arguments(kind, buffer, offset)
    return properties, offset


def _read_headers(buffer: Any, offset: int) -> tuple[dict[Any, Any], int]:
    """The headers of a message. Most have only texts that are UTF-8, which are read with fewer calls."""
    try:
        return _read_table(buffer, offset, 0, bytes.decode)
    except UnicodeDecodeError:
        return _read_table(buffer, offset, 0, _text)


def _read_header(buffer: Any, offset: int, depth: int, text: _Decode) -> tuple[Any, int]:
    kind = buffer[offset]
    if kind in (_TABLE, _LIST):
        if depth == MAX_NESTING:
            (size,) = _size(buffer, offset + 1)
            return TOO_DEEP, offset + 1 + 4 + size  # the type, the size, and the value
        return (_read_table if kind == _TABLE else _read_list)(buffer, offset + 1, depth + 1, text)
    try:
        value: tuple[Any, int] = _decode_header(buffer, offset)
    except (OSError, OverflowError, ValueError):
        if kind != _TIME:
            raise
        return datetime.max, offset + 1 + 8  # the type, and 64 bits
    return value


def _read_table(buffer: Any, offset: int, depth: int, text: _Decode) -> tuple[dict[Any, Any], int]:
    (size,) = _size(buffer, offset)
    offset += 4
    end, table = offset + size, {}
    while offset < end:
        start, offset = offset + 1, offset + 1 + buffer[offset]
        name, kind = text(buffer[start:offset]), buffer[offset]
        if kind == _TEXT:
            (size,) = _size(buffer, offset + 1)
            start, offset = offset + 5, offset + 5 + size
            table[name] = text(buffer[start:offset])
        elif kind == _NOTHING:
            table[name], offset = None, offset + 1
        elif kind == _NUMBER:
            (table[name],), offset = _number(buffer, offset + 1), offset + 5
        elif kind == _TRUTH:
            table[name], offset = bool(buffer[offset + 1]), offset + 2
        else:
            table[name], offset = _read_header(buffer, offset, depth, text)
    return table, offset


def _text(found: bytes) -> str | bytes:
    """A text; its bytes, as py-amqp has it, when they are not UTF-8."""
    try:
        return found.decode()
    except UnicodeDecodeError:
        return found


def _read_list(buffer: Any, offset: int, depth: int, text: _Decode) -> tuple[list[Any], int]:
    (size,) = _size(buffer, offset)
    offset += 4
    end, values = offset + size, []
    while offset < end:
        value, offset = _read_header(buffer, offset, depth, text)
        values.append(value)
    return values, offset


def _read_arguments(kinds: str, buffer: Any, offset: int) -> tuple[list[Any], int]:
    if kinds == _DELIVERY:  # in a quarter of py-amqp's time
        consumer_tag, offset = _read_short(buffer, offset)
        number, bits = _number_and_bits(buffer, offset)
        exchange, offset = _read_short(buffer, offset + 9)
        routing_key, offset = _read_short(buffer, offset)
        return [consumer_tag, number, bool(bits & 1), exchange, routing_key], offset
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
    return buffer[start:end].decode("utf-8", "backslashreplace"), end
