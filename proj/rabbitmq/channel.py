"""The channels of our connections: they publish with confirms, and take less time for what is frequent."""

import os
import struct
import time
from collections.abc import Callable
from typing import Any, Final

import amqp
from amqp import spec
from amqp.exceptions import RecoverableConnectionError
from kombu import pidbox
from kombu.transport import pyamqp

from proj.rabbitmq.encoded import EncodedMessage
from proj.rabbitmq.publishing import FRAME_END, Window

#: A confirm, or an acknowledgement: four bytes that say which method it is, and its arguments.
_ACK: Final = struct.Struct(">4xQ?")

#: The frame of an acknowledgement.
_ACK_FRAME: Final = struct.Struct(">BHIHHQ?B")

#: How the exchanges of remote control end, for commands and for replies.
_REMOTE_CONTROL: Final = pidbox.Mailbox.exchange_fmt.removeprefix("%s")


class Channel(pyamqp.Channel):
    """Kombu's channel, whose `basic_publish` returns when the broker has confirmed exactly this message."""

    _window: Window | None = None

    #: The queue of each consumer tag. It stays when the consumer is cancelled, since deliveries that are on
    #: their way then come before the broker's answer.
    consumed: dict[str, str]

    def open(self) -> Any:
        """Open the channel. Py-amqp reopens it after a channel error, and confirms are off then."""
        if self._window:
            self._window.end()
        self._window = None
        self.consumed = {}
        return super().open()

    def basic_consume(self, queue: str = "", consumer_tag: str = "", **options: Any) -> Any:
        self.consumed[consumer_tag] = queue
        return super().basic_consume(queue, consumer_tag, **options)

    def dispatch_method(self, method_sig: tuple[int, int], payload: bytes, content: Any) -> None:
        """Handle a method, as py-amqp does, which takes three times as long for a confirm."""
        if method_sig == spec.Basic.Ack and not self.is_closing:
            tag, multiple = _ACK.unpack_from(payload)
            for listener in self.events["basic_ack"]:
                listener(tag, multiple)
        else:
            super().dispatch_method(method_sig, payload, content)

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge a message, as py-amqp does, which takes four times as long."""
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("the connection is closed")
        frame = 1, self.channel_id, _ACK.size, *spec.Basic.Ack, delivery_tag, multiple, FRAME_END
        connection.transport.write(_ACK_FRAME.pack(*frame))
        connection.bytes_sent += 1  # for py-amqp's heartbeats

    def basic_publish_confirm(
        self,
        message: amqp.Message | EncodedMessage,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        confirm_timeout: float | None = None,
        meanwhile: Callable[[], Any] | None = None,
        **options: Any,
    ) -> Any:
        """Publish, and wait at most `confirm_timeout` seconds for the confirm.

        Returns what `meanwhile` returns, which is called while the broker works. On a connection with
        `confirm_publish`, this is `basic_publish`. Raises `Nacked`, a `ChannelError` when no queue takes a
        mandatory message, and the errors of `Window`.

        A refusal of remote control is no error: the broker refuses a command to all workers when one of their
        queues does not take it, such as that of a worker on a lost node (RabbitMQ 4.3). The others have it.
        """
        deadline = None if confirm_timeout is None else time.monotonic() + confirm_timeout
        if self._window is None or not self._window.usable:
            self._window = Window(self)
        sent = self._window.send(message, exchange, routing_key, mandatory=mandatory, **options)
        made = None
        if meanwhile:
            # Linux wakes a broker on this machine on this core, where it would wait until this thread sleeps.
            os.sched_yield()
            made = meanwhile()
        self._window.wait(deadline)
        if sent.refusal and not exchange.endswith(_REMOTE_CONTROL):
            raise sent.refusal
        return made
