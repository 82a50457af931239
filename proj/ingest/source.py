"""One foreign queue: it is consumed as it is, and each message acknowledged once its copy is confirmed."""

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import amqp
from amqp.exceptions import ChannelError, MessageNacked, NotFound

from proj.ingest.composing import Composed, Composer
from proj.rabbitmq import failures
from proj.rabbitmq.publishing import Sent

log = logging.getLogger(__name__)

#: Most messages of one queue that are fetched and not acknowledged. A crash delivers so many again, and all
#: of them may be in memory: of 2 MiB each, or of any size that the broker accepts, if no task can be made of
#: them. More are hardly faster, and half as many a fifth slower.
PREFETCH: Final = 64

#: Bytes of tasks made of one queue that are not confirmed, from which on no more are made.
MAX_BYTES: Final = 4 * 2**20

#: Seconds until a queue that cannot be consumed is tried again: first, twice as long each time, and at most.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0

#: Seconds until a message that the broker has refused is sent again: likewise.
FIRST_REFUSAL_PAUSE: Final = 0.1
LONGEST_REFUSAL_PAUSE: Final = 5.0


@dataclass(eq=False, slots=True)
class Delivery:
    """A foreign message that was delivered and is not acknowledged."""

    message: amqp.Message
    tag: int
    #: What is sent in its place. Made when it is sent, since it needs as much memory again.
    composed: Composed = field(init=False)
    #: Bytes of its body; None until then.
    size: int | None = None
    #: None while it is still to be sent.
    sent: Sent | None = None


class Source:
    """The consumer of one queue, on a channel of its own, which the broker may close without the others."""

    def __init__(self, queue: str, composer: Composer) -> None:
        self.queue = queue
        self.composer = composer
        #: In the order of their delivery.
        self.deliveries: deque[Delivery] = deque()
        #: Those that are still to be sent, of which those come first that were sent before.
        self._unsent: deque[Delivery] = deque()
        #: Bytes of those that were sent, and are not acknowledged.
        self._bytes = 0
        self._channel: Any = None
        self._tag: str | None = None
        self._again_at = 0.0
        self._pause = FIRST_PAUSE
        self._problem = ""
        #: Whether the broker left the last attempt without an answer, which ended the connection.
        self._hangs = False
        self._refused_until = 0.0
        self._refusal_pause = FIRST_REFUSAL_PAUSE
        self._is_refused = False

    @property
    def consumes(self) -> bool:
        return self._tag is not None

    def forget(self) -> None:
        """Forget what was delivered over a connection that is lost; the broker delivers it again."""
        self._clear()
        self._channel = self._tag = None
        if not self._hangs:
            self._again_at = 0.0

    def open(self, broker: Any) -> None:
        """Consume the queue, unless it is consumed or was tried a moment ago.

        Declares a queue that is missing. One that cannot be consumed is one line in the log. Raises errors of
        the connection.
        """
        if self.consumes or time.monotonic() < self._again_at:
            return
        self._close()  # after the broker has cancelled the consumer
        try:
            self._channel = broker.channel()
            self._declare()
            self._channel.auto_decode = False  # a body is bytes
            self._channel.basic_qos(0, PREFETCH, a_global=False)
            self._tag = self._channel.basic_consume(
                self.queue, callback=self._on_message, on_cancel=self._on_cancel
            )
        except ChannelError as error:
            self._hangs = False
            self._close()  # py-amqp has opened the channel again
            self._wait(failures.words(error))
        except TimeoutError:
            # In a cluster, RabbitMQ 4 says nothing of a classic queue whose node is down. The next connection
            # leaves this queue out until the pause is over, and serves the others.
            self._hangs = True
            self._wait("the broker does not answer: does the node run that has the queue?")
            raise
        else:
            log.info("consuming queue %s", self.queue)
            self._hangs, self._pause, self._problem = False, FIRST_PAUSE, ""

    def _declare(self) -> None:
        """Declare the queue if it is missing; one that is there may have any arguments."""
        try:
            self._channel.queue_declare(self.queue, passive=True)
        except NotFound:
            # As the classic programs declare it. When another program is faster, with other arguments, the
            # next attempt finds its queue.
            self._channel.queue_declare(self.queue, durable=True, auto_delete=False)
            log.info("declared queue %s", self.queue)

    def _wait(self, problem: str) -> None:
        self._again_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if problem != self._problem:
            log.error("queue %s cannot be consumed, and is tried again: %s", self.queue, problem)
        self._problem = problem

    def _close(self) -> None:
        """Close the channel; the broker delivers what is not acknowledged again."""
        channel, self._channel, self._tag = self._channel, None, None
        self._clear()
        if channel is not None:
            channel.close()

    def _clear(self) -> None:
        self.deliveries.clear()
        self._unsent.clear()
        self._bytes = 0

    def _on_message(self, message: amqp.Message) -> None:
        delivery = Delivery(message, message.delivery_tag)
        self.deliveries.append(delivery)
        self._unsent.append(delivery)

    def _on_cancel(self, _tag: str) -> None:
        """The broker has cancelled the consumer, for example since the queue was deleted."""
        self._tag = None
        self._wait("the broker has cancelled its consumer: was the queue deleted?")

    def stop(self) -> None:
        """Let the broker deliver no more; what was on its way is there when this returns."""
        if self._tag is not None:
            self._channel.basic_cancel(self._tag)
        self._tag = None

    def next_to_send(self) -> Delivery | None:
        """The next message to be sent; None while there is none, or too much is on its way."""
        if not self._unsent or (self._unsent[0].size is None and self._bytes >= MAX_BYTES):
            return None
        delivery = self._unsent.popleft()
        if delivery.size is None:
            delivery.composed = self.composer.compose(delivery.message)
            delivery.size = len(delivery.composed.message.body)
            self._bytes += delivery.size
        return delivery

    def settle(self, on_done: Callable[[Delivery], None], renew: Callable[[Exception], None]) -> None:
        """Acknowledge what is confirmed, from the front.

        `renew` is called with the reason before what was refused is sent again.
        """
        last = None
        while self.deliveries and (sent := self.deliveries[0].sent) and sent.answered:
            if sent.refusal:
                if self._resend(sent.refusal):
                    renew(sent.refusal)
                break
            last = self.deliveries.popleft()
            self._bytes -= last.size or 0
            on_done(last)
        if last:
            self._channel.basic_ack(last.tag, multiple=True)
            if self._is_refused and not self._refused:
                log.info("queue %s goes on", self.queue)
                self._is_refused, self._refusal_pause = False, FIRST_REFUSAL_PAUSE

    @property
    def _refused(self) -> list[Delivery]:
        return [each for each in self.deliveries if each.sent and each.sent.refusal]

    def _resend(self, why: Exception) -> bool:
        """Let all that was refused be sent again, if the pause is over."""
        now = time.monotonic()
        if not self._is_refused:
            self._is_refused = True
            self._refused_until = now + self._refusal_pause
            words = "the work queue is full" if isinstance(why, MessageNacked) else failures.words(why)
            log.warning("queue %s waits: the broker does not take its messages: %s", self.queue, words)
        if now < self._refused_until:
            return False
        self._refused_until = now + self._refusal_pause
        self._refusal_pause = min(2 * self._refusal_pause, LONGEST_REFUSAL_PAUSE)
        for each in reversed(self._refused):
            each.sent = None
            self._unsent.appendleft(each)
        return True
