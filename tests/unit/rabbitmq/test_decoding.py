"""What py-amqp does not read, and how it is read instead."""

from datetime import datetime
from struct import pack
from typing import Any

import amqp
import pytest
from amqp.serialization import decode_properties_basic, dumps
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
        decode_properties_basic(PROPERTY, 0)
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
    message = with_header(nested(kind, name, decoding.MAX_NESTING))
    assert decoding._read(message, 0) == decode_properties_basic(message, 0)
    assert decoding.TOO_DEEP not in str(decoding._read(message, 0))


NUMBERS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)).map(lambda time: time.replace(microsecond=0))
HEADERS = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | st.text() | st.binary() | TIMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=8,
)
SHORT = st.text(max_size=20)
OCTET = st.integers(0, 255)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "content_type": SHORT,
            "content_encoding": SHORT,
            "application_headers": st.dictionaries(SHORT | st.binary(max_size=20), HEADERS, max_size=5),
            "delivery_mode": OCTET,
            "priority": OCTET,
            "correlation_id": SHORT,
            "reply_to": SHORT,
            "expiration": SHORT,
            "message_id": SHORT,
            "timestamp": st.integers(0, 2**40),
            "type": SHORT,
            "user_id": SHORT,
            "app_id": SHORT,
            "cluster_id": SHORT,
        },
    ),
    st.binary(max_size=5),
)
def test_it_reads_what_py_amqp_reads(properties: dict[str, Any], before: bytes) -> None:
    """To the same values, and the same place."""
    message = before + amqp.Message(b"", **properties)._serialize_properties() + b"x"
    assert decoding._read(message, len(before)) == decode_properties_basic(message, len(before))


def test_they_are_read() -> None:
    """What is around them is read as it is, to the last byte."""
    assert decoding._read(PROPERTY, 0) == ({"message_id": "\\xe9", "priority": 3}, len(PROPERTY))
    message = with_header(HEADER)
    properties, offset = decoding._read(message, 0)
    assert properties["application_headers"] == {"x": datetime.max, "after": None}
    assert (properties["priority"], offset) == (3, len(message))
    # As of Basic.Deliver: a number that looks like the key stays what it is, and a bit is read as one.
    assert decoding._read_arguments("Bbs", KEY + b"\x01" + KEY, 0) == ([0x1E9, True, "\\xe9"], 5)


@given(
    st.text(max_size=50), st.integers(0, 2**64 - 1), st.booleans(), st.text(max_size=50), st.text(max_size=50)
)
def test_delivery_is_read_as_py_amqp_reads_it(
    consumer: str, number: int, redelivered: bool, exchange: str, routing_key: str
) -> None:
    """And what is not UTF-8 in it is escaped, as everywhere."""
    arguments = [consumer, number, redelivered, exchange, routing_key]
    payload = b"<60>" + dumps("sLbss", arguments)
    assert decoding._read_arguments("sLbss", payload, 4) == decoding._decode_arguments("sLbss", payload, 4)
    assert decoding._read_arguments("sLbss", payload, 4) == (arguments, len(payload))
    *_, found = decoding._read_arguments("sLbss", payload[: -len(routing_key.encode()) - 1] + KEY, 4)[0]
    assert found == "\\xe9"
