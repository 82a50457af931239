"""Publisher confirms: which messages the broker has confirmed, and which it has refused.

The one place that waits for confirms: of a single message (`proj.rabbitmq.channel`), or of many in flight.
Py-amqp does not match them: it takes the next confirm for that of the last message.
"""

import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from types import SimpleNamespace
from typing import Any, Final

import amqp
from amqp import serialization, spec
from amqp.exceptions import FrameSyntaxError, MessageNacked, RecoverableConnectionError
from amqp.method_framing import frame_writer

from proj import queues
from proj.rabbitmq.encoded import EncodedMessage

#: Properties that a copy of a message does not take over: `expiration` would end the copy too, and `user_id`
#: must be that of the publisher.
_NOT_COPIED: Final = ("application_headers", "delivery_mode", "expiration", "user_id", "cluster_id")

#: Exchanges from which a message with our keys gets to one queue, and headers that send it to others too.
_TO_ONE_QUEUE: Final = frozenset({"", queues.direct_exchange.name, *queues.DELAY_QUEUES})
_COPIES: Final = frozenset({"CC", "BCC"})

#: What py-amqp raises for a value that it cannot write, such as an escaped name above 255 bytes.
UNWRITABLE: Final = (FrameSyntaxError, struct.error, ValueError, OverflowError)

#: The last byte of each frame, and the bytes of a frame and of a content header beside what they carry.
FRAME_END: Final = 0xCE
_LAST: Final = bytes([FRAME_END])
_FRAME: Final = 8 + 12

#: How AMQP begins a method, a content header, and a body; the latter two after the end of the frame before.
_METHOD: Final = struct.Struct(">BHIHH")
_CONTENT: Final = struct.Struct(">BBHIHHQ")
_BODY: Final = struct.Struct(">BBHI")


@dataclass(eq=False, slots=True)
class Sent:
    """A message that was sent, and the broker's answer."""

    message: amqp.Message | EncodedMessage
    exchange: str
    routing_key: str
    #: Whether the broker has confirmed or refused it.
    answered: bool = False
    #: Why it is not confirmed: `Nacked`, or a `ChannelError` with the reply code of its return.
    refusal: Exception | None = None


class Nacked(MessageNacked):
    """A queue has refused the message, such as one that is full."""

    def __init__(self, sent: Sent) -> None:
        super().__init__()
        headers = sent.message.properties.get("application_headers")
        copied = isinstance(headers, Mapping) and not _COPIES.isdisjoint(headers)
        #: Whether the message may be for another queue too, which has it then.
        self.may_be_queued = copied or sent.exchange not in _TO_ONE_QUEUE


class Window:
    """The messages in flight on one channel: sent, and not yet confirmed or refused.

    After any error of `flush`, `read` or `wait`, including a `TimeoutError`, discard the window and its
    channel: py-amqp may have reopened the channel without confirms. The outcome of messages in flight is then
    unknown.
    """

    def __init__(self, channel: amqp.Channel, on_answer: Callable[[Any], None] | None = None) -> None:
        """Switch confirms on. The channel must not have published before.

        `on_answer` is called with each message that was confirmed or refused.
        """
        self.channel = channel
        self.usable = True
        self._on_answer = on_answer
        self._tag = self._written_tag = 0
        self._waiting: dict[int, Sent] = {}  # by delivery tag, ascending
        #: Frames that are still to be written: one write for many messages.
        self._unwritten = bytearray()
        #: How the frames of messages to one address begin, by address.
        self._begins: dict[tuple[str, str, bool, bool], bytes] = {}
        #: Bytes that fit into one frame.
        self._most = channel.connection.frame_max - _FRAME
        self._frame: Callable[..., None] = frame_writer(
            channel.connection, SimpleNamespace(write=self._unwritten.extend)
        )
        channel.confirm_select()
        self._listeners = {
            "basic_ack": self._on_ack,
            "basic_nack": self._on_nack,
            "basic_return": self._on_return,
        }
        for event, listener in self._listeners.items():
            channel.events[event].add(listener)

    def __len__(self) -> int:
        """The number of messages in flight."""
        return len(self._waiting)

    @property
    def in_flight(self) -> tuple[list[Any], list[Any]]:
        """The messages in flight, in their order: those that may have been written, and the others."""
        written = [sent for tag, sent in self._waiting.items() if tag <= self._written_tag]
        return written, [sent for tag, sent in self._waiting.items() if tag > self._written_tag]

    @property
    def unwritten(self) -> int:
        """The number of bytes that `flush` will write."""
        return len(self._unwritten)

    def send(
        self, message: amqp.Message | EncodedMessage, exchange: str, routing_key: str, **options: Any
    ) -> Sent:
        """Send a message without waiting for its confirm; it is mandatory by default.

        The options are those of `amqp.Channel.basic_publish`. Raises py-amqp's errors, which may concern
        messages sent before.
        """
        sent = Sent(message, exchange, routing_key)
        timeout = options.pop("timeout", None)
        self.put(sent, **options)
        self.flush(None if timeout is None else time.monotonic() + timeout)
        return sent

    def put(self, sent: Sent, *, mandatory: bool = True, immediate: bool = False) -> None:
        """Let the next `flush`, `read` or `wait` send a message.

        When it raises an error, because the message cannot be written as AMQP, the window is as before.
        """
        connection = self.channel.connection
        if connection is None:
            raise RecoverableConnectionError("the channel is closed")
        message = sent.message
        frames = None
        if isinstance(message, EncodedMessage):
            frames = self._frames(sent.exchange, sent.routing_key, mandatory, immediate, message)
            if frames is None:
                message = message.for_py_amqp()
        if frames is not None:
            self._unwritten += frames
            connection.bytes_sent += 1  # for py-amqp's heartbeats
        else:
            before = len(self._unwritten)
            try:
                arguments = _publish_arguments(sent.exchange, sent.routing_key, mandatory, immediate)
                self._frame(1, self.channel.channel_id, spec.Basic.Publish, arguments, message)
            except BaseException:
                del self._unwritten[before:]
                raise
        self._tag += 1
        self._waiting[self._tag] = sent

    def _frames(
        self, exchange: str, routing_key: str, mandatory: bool, immediate: bool, message: EncodedMessage
    ) -> bytes | None:
        """The frames of a message; None when its properties or its body do not fit into one."""
        body, properties = message.body, message.encoded_properties()
        if not body or max(len(body), len(properties)) > self._most:
            return None
        address = exchange, routing_key, mandatory, immediate
        begin = self._begins.get(address)
        channel = self.channel.channel_id
        if begin is None:
            arguments = _publish_arguments(*address)
            begin = _METHOD.pack(1, channel, 4 + len(arguments), *spec.Basic.Publish) + arguments
            self._begins[address] = begin
        return b"".join(
            (
                begin,
                _CONTENT.pack(
                    FRAME_END, 2, channel, 12 + len(properties), spec.Basic.Publish[0], 0, len(body)
                ),
                properties,
                _BODY.pack(FRAME_END, 3, channel, len(body)),
                body,
                _LAST,
            )
        )

    def flush(self, deadline: float | None = None) -> None:
        """Write what was put. Raises `TimeoutError` at the deadline (of `time.monotonic`)."""
        if not self._unwritten:
            return
        try:
            wire = self._connection().transport
            self._written_tag = self._tag
            frames = memoryview(bytes(self._unwritten))
            if deadline is None:
                wire.write(frames)
            else:
                with wire.having_timeout(_left(deadline)):
                    wire.write(frames)
            self._unwritten.clear()
        except BaseException:
            self.end()
            raise

    def read(self, deadline: float | None = None) -> bool:
        """Flush, and wait for one event of the connection, or more; False when none comes in time."""
        self.flush(deadline)
        try:
            connection = self._connection()
            connection.drain_events(_left(deadline))
            while self._waiting and connection.has_frame:
                connection.drain_events()
        except TimeoutError as error:
            if error.errno is not None:  # the system has given up the connection
                self.end()
                raise
            return False
        except BaseException:
            self.end()
            raise
        return True

    def wait(self, deadline: float | None = None, room: int = 0) -> None:
        """Return when at most `room` messages are in flight.

        Raises `TimeoutError` at the deadline (of `time.monotonic`), and py-amqp's errors.
        """
        while len(self._waiting) > room:
            if not self.read(deadline):
                self.end()
                raise TimeoutError("the broker did not confirm in time")

    def end(self) -> None:
        """Stop listening to the channel."""
        self.usable = False
        for event, listener in self._listeners.items():
            self.channel.events[event].discard(listener)

    def _connection(self) -> amqp.Connection:
        connection = self.channel.connection
        if connection is None:  # py-amqp's own attribute error would hide it
            raise RecoverableConnectionError("the connection is closed")
        return connection

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for sent in self._answered(tag, multiple):
            sent.answered = True
            if self._on_answer:
                self._on_answer(sent)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for sent in self._answered(tag, multiple):
            sent.answered, sent.refusal = True, sent.refusal or Nacked(sent)
            if self._on_answer:
                self._on_answer(sent)

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        """Mark a message that no queue takes. Its ack, which has its delivery tag, still follows."""
        address = exchange, routing_key
        returned = _identity(message)
        # The broker returns messages in the order in which they were sent.
        first = None
        for sent in self._waiting.values():
            if sent.refusal is None and (sent.exchange, sent.routing_key) == address:
                first = first or sent
                if _identity(sent.message) == returned:
                    sent.refusal = error
                    return
        if first:
            first.refusal = error

    def _answered(self, tag: int, multiple: bool) -> list[Sent]:
        # A later answer may have a lower tag, when the messages went to different queues.
        if multiple:
            return [self._waiting.pop(each) for each in list(takewhile(tag.__ge__, self._waiting))]
        return [self._waiting.pop(tag)] if tag in self._waiting else []


@lru_cache(maxsize=256)
def _publish_arguments(exchange: str, routing_key: str, mandatory: bool, immediate: bool) -> bytes:
    """The arguments of AMQP's method, of which most messages of a window have the same."""
    encoded: bytes = serialization.dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
    return encoded


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def copy_of(message: amqp.Message, body: bytes | str, headers: dict[str, Any]) -> amqp.Message:
    """A persistent copy of the message with this body and these headers."""
    kept = {name: value for name, value in message.properties.items() if name not in _NOT_COPIED}
    return amqp.Message(body, application_headers=headers, delivery_mode=queues.PERSISTENT, **kept)


def can_be_written(message: amqp.Message) -> bool:
    """Whether py-amqp can write all properties of the message: it reads some that it cannot."""
    kinds = dict(message.PROPERTIES)
    given = {name: value for name, value in message.properties.items() if value is not None}
    try:
        serialization.dumps("".join(kinds[name] for name in given), given.values())
    except UNWRITABLE:
        return False
    return True


def _identity(message: amqp.Message | EncodedMessage) -> tuple[Any, ...]:
    """What distinguishes a message from others to the same address."""
    body = message.body
    properties = message.properties
    # A returned body is decoded to a `str` when the message names an encoding.
    encoded = body.encode(errors="replace") if isinstance(body, str) else bytes(body)
    return properties.get("correlation_id"), properties.get("message_id"), encoded
