"""Publisher confirms: which messages the broker has confirmed, and which it has refused.

The one place that waits for confirms: of a single message (`Channel`), or of many in flight (`Window`).
Py-amqp does not match them: it takes the next confirm for that of the last message.
"""

import time
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import amqp
from amqp.exceptions import MessageNacked
from kombu.transport import pyamqp

from proj import queues

#: Properties that a copy of a message does not take over: `expiration` would end the copy too, and `user_id`
#: must be that of the publisher.
_NOT_COPIED: Final = ("application_headers", "delivery_mode", "expiration", "user_id", "cluster_id")


@dataclass(eq=False, slots=True)
class Sent:
    """A message that was sent, and the broker's answer."""

    message: amqp.Message
    exchange: str
    routing_key: str
    #: Whether the broker has confirmed or refused it.
    answered: bool = False
    #: Why no queue has the message: `MessageNacked`, or a `ChannelError` with the reply code of its return.
    refusal: Exception | None = None


class Window:
    """The messages in flight on one channel: sent, and not yet confirmed or refused.

    After any error, including a `TimeoutError` of `wait`, discard the window and its channel: py-amqp may
    have reopened the channel without confirms. The outcome of messages in flight is then unknown.
    """

    def __init__(self, channel: amqp.Channel) -> None:
        """Switch confirms on. The channel must not have published before."""
        self.channel = channel
        self.usable = True
        self._tag = 0
        self._waiting: dict[int, Sent] = {}  # by delivery tag, ascending
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

    def send(self, message: amqp.Message, exchange: str, routing_key: str, **options: Any) -> Sent:
        """Send a message without waiting for its confirm; it is mandatory by default.

        The options are those of `amqp.Channel.basic_publish`. Raises py-amqp's errors, which may concern
        messages sent before.
        """
        sent = Sent(message, exchange, routing_key)
        self._tag += 1
        self._waiting[self._tag] = sent
        try:
            # Not the channel's own method, which waits.
            amqp.Channel.basic_publish(
                self.channel, message, exchange, routing_key, **{"mandatory": True} | options
            )
        except BaseException:
            self.end()
            raise
        return sent

    def wait(self, deadline: float | None = None, room: int = 0) -> None:
        """Return when at most `room` messages are in flight.

        Raises `TimeoutError` at the deadline (of `time.monotonic`), and py-amqp's errors.
        """
        try:
            while len(self._waiting) > room:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("the broker did not confirm in time")
                self.channel.connection.drain_events(timeout=left)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Stop listening to the channel."""
        self.usable = False
        for event, listener in self._listeners.items():
            self.channel.events[event].discard(listener)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for sent in self._answered(tag, multiple):
            sent.answered = True

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for sent in self._answered(tag, multiple):
            sent.answered, sent.refusal = True, sent.refusal or MessageNacked()

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        """Mark a message that no queue takes. Its ack, which has its delivery tag, still follows."""
        address = exchange, routing_key
        candidates = [
            sent
            for sent in self._waiting.values()
            if sent.refusal is None and (sent.exchange, sent.routing_key) == address
        ]
        returned = _identity(message)
        for sent in candidates:
            if _identity(sent.message) == returned:
                sent.refusal = error
                break
        else:
            # The broker returns messages in the order in which they were sent.
            candidates[0].refusal = error

    def _answered(self, tag: int, multiple: bool) -> list[Sent]:
        # A later answer may have a lower tag, when the messages went to different queues.
        tags = list(takewhile(tag.__ge__, self._waiting)) if multiple else [tag]
        return [self._waiting.pop(each) for each in tags if each in self._waiting]


class Channel(pyamqp.Channel):
    """Kombu's channel, whose `basic_publish` returns when the broker has confirmed exactly this message."""

    _window: Window | None = None

    def open(self) -> Any:
        """Open the channel. Py-amqp reopens it after a channel error, and confirms are off then."""
        if self._window:
            self._window.end()
        self._window = None
        return super().open()

    def basic_publish_confirm(
        self,
        message: amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        confirm_timeout: float | None = None,
        **options: Any,
    ) -> None:
        """Publish, and wait at most `confirm_timeout` seconds for the confirm.

        On a connection with `confirm_publish`, this is `basic_publish`. Raises `MessageNacked`, a
        `ChannelError` when no queue takes a mandatory message, and the errors of `Window`.
        """
        deadline = None if confirm_timeout is None else time.monotonic() + confirm_timeout
        if self._window is None or not self._window.usable:
            self._window = Window(self)
        sent = self._window.send(message, exchange, routing_key, mandatory=mandatory, **options)
        self._window.wait(deadline)
        if sent.refusal:
            raise sent.refusal


def copy_of(message: amqp.Message, body: bytes | str, headers: dict[str, Any]) -> amqp.Message:
    """A persistent copy of the message with this body and these headers."""
    kept = {name: value for name, value in message.properties.items() if name not in _NOT_COPIED}
    return amqp.Message(body, application_headers=headers, delivery_mode=queues.PERSISTENT, **kept)


def _identity(message: amqp.Message) -> tuple[Any, ...]:
    """What distinguishes a message from others to the same address."""
    body = message.body
    properties = message.properties
    # A returned body is decoded to a `str` when the message names an encoding.
    encoded = body.encode(errors="replace") if isinstance(body, str) else bytes(body)
    return properties.get("correlation_id"), properties.get("message_id"), encoded
