"""What py-amqp does not read, and how it is read instead."""

from datetime import datetime
from struct import pack
from typing import Any

import amqp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.rabbitmq import decoding

#: Latin-1 as a property, a time in milliseconds as a header, and Latin-1 as a routing key.
PROPERTY = amqp.Message(b"", message_id="-", priority=3)._serialize_properties().replace(b"-", b"\xe9")
HEADER = b"T" + pack(">Q", 1_577_836_800_000)
KEY = b"\x01\xe9"


def nested(kind: bytes, name: bytes, depth: int) -> bytes:
    """A header that is a table in a table, or a list in a list, so many times."""
    value = b"V"
    for _ in range(depth):
        value = kind + pack(">I", len(name) + len(value)) + name + value
    return value


def with_header(value: bytes) -> bytes:
    """The properties of a message with this header, another one after it, and a priority."""
    headers = b"\x01x" + value + b"\x05afterV"
    return pack(">H", 0x2000 | 0x0800) + pack(">I", len(headers)) + headers + b"\x03"


NESTED = [(b"F", b"\x01x"), (b"A", b"")]


# upstream: celery#2873; remove when py-amqp reads properties, headers and routing keys of other programs
def test_py_amqp_does_not_read_them() -> None:
    """When this fails, py-amqp reads them, and what `proj.rabbitmq.decoding` replaces of it can go."""
    with pytest.raises(UnicodeDecodeError):
        decoding._decode(PROPERTY, 0)
    with pytest.raises(ValueError, match="year"):
        decoding._decode_header(HEADER, 0)
    with pytest.raises(UnicodeDecodeError):
        decoding._decode_arguments("s", KEY, 0)


@pytest.mark.parametrize(("kind", "name"), NESTED)
def test_py_amqp_fills_the_stack_with_nested_headers(kind: bytes, name: bytes) -> None:
    """When this fails, py-amqp has a limit of its own, and that of `proj.rabbitmq.decoding` can go."""
    with pytest.raises(RecursionError):
        decoding._decode_header(nested(kind, name, 10_000), 0)


@pytest.mark.parametrize(("kind", "name"), NESTED)
@pytest.mark.parametrize("depth", [decoding.MAX_NESTING + 1, 200, 10_000])
def test_nested_headers_are_read_to_a_limit(kind: bytes, name: bytes, depth: int) -> None:
    """What is deeper is a text, and what comes after it is read as it is."""
    message = with_header(nested(kind, name, depth))
    properties, offset = decoding._read(message, 0)
    assert offset == len(message)
    assert properties["priority"] == 3
    assert properties["application_headers"]["after"] is None
    value, depth = properties["application_headers"]["x"], 0
    while value != decoding.TOO_DEEP:
        (value,) = value.values() if isinstance(value, dict) else value
        depth += 1
    assert depth == decoding.MAX_NESTING


@pytest.mark.parametrize(("kind", "name"), NESTED)
def test_headers_at_the_limit_are_whole(kind: bytes, name: bytes) -> None:
    """Whichever of the two readers reads them."""
    message = with_header(nested(kind, name, decoding.MAX_NESTING))
    assert decoding._read(message, 0) == decoding._read_carefully(message, 0)
    assert decoding.TOO_DEEP not in str(decoding._read(message, 0))


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=20), HEADERS, max_size=5), st.text(max_size=20))
def test_both_readers_agree(headers: dict[str, Any], id: str) -> None:
    """On whatever py-amqp reads."""
    message = amqp.Message(b"", application_headers=headers, message_id=id)._serialize_properties()
    assert decoding._read_carefully(message, 0) == decoding._decode(message, 0)


def test_they_are_read() -> None:
    """What is around them is read as it is, to the last byte."""
    assert decoding._read(PROPERTY, 0) == ({"message_id": "\\xe9", "priority": 3}, len(PROPERTY))
    message = with_header(HEADER)
    properties, offset = decoding._read(message, 0)
    assert properties["application_headers"] == {"x": datetime.max, "after": None}
    assert (properties["priority"], offset) == (3, len(message))
    # As of Basic.Deliver: a number that looks like the key stays what it is, and a bit is read as one.
    assert decoding._read_arguments("Bbs", KEY + b"\x01" + KEY, 0) == ([0x1E9, True, "\\xe9"], 5)
