"""Consumes foreign queues: one connection over which messages come in and tasks go out, until it is stopped.

Whatever goes wrong with the connection, nothing is repaired on it: it is dropped, and the broker delivers
again what was not acknowledged. What was confirmed and not acknowledged becomes a second message then, which
has the same id if the foreign one had a `message_id`.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from amqp import spec
from amqp.exceptions import AccessRefused, ChannelError, MessageNacked, NotFound

from proj.dead_letters.reasons import Reason
from proj.enqueue.app import App
from proj.errors import BrokerRefused
from proj.ingest.beat import Beat
from proj.ingest.composing import Composer
from proj.ingest.routes import Route
from proj.ingest.rubbish import Rubbish
from proj.ingest.source import Delivery, Source
from proj.logs import events
from proj.rabbitmq import connection, encoded, failures, topology
from proj.rabbitmq.publishing import Sent, Window

log = logging.getLogger(__name__)

#: Seconds that the broker may be silent before the connection counts as lost.
HEARTBEAT: Final = 60

#: Seconds between two turns of the loop when nothing happens: it looks after heartbeats, queues and signals.
TURN: Final = 0.5

#: Most events of the broker that are read before what they lead to is written.
READ_ON: Final = 100

#: Bytes from which on what was put together is written.
WRITE: Final = 2**16

#: Seconds until a lost connection is tried again: first, twice as long each time, and at most.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 16.0

#: Seconds that the broker has to close the connection.
CLOSE: Final = 2.0


class Consumer:
    """Turns the messages of all routes into tasks. For one thread."""

    def __init__(self, app: App, routes: Sequence[Route]) -> None:
        self._app = app
        #: The first is the next to be served.
        self._sources = deque(Source(route.queue, Composer(app, route)) for route in routes)
        self._timeout = app.settings.proj_publish_timeout
        self._stopping = threading.Event()
        self._beat = Beat(app.settings)
        self._broker: Any = None
        self._window: Any = None
        #: Why there is no connection, as it was logged.
        self._problem = ""

    def stop(self) -> None:
        """Let `run` return soon. May be called by a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Consume until `stop` is called, and connect again as long as that takes.

        Raises `BrokerRefused` when the broker refuses the user, or lets the user not publish.
        """
        pause, began = FIRST_PAUSE, 0.0
        with self._beat:
            while not self._stopping.is_set():
                try:
                    self._beat.connecting()
                    self._connect()
                    began = time.monotonic()
                    self._consume()
                except failures.ERRORS as error:
                    self._say(error)
                    if began and time.monotonic() - began > LONGEST_PAUSE:
                        pause = FIRST_PAUSE
                finally:
                    began = 0.0
                    self._drop()
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _say(self, error: BaseException) -> None:
        """Log once why the connection is lost or cannot be made. Raises `BrokerRefused` for what is final."""
        error = failures.root(error)
        if isinstance(error, ChannelError) and not isinstance(error, AccessRefused):
            found = f"the broker has closed a channel: {failures.words(error)}"
        else:
            explained = failures.explain(error, self._broker)
            if isinstance(explained, BrokerRefused):
                raise explained from error
            found = str(explained)
        if found != self._problem:
            log.error("%s; trying again", found)
        self._problem = found

    def _connect(self) -> None:
        self._broker = self._app.connection_for_write(heartbeat=HEARTBEAT)
        connection.connect(self._broker, time.monotonic() + self._timeout)
        self._declare()
        self._open_window()
        self._problem = ""
        log.info("connected to %s", self._app.settings.safe_broker_url)

    def _declare(self) -> None:
        """Declare the topology, if the user may; else what is missing shows when a message is returned."""
        self._broker.declared_entities.clear()
        with self._broker.channel() as channel, suppress(AccessRefused):
            topology.declare(channel, self._app.settings.topology)

    def _renew(self, refusal: Exception) -> None:
        """Prepare another attempt to send what was refused."""
        if not isinstance(refusal, MessageNacked):
            self._declare()
        elif not len(self._window):
            # A channel that a full quorum queue has refused goes on refusing when the queue's limit is taken
            # away; tried on RabbitMQ 3.10.8.
            self._open_window()

    def _open_window(self) -> None:
        """Open a window on a channel of its own, in place of the one before."""
        if self._window is not None:
            self._window.channel.close()  # py-amqp has opened it again if the broker has closed it
        self._window = Window(self._broker.channel())

    def _drop(self) -> None:
        if self._broker is not None:
            connection.abandon(self._broker)
        for source in self._sources:
            source.forget()
        self._window = None

    # --- The loop

    def _consume(self) -> None:
        next_turn, has_more = 0.0, False
        while not self._stopping.is_set():
            if time.monotonic() >= next_turn:
                self._turn()
                next_turn = time.monotonic() + TURN
            try:
                # By itself: a broker that takes it in slowly is not one that has nothing to say.
                self._window.flush(time.monotonic() + self._timeout)
                if self._window.read(time.monotonic() + (0 if has_more else TURN)):
                    self._read_on()
            except ChannelError as error:
                if error.method_sig != spec.Basic.Publish or isinstance(error, AccessRefused | NotFound):
                    raise
                self._isolate(error)
            has_more = self._forward()
        self._end()

    def _read_on(self) -> None:
        """Read what else is there, so that what it leads to is written at once."""
        for _ in range(READ_ON):
            live = connection.opened(self._broker)
            if live is None or not live.has_input:
                break
            live.drain_events()

    def _turn(self) -> None:
        self._broker.heartbeat_check()
        for source in self._sources:
            source.open(self._broker)
        self._beat.turned(consumes=any(source.consumes for source in self._sources))

    def _forward(self) -> bool:
        """Acknowledge what is confirmed, and send what was delivered; whether there is more to be sent."""
        for source in self._sources:
            source.settle(self._done, self._renew)
        for place, source in enumerate(self._sources, 1):
            # During an alarm the broker reads nothing, and a write might block.
            while not connection.is_blocked(self._broker) and (delivery := source.next_to_send()):
                self._send(delivery)
                if self._window.unwritten >= WRITE:
                    self._sources.rotate(-place)  # a backlog does not hold up the others
                    return True
        return False

    def _send(self, delivery: Delivery) -> None:
        composed = delivery.composed
        delivery.sent = Sent(composed.message, composed.exchange, composed.routing_key)
        self._window.put(delivery.sent)

    def _isolate(self, error: ChannelError) -> None:
        """Find the message over which the broker has closed the channel, and make it a dead letter.

        It is larger as a task than as a foreign message, and than the broker accepts. Which of several it is
        shows when each is sent alone.
        """
        waiting = [
            (source, delivery)
            for source in self._sources
            for delivery in source.deliveries
            if delivery.sent and not delivery.sent.answered
        ]
        if len(waiting) == 1:
            if waiting[0][1].composed.rubbish:
                raise error
            self._bury(*waiting[0], error)
        self._open_window()
        for source, delivery in waiting:
            if not delivery.composed.rubbish:
                encoded.mark_repeat(delivery.composed.message)  # the broker may have routed it before
            try:
                self._send_alone(delivery)
            except ChannelError as its_own:
                if its_own.method_sig != spec.Basic.Publish or delivery.composed.rubbish:
                    raise
                self._open_window()
                self._bury(source, delivery, its_own)
                self._send_alone(delivery)

    def _bury(self, source: Source, delivery: Delivery, error: ChannelError) -> None:
        rubbish = Rubbish(Reason.INVALID, f"the broker does not accept its task: {failures.words(error)}")
        delivery.composed = source.composer.bury(delivery.message, rubbish, delivery.composed.id)

    def _send_alone(self, delivery: Delivery) -> None:
        self._send(delivery)
        self._window.wait(time.monotonic() + self._timeout)

    def _done(self, delivery: Delivery) -> None:
        composed = delivery.composed
        if composed.rubbish:
            reason, problem = composed.rubbish.reason, composed.rubbish.problem
            words = f"became a dead letter: {reason.words}: {problem}"
            events.say(log, logging.WARNING, events.DEAD_LETTERED, composed.id, None, words, reason=reason)
        else:
            events.say(log, logging.INFO, events.PUBLISHED, composed.id, composed.task, "published")

    def _end(self) -> None:
        """Consume no more, and acknowledge what is confirmed in time; the broker keeps the rest."""
        log.info("stopping")
        self._beat.stopping()
        for source in self._sources:
            source.stop()
        deadline = time.monotonic() + self._timeout
        try:
            self._forward()
            while len(self._window):
                self._window.wait(deadline)
                self._forward()
        except TimeoutError:
            log.warning(
                "the broker does not confirm %d messages: they stay in their queues", len(self._window)
            )
        for source in self._sources:
            source.settle(self._done, self._renew)
        with connection.cut_at(max(deadline, time.monotonic() + CLOSE), self._broker):
            self._broker.close()  # in order, so that the broker has read all acknowledgements
