"""Confirms and returns are matched to their messages, in whatever order the broker sends them."""

import time
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import amqp
import pytest
from amqp.exceptions import ChannelError, MessageNacked
from hypothesis import given
from hypothesis import strategies as st

from proj.rabbitmq.encoded import Common, EncodedMessage
from proj.rabbitmq.publishing import Nacked, Sent, Window


class _Channel:
    """As much of a channel as a window needs; what the broker says is said by the test."""

    def __init__(self) -> None:
        self.events: dict[str, set[Any]] = defaultdict(set)
        self.channel_id = 1
        self.written: list[bytes] = []
        self.connection = SimpleNamespace(
            frame_max=131_072,
            bytes_sent=0,
            transport=SimpleNamespace(having_timeout=lambda _: nullcontext(), write=self.written.append),
            drain_events=self._drain,
            has_frame=False,
        )

    def confirm_select(self) -> None: ...

    def say(self, event: str, *args: Any) -> None:
        for listener in self.events[event]:
            listener(*args)

    def give_back(self, sent: Sent) -> None:
        copy = amqp.Message(sent.message.body.decode(), **sent.message.properties)
        self.say("basic_return", ChannelError(reply_code=312), sent.exchange, sent.routing_key, copy)

    def _drain(self, timeout: float) -> None:
        raise TimeoutError


def _window(count: int) -> tuple[_Channel, list[Sent], Window]:
    channel = _Channel()
    window = Window(channel)
    bodies = [b"same" if number % 2 else b"body %d" % number for number in range(count)]
    sent = [
        window.send(amqp.Message(body, correlation_id=str(number)), "exchange", "key")
        for number, body in enumerate(bodies)
    ]
    return channel, sent, window


@given(st.data())
def test_each_answer_is_for_its_own_message(data: st.DataObject) -> None:
    """Acks and nacks, single, multiple and backwards, and returns before the acks of their messages."""
    count = data.draw(st.integers(1, 20))
    channel, sent, window = _window(count)
    returned = data.draw(st.sets(st.integers(1, count)))
    nacked: set[int] = set()
    waiting = set(range(1, count + 1))
    for tag in sorted(returned):
        channel.give_back(sent[tag - 1])
    while waiting:
        tag = data.draw(st.sampled_from(sorted(waiting)))
        multiple, nack = data.draw(st.tuples(st.booleans(), st.booleans()))
        answered = {each for each in waiting if each <= tag} if multiple else {tag}
        channel.say("basic_nack" if nack else "basic_ack", tag, multiple)
        waiting -= answered
        nacked |= answered if nack else set()
        assert len(window) == len(waiting)

    for tag, each in enumerate(sent, 1):
        kind = ChannelError if tag in returned else MessageNacked if tag in nacked else type(None)
        assert each.answered
        assert isinstance(each.refusal, kind)


@pytest.mark.parametrize(
    ("exchange", "headers", "elsewhere"),
    [
        *[(exchange, {}, False) for exchange in ("", "proj.direct", "celery_delayed_27")],
        *[("proj.direct", {header: ["copy"]}, True) for header in ("CC", "BCC")],
        *[(exchange, {}, True) for exchange in ("proj", "amq.topic", "theirs")],
    ],
)
def test_what_a_nack_says(exchange: str, headers: dict[str, Any], elsewhere: bool) -> None:
    """One queue has refused the message; another may have it where an exchange passes it to several."""
    channel, _, window = _window(0)
    sent = window.send(amqp.Message(b"", application_headers=headers), exchange, "key")
    channel.say("basic_nack", 1, False)
    assert isinstance(sent.refusal, Nacked)
    assert sent.refusal.may_be_queued == elsewhere


def test_return_is_no_answer() -> None:
    """The ack of the returned message comes later, and is not taken for that of another."""
    channel, (first, second), window = _window(2)
    channel.give_back(second)
    assert not second.answered
    assert first.refusal is None
    channel.say("basic_ack", 1, False)
    assert len(window) == 1


def test_deadline_is_absolute() -> None:
    """What is not answered at the deadline stays open, and a late answer reaches nobody."""
    channel, (sent,), window = _window(1)
    with pytest.raises(TimeoutError):
        window.wait(time.monotonic() - 1)
    channel.say("basic_ack", 1, False)
    assert not sent.answered
    assert not window.usable


@given(
    st.binary(max_size=200),
    st.binary(max_size=100),
    st.text(max_size=50, alphabet=st.characters(codec="utf-8")),
    st.none() | st.integers(0, 9),
    st.sampled_from([131_072, 300]),
)
def test_messages_that_are_encoded_are_framed_as_py_amqp_does(
    body: bytes, headers: bytes, task_id: str, priority: int | None, frame_max: int
) -> None:
    """Byte for byte, also a message that does not fit into one frame."""
    common = Common.of(
        content_type="application/json", content_encoding="utf-8", delivery_mode=2, priority=priority
    )
    message = EncodedMessage(body, headers, task_id, "somebody", common)
    written = []
    for each in (message, message.for_py_amqp()):
        channel = _Channel()
        channel.connection.frame_max = frame_max
        Window(channel).send(each, "exchange", "key")
        written.append(b"".join(map(bytes, channel.written)))
    ours, theirs = written
    assert ours == theirs
