"""Publishes one message before a deadline: connect, declare, send, and wait for the confirm.

A publish ends in one of these ways:

- it returns: the broker has *confirmed* the message and is responsible for it;
- `BadInput`: the message cannot be sent, and was not sent;
- `BrokerUnreachable` or `BrokerRefused`: the message is certainly not in a queue;
- `OutcomeUnknown`: no confirm came, and the message may be in the queue.
"""

import logging
import struct
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import amqp
from amqp.exceptions import AccessRefused, FrameSyntaxError, MessageNacked
from celery import Celery
from celery.exceptions import QueueNotFound
from kombu.exceptions import EncodeError

from proj import queues
from proj.deadline import within
from proj.enqueue.routing import unknown_queue
from proj.errors import BadArguments, BadInput, BrokerRefused, BrokerUnreachable, OutcomeUnknown, ProjError
from proj.logs import events
from proj.queues import Topology
from proj.rabbitmq import connection, failures, topology

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

    def send_it(producer: Any) -> None:
        left = max(0, publish.deadline - time.monotonic())
        producer.channel.basic_publish(message, exchange, routing_key, mandatory=True, confirm_timeout=left)

    def mark() -> None:
        headers = message.properties.get("application_headers") or {}
        message.properties["application_headers"] = {**headers, queues.REPEAT_HEADER: True}

    publish = Publish(app, name, task_id, deadline or deadline_of(app), delayed)
    publish.run(send_it, mark)


def deadline_of(app: Celery) -> float:
    """The deadline (of `time.monotonic`) of a publish that begins now."""
    return time.monotonic() + float(app.conf.broker_transport_options["read_timeout"])


@dataclass(frozen=True)
class Publish:
    """The publish of one message; its log lines and errors have the task's name and the message's id."""

    app: Celery
    name: str
    task_id: str
    #: Of `time.monotonic`.
    deadline: float
    delayed: bool = False

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
        except TimeoutError as error:
            raise OutcomeUnknown(
                f"{self.name}: message {self.task_id} was published during another publish of its thread, "
                "and was not confirmed in time",
                f"it may still reach the queue; to repeat it with --id {self.task_id} is safe",
            ) from error

    def _run(self, send: Callable[[Any], T], mark_repeat: Callable[[], None], given: Any) -> T:
        lost: OutcomeUnknown | None = None
        try:
            _this_thread.busy = True
            while True:
                used_before = False
                try:
                    with ExitStack() as stack:
                        producer = given or self._acquire(stack)
                        used_before = producer.connection.connected
                        return self._attempt(send, producer)
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
                    if not (used_before and _may_be_fixed(error)) or time.monotonic() >= self.deadline:
                        raise
        finally:
            _this_thread.busy = False

    def _acquire(self, stack: ExitStack) -> Any:
        # Not Celery's pool of producers: in kombu 5.7 it has more producers than connections, and a producer
        # waits for a connection without a timeout.
        pool = self.app.pool
        try:
            broker = pool.acquire(block=True, timeout=max(0, self.deadline - time.monotonic()))
        except pool.LimitExceeded as error:
            raise BrokerUnreachable(
                f"all {pool.limit} connections to the broker are in use", "publish from fewer threads"
            ) from error
        return self.app.amqp.Producer(stack.enter_context(broker), auto_declare=False)

    def _attempt(self, send: Callable[[Any], T], producer: Any) -> T:
        """Connect, declare and publish before the deadline. A failure drops the connection."""
        broker = producer.connection
        try:
            with connection.cut_at(self.deadline, broker):
                self._prepare(producer)
                return self._confirm(send, producer)
        except BaseException:
            # The broker may not answer any more, and a late confirm would count as that of the next message.
            connection.abandon(broker)
            raise

    def _prepare(self, producer: Any) -> None:
        """Connect and declare. Errors here come before the message is sent."""
        broker = producer.connection
        try:
            if not connection.is_alive(broker):
                connection.abandon(broker)
                connection.connect(broker, self.deadline)
                producer.revive(broker)
            _declare(producer, self.app.settings.topology, delayed=self.delayed)
            if time.monotonic() >= self.deadline:
                raise TimeoutError
        except failures.ERRORS as error:
            late = time.monotonic() >= self.deadline
            raise failures.explain(TimeoutError() if late else error, broker) from error

    def _confirm(self, send: Callable[[Any], T], producer: Any) -> T:
        """Call `send`, and turn its errors into the outcome of the message."""
        try:
            return send(producer)
        except EncodeError as error:
            raise BadArguments(f"{self.name}: JSON cannot carry the arguments: {error}") from error
        except QueueNotFound as error:
            # Of the `KeyError` that it comes from: Celery's own words hold the name in a sentence.
            problem = unknown_queue(self.app, getattr(error.__context__, "args", ("",))[0])
            raise BadInput(f"{self.name}: {problem.message}", problem.hint) from error
        except (TypeError, ValueError, LookupError, OverflowError, struct.error) as error:
            raise BadInput(f"{self.name}: an option cannot be sent: {failures.words(error)}") from error
        except (MessageNacked, *failures.ERRORS) as error:
            raise self._fate(producer.connection, failures.root(error)) from error

    def _fate(self, broker: Any, error: BaseException) -> ProjError:
        """The outcome of a publish that ended with this error."""
        if isinstance(error, MessageNacked):
            return BrokerRefused(
                f"{self.name}: the broker refused the message: "
                "the queue is full, or lacks the majority of its nodes",
                "retry when workers have made room or the nodes are up",
            )
        # Without a method, py-amqp has raised it, and not the broker.
        if isinstance(error, FrameSyntaxError) and error.method_sig is None:
            return BadInput(f"{self.name}: an option cannot be sent: {failures.words(error)}")
        if getattr(error, "reply_code", None) == _NO_ROUTE:
            return BrokerRefused(
                f"{self.name}: no queue takes the message", "does its queue exist, bound to its exchange?"
            )
        if failures.is_refusal(error):
            return failures.explain(error, broker)
        why = f", {connection.ALARM}" if connection.is_blocked(broker) else ""
        return OutcomeUnknown(
            f"{self.name}: the broker did not confirm message {self.task_id}{why}",
            f"it may be in the queue; to repeat it with --id {self.task_id} is safe",
        )


def _declare(producer: Any, wanted: Topology, *, delayed: bool) -> None:
    """Declare what the message needs, as far as the user has the permission."""
    broker = producer.connection
    # For a user who may only publish, the publish itself shows whether something is missing.
    try:
        topology.declare(producer.channel, wanted)
    except AccessRefused:
        broker.declared_entities.update(map(hash, wanted.queues))
    if delayed:
        with suppress(AccessRefused):
            topology.declare_delays(broker, wanted)


def _may_be_fixed(error: ProjError) -> bool:
    """Whether a new connection, on which everything is declared again, may avoid this error."""
    if isinstance(error, BrokerUnreachable):
        return True
    cause = failures.root(error.__cause__ or error)
    return getattr(cause, "reply_code", None) == _NO_ROUTE or failures.is_missing(cause)
