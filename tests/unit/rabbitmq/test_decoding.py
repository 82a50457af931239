"""What py-amqp does not read, and how it is read instead."""

from struct import pack

import amqp
import amqp.serialization
import pytest

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
def test_py_amqp_fills_the_stack_with_nested_headers(
    monkeypatch: pytest.MonkeyPatch, kind: bytes, name: bytes
) -> None:
    """When this fails, py-amqp has a limit of its own, and that of `proj.rabbitmq.decoding` can go."""
    deep = nested(kind, name, 10_000)
    monkeypatch.setattr(amqp.serialization, "_read_item", decoding._decode_header)
    with pytest.raises(RecursionError):
        decoding._decode_header(deep, 0)


@pytest.mark.parametrize(("kind", "name"), NESTED)
def test_nested_headers_are_read_to_a_limit(kind: bytes, name: bytes) -> None:
    """What is deeper is a text, and what comes after it is read as it is."""
    decoding.install()
    deep = nested(kind, name, 10_000)
    value, offset = decoding._read_header(deep, 0)
    assert offset == len(deep)
    depth = 0
    while value != decoding.TOO_DEEP:
        (value,) = value.values() if isinstance(value, dict) else value
        depth += 1
    assert depth == decoding.MAX_NESTING
    # A header that is not too deep is not touched, also after one that was.
    value, _ = decoding._read_header(nested(kind, name, decoding.MAX_NESTING), 0)
    assert decoding.TOO_DEEP not in str(value)


def test_they_are_read() -> None:
    """What is around them is read as it is, to the last byte."""
    assert decoding._read(PROPERTY, 0) == ({"message_id": "\\xe9", "priority": 3}, len(PROPERTY))
    assert decoding._read_header(HEADER, 0)[1] == len(HEADER)
    # As of Basic.Deliver: a number that looks like the key stays what it is, and a bit is read as one.
    assert decoding._read_arguments("Bbs", KEY + b"\x01" + KEY, 0) == ([0x1E9, True, "\\xe9"], 5)
