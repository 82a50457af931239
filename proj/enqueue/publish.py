"""Publishes one message before a deadline: connect, declare, send, and wait for the confirm.

A publish ends in one of these ways:

- it returns: the broker has *confirmed* the message and is responsible for it;
- `BadInput`: the message cannot be sent, and was not sent;
- `BrokerUnreachable` or `BrokerRefused`: the message is certainly not in a queue;
- `OutcomeUnknown`: no confirm came, and the message may be in the queue.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import amqp
from amqp.exceptions import AccessRefused, FrameSyntaxError
from celery import Celery

from proj.deadline import NoThread, within
from proj.enqueue.composing import UNSENDABLE, unsendable
from proj.enqueue.published import FULL, full_queue, no_route, unknown
from proj.errors import BadInput, BrokerRefused, BrokerUnreachable, OutcomeUnknown, ProjError
from proj.logs import events
from proj.rabbitmq import connection, encoded, failures, topology
from proj.rabbitmq.publishing import Nacked

log = logging.getLogger("proj.enqueue")

T = TypeVar("T")

#: AMQP's reply code for a mandatory message that no queue takes.
_NO_ROUTE: Final = 312

#: Seconds beyond the deadline that a publish in another thread has to report its outcome.
_REPORT_TIME: Final = 1.0


class _ThisThread(threading.local):
    """Whether the current thread is in a publish."""

    busy = False


_this_thread: Final = _ThisThread()


def send(
    app: Celery,
    message: amqp.Message,
    exchange: str,
    routing_key: str,
    *,
    task_id: str,
    name: str,
    deadline: float | None = None,
    delayed: bool = False,
) -> None:
    """Publish a message unchanged, over a connection of the application's pool.

    The deadline is of `time.monotonic`; by default it is `PROJ_PUBLISH_TIMEOUT` from now. With `delayed`, the
    delay queues are declared first. A message that is sent again because no confirm came is marked as a
    repeat. Raises the errors that this module's docstring lists.
    """
    publish = Publish(app, name, task_id, deadline or deadline_of(app), delayed)
    publish.run(
        partial(publish.send_message, message, exchange, routing_key), partial(encoded.mark_repeat, message)
    )


def deadline_of(app: Celery) -> float:
    """The deadline (of `time.monotonic`) of a publish that begins now."""
    return time.monotonic() + float(app.settings.proj_publish_timeout)


@dataclass(slots=True)
class Publish:
    """The publish of one message; its log lines and errors have the task's name and the message's id."""

    app: Celery
    name: str
    task_id: str
    #: Of `time.monotonic`.
    deadline: float
    delayed: bool = False
    #: Whether the connection was open before this attempt.
    _reused: bool = field(default=False, init=False)

    def run(self, send: Callable[[Any], T], mark_repeat: Callable[[], None], producer: Any = None) -> T:
        """Call `send` with the given producer or one of the pool, and return its result.

        `send` is retried on a new connection when the message is certainly in no queue and a used connection
        may be the cause: it was lost, or a queue that was declared on it was deleted. When no confirm came,
        `send` is retried once, after `mark_repeat`.
        """
        if not _this_thread.busy:
            return self._run(send, mark_repeat, producer)
        # A signal handler or a finalizer has interrupted a publish of this thread, which may hold locks of
        # kombu's pool or of Celery's signals. Another thread can wait for these with a timeout.
        try:
            patience = self.deadline - time.monotonic() + _REPORT_TIME
            return within(patience, partial(self._run, send, mark_repeat, None))
        except NoThread as error:
            raise failures.explain(error, self.app.connection_for_write()) from error
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{self.name}: message {self.task_id} was published during another publish of its thread, "
                "and was not confirmed in time",
                f"it may still reach the queue; to repeat it with --id {self.task_id} is safe",
            ) from error

    def send_message(
        self,
        message: amqp.Message,
        exchange: str,
        routing_key: str,
        producer: Any,
        meanwhile: Callable[[], Any] | None = None,
    ) -> Any:
        """Publish a message unchanged with this producer. Raises the errors of the connection.

        Returns what `meanwhile` returns, which is called while the broker works.
        """
        # `cut_at` bounds the wait. A timeout of the socket would cost five system calls more.
        return producer.channel.basic_publish_confirm(
            message, exchange, routing_key, mandatory=True, meanwhile=meanwhile
        )

    def _run(self, send: Callable[[Any], T], mark_repeat: Callable[[], None], given: Any) -> T:
        lost: OutcomeUnknown | None = None
        try:
            _this_thread.busy = True
            while True:
                pooled = None
                self._reused = False
                try:
                    if given is None:
                        pooled = connection.acquire(self.app, self.deadline)
                    broker = given.connection if pooled is None else pooled
                    return self._attempt(send, broker, given)
                except OutcomeUnknown as error:
                    if lost or time.monotonic() >= self.deadline:
                        raise lost or error from error.__cause__
                    lost = error
                    words = "published once more: the broker did not confirm it"
                    events.say(log, logging.WARNING, events.PUBLISH_REPEATED, self.task_id, self.name, words)
                    mark_repeat()
                except (BrokerUnreachable, BrokerRefused) as error:
                    if lost:
                        raise lost from error
                    if not (self._reused and _may_be_fixed(error)) or time.monotonic() >= self.deadline:
                        raise
                finally:
                    if pooled is not None:
                        connection.release(pooled)
        finally:
            _this_thread.busy = False

    def _attempt(self, send: Callable[[Any], T], broker: Any, given: Any) -> T:
        """Connect, declare and publish before the deadline. A failure drops the connection."""
        try:
            with connection.cut_at(self.deadline, broker):
                producer = self._prepare(broker, given)
                return self._confirm(send, producer)
        except NoThread as error:
            raise failures.explain(error, broker) from error
        except BaseException:
            # The broker may not answer any more, and a late confirm would count as that of the next message.
            connection.abandon(broker)
            raise

    def _prepare(self, broker: Any, given: Any) -> Any:
        """Connect and declare, unless that was done. Errors here come before the message is sent."""
        wanted = self.app.settings.topology
        try:
            live = connection.alive(broker)
            self._reused = live is not None
            if live is None:
                connection.abandon(broker)
                connection.connect(broker, self.deadline)
                live = broker.connection
                if given is not None:
                    given.revive(broker)
            if given is not None:
                # As py-amqp does on a connection with `confirm_publish`, which the caller's may lack.
                given.channel.basic_publish = given.channel.basic_publish_confirm
            producer = live.producer if given is None else given
            if producer is None:
                producer = live.producer = self.app.amqp.Producer(broker, auto_declare=False)
            if live.declared is not wanted:
                topology.declare_permitted(broker, producer.channel, wanted)
                live.declared = wanted
            if self.delayed:
                with suppress(AccessRefused):
                    topology.declare_delays(broker, wanted)
            if time.monotonic() >= self.deadline:
                raise TimeoutError
            return producer
        except failures.ERRORS as error:
            late = time.monotonic() >= self.deadline
            raise failures.explain(TimeoutError() if late else error, broker) from error

    def _confirm(self, send: Callable[[Any], T], producer: Any) -> T:
        """Call `send`, and turn its errors into the outcome of the message."""
        try:
            return send(producer)
        except UNSENDABLE as error:
            raise unsendable(self.app, self.name, error) from error
        except (Nacked, *failures.ERRORS) as error:
            raise self._fate(producer.connection, failures.root(error)) from error

    def _fate(self, broker: Any, error: BaseException) -> ProjError:
        """The outcome of a publish that ended with this error."""
        if isinstance(error, Nacked):
            return unknown(self.name, self.task_id, FULL) if error.may_be_queued else full_queue(self.name)
        # Without a method, py-amqp has raised it, and not the broker.
        if isinstance(error, FrameSyntaxError) and error.method_sig is None:
            return BadInput(f"{self.name}: an option cannot be sent: {failures.words(error)}")
        if getattr(error, "reply_code", None) == _NO_ROUTE:
            return no_route(self.name)
        if failures.is_refusal(error):
            return failures.explain(error, broker)
        return unknown(self.name, self.task_id, connection.ALARM if connection.is_blocked(broker) else "")


def _may_be_fixed(error: ProjError) -> bool:
    """Whether a new connection, on which everything is declared again, may avoid this error."""
    if isinstance(error, BrokerUnreachable):
        return True
    cause = failures.root(error.__cause__ or error)
    return getattr(cause, "reply_code", None) == _NO_ROUTE or failures.is_missing(cause)
