"""What a channel reads and writes itself is what py-amqp would read and write."""

import struct
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from amqp import serialization, spec
from amqp.exceptions import RecoverableConnectionError
from amqp.method_framing import frame_writer
from hypothesis import given
from hypothesis import strategies as st

from proj.rabbitmq.channel import Channel


@pytest.mark.parametrize("is_closing", [False, True])
@given(st.integers(0, 2**64 - 1), st.booleans())
def test_confirm_is_read_as_py_amqp_reads_it(is_closing: bool, tag: int, multiple: bool) -> None:
    """All listeners are told, unless the channel is being closed."""
    payload = struct.pack(">HH", *spec.Basic.Ack) + serialization.dumps("Lb", (tag, multiple))
    told: dict[type[Any], list[tuple[int, bool]]] = {Channel: [], amqp.Channel: []}
    for kind, heard in told.items():
        channel = Channel.__new__(Channel)
        channel.channel_id, channel.is_closing, channel._pending = 1, is_closing, {}
        channel._callbacks = {spec.Basic.Ack: channel._on_basic_ack}
        channel.events = {"basic_ack": [lambda *confirm, heard=heard: heard.append(confirm)] * 2}
        kind.dispatch_method(channel, (60, 80), payload, None)
    assert told[Channel] == told[amqp.Channel] == [(tag, multiple)] * (0 if is_closing else 2)


@given(st.integers(0, 2**64 - 1), st.booleans(), st.integers(1, 65_535))
def test_acknowledgement_is_written_as_py_amqp_writes_it(tag: int, multiple: bool, number: int) -> None:
    """Byte for byte, and it is counted for the heartbeats."""
    written: dict[type[Any], tuple[bytes, int]] = {}
    for kind in (Channel, amqp.Channel):
        frames = bytearray()
        wire = SimpleNamespace(write=frames.extend)
        connection = SimpleNamespace(frame_max=131_072, bytes_sent=0, transport=wire)
        connection.frame_writer = frame_writer(connection, wire)
        channel = Channel.__new__(Channel)
        channel.channel_id, channel.connection = number, connection
        kind.basic_ack(channel, tag, multiple)
        written[kind] = bytes(frames), connection.bytes_sent
    assert written[Channel] == written[amqp.Channel]


def test_acknowledgement_on_a_lost_connection() -> None:
    """It is the error by which Celery knows that the message is given back."""
    channel = Channel.__new__(Channel)
    channel.connection = None
    with pytest.raises(RecoverableConnectionError):
        channel.basic_ack(1)
