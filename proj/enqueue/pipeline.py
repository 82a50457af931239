"""One connection with all that messages need declared on it, and a window of messages in flight."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import kombu
from amqp.exceptions import AccessRefused
from celery import Celery

from proj.rabbitmq import connection, failures, topology
from proj.rabbitmq.publishing import Window


class Pipeline:
    """A connection of the application's pool, until it is closed, with a channel of its own."""

    def __init__(self, app: Celery, deadline: float, on_answer: Callable[[Any], None]) -> None:
        """Connect and declare. Raises `BrokerUnreachable` and `BrokerRefused`."""
        self._wanted = app.settings.topology
        #: Whether what delayed messages need is declared, as far as the user has the right.
        self.delays_are_declared = False
        self._stack = ExitStack()
        #: For the words of an error, when it is closed too.
        self.broker: kombu.Connection = connection.acquire(app, deadline)
        self._stack.callback(connection.release, self.broker)
        try:
            with connection.cut_at(deadline, self.broker):
                if not connection.alive(self.broker):
                    connection.abandon(self.broker)
                    connection.connect(self.broker, deadline)
                topology.declare_permitted(self.broker, self.broker.default_channel, self._wanted)
                self.window = Window(self.broker.channel(), on_answer)
        except BaseException as error:
            self.abandon()
            if isinstance(error, failures.ERRORS):
                late = time.monotonic() >= deadline
                raise failures.explain(TimeoutError() if late else error, self.broker) from error
            raise

    @property
    def is_blocked(self) -> bool:
        """Whether an alarm of the broker blocks this connection."""
        return connection.is_blocked(self.broker)

    def declare_delays(self, deadline: float) -> None:
        """Declare what delayed messages need. Nothing may be in flight.

        Raises `BrokerRefused`, and errors of the connection.
        """
        try:
            with connection.cut_at(deadline, self.broker), suppress(AccessRefused):
                topology.declare_delays(self.broker, self._wanted)
        except failures.ERRORS as error:
            if failures.is_refusal(error):
                raise failures.explain(error, self.broker) from error
            raise
        self.delays_are_declared = True

    def close(self, deadline: float) -> None:
        """Give the connection back to the pool. Nothing may be in flight."""
        try:
            with connection.cut_at(deadline, self.broker):
                self.window.channel.close()
        except failures.ERRORS:
            connection.abandon(self.broker)
        except BaseException:
            self.abandon()
            raise
        self._stack.close()

    def abandon(self) -> None:
        """Drop the connection: it may not answer any more, and a late confirm would reach another message."""
        connection.abandon(self.broker)
        self._stack.close()

    def forget(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        self._stack.pop_all()
