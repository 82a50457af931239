"""What py-amqp does not read, and how it is read instead."""

from struct import pack

import amqp
import pytest

from proj import properties

#: Latin-1 as a property, a time in milliseconds as a header, and Latin-1 as a routing key.
PROPERTY = amqp.Message(b"", message_id="-", priority=3)._serialize_properties().replace(b"-", b"\xe9")
HEADER = b"T" + pack(">Q", 1_577_836_800_000)
KEY = b"\x01\xe9"


def test_py_amqp_does_not_read_them() -> None:
    """When this fails, py-amqp reads them, and what `proj.properties` replaces of it can go."""
    with pytest.raises(UnicodeDecodeError):
        properties._decode(PROPERTY, 0)
    with pytest.raises(ValueError, match="year"):
        properties._decode_header(HEADER, 0)
    with pytest.raises(UnicodeDecodeError):
        properties._decode_arguments("s", KEY, 0)


def test_they_are_read() -> None:
    """What is around them is read as it is, to the last byte."""
    assert properties._read(PROPERTY, 0) == ({"message_id": "\\xe9", "priority": 3}, len(PROPERTY))
    assert properties._read_header(HEADER, 0)[1] == len(HEADER)
    # As of Basic.Deliver: a number that looks like the key stays what it is, and a bit is read as one.
    assert properties._read_arguments("Bbs", KEY + b"\x01" + KEY, 0) == ([0x1E9, True, "\\xe9"], 5)
