"""Moves messages that must not be executed yet to the broker's delay queues, so that they hold no slot."""

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final

import amqp
import celery
from celery.utils.log import get_logger
from kombu.transport.native_delayed_delivery import MAX_LEVEL, calculate_routing_key, level_name

from proj import queues
from proj.dead_letters.reasons import Reason
from proj.enqueue import publish
from proj.errors import BrokerRefused, BrokerUnreachable, OutcomeUnknown
from proj.logs import events
from proj.rabbitmq.publishing import copy_of
from proj.worker.request import Request

log = get_logger(__name__)

#: Seconds of back-off before a copy that was not confirmed is published again: the first, and the longest.
FIRST_BACKOFF: Final = 1.0
LONGEST_BACKOFF: Final = 60.0

#: Seconds after which a message is requeued when the broker does not confirm its copy, such as in a memory
#: alarm. A requeue counts towards the delivery limit, so it must be rare.
PATIENCE: Final = 600.0

#: Seconds that a warm shutdown waits for the confirm of a copy: as long as a publish may take by default.
LAST_CONFIRM: Final = 10.0

#: Errors of the broker, which are worth a retry.
_BROKER_ERRORS: Final = (BrokerRefused, BrokerUnreachable, OutcomeUnknown)

#: Headers that the broker counts in, or that would route copies to other queues.
_DROPPED_HEADERS: Final = frozenset({"x-delivery-count", "x-acquired-count", "CC", "BCC", "compression"})


@dataclass(frozen=True)
class _Delayed:
    """A delivery that waits for the confirm of its copy."""

    request: Request
    copy: amqp.Message
    routing_key: str
    #: The number of the worker's connection that it came on; no other one can acknowledge it.
    life: int
    #: When its copy is due (`time.time`), and when it was handed over (`time.monotonic`).
    due: float
    since: float = field(default_factory=time.monotonic)


class Delays:
    """Publishes copies to the delay queues, and acknowledges the originals once the copies are confirmed.

    It publishes from its own thread, so that the worker's event loop does not wait for confirms, which do not
    come during an alarm.
    """

    def __init__(self, app: celery.Celery, consumer: Any) -> None:
        self._app = app
        self._consumer = consumer
        self._life = 0
        self._waiting: queue.SimpleQueue[_Delayed] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        #: Held while a copy is published and its original settled.
        self._settling = threading.Lock()
        self._is_ending = threading.Event()

    def send(self, request: Request, seconds: int, why: str, *, is_turn: bool = False) -> None:
        """Delay the message for `seconds`. It holds its slot until the broker has confirmed its copy."""
        request.say(logging.INFO, events.DELAYED, f"delayed for {seconds} s: {why}", delay=seconds)
        due = time.time() + seconds
        headers: dict[str, Any] = {queues.TURN_HEADER: int(due)} if is_turn else {queues.DUE_HEADER: due}
        delayed = _Delayed(request, _copy(request, headers), _queue_of(request.message), self._life, due)
        self._waiting.put(delayed)
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="delays", daemon=True)
            self._thread.start()

    def forget(self) -> None:
        """Drop all deliveries: their connection is lost, and the broker delivers them again."""
        self._life += 1

    def finish(self) -> None:
        """Settle the delivery whose copy is being published, and begin no other one: the worker ends.

        The broker delivers what is not settled again, and would then have both the original and its copy.
        """
        self._is_ending.set()
        if self._settling.acquire(timeout=LAST_CONFIRM):
            self._settling.release()

    def _run(self) -> None:
        while True:
            delayed = self._waiting.get()
            with self._settling:
                if not self._is_ending.is_set():
                    self._settle(delayed, self._publish(delayed))

    def _publish(self, delayed: _Delayed) -> Exception | None:
        """Publish the copy, with retries. Returns the last error, or None when it is confirmed."""
        backoff = FIRST_BACKOFF
        patience = min(PATIENCE, self._app.settings.proj_consumer_timeout / 2)
        while delayed.life == self._life:
            try:
                self._attempt(delayed)
            except _BROKER_ERRORS as error:
                log.warning("A message could not be delayed, retrying in %g s: %s", backoff, error)
                if time.monotonic() + backoff > delayed.since + patience:
                    return error
                if self._is_ending.wait(backoff):
                    return error
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            except Exception as error:  # such as `BadInput`: py-amqp reads some headers that it cannot write
                return error
            else:
                return None
        return None

    def _attempt(self, delayed: _Delayed) -> None:
        seconds = max(1, round(delayed.due - time.time()))
        publish.send(
            self._app,
            delayed.copy,
            level_name(MAX_LEVEL),
            calculate_routing_key(seconds, delayed.routing_key),
            task_id=delayed.request.id,
            name=delayed.request.name,
            delayed=True,
        )

    def _settle(self, delayed: _Delayed, error: Exception | None) -> None:
        if delayed.life != self._life or (error and self._is_ending.is_set()):
            return  # the broker delivers it again
        request = delayed.request
        if error is None:
            # From this thread, since the event loop may take a second to run a new callback.
            request.end_as_copy()
        elif isinstance(error, _BROKER_ERRORS):
            self._consumer.call_soon_ack(request.give_back, Reason.NOT_CONFIRMED)
        else:
            self._consumer.call_soon_ack(request.bury, Reason.INVALID, f"it cannot be delayed: {error}")


def _queue_of(message: Any) -> str:
    """The queue that delivered the message; its name is its routing key too.

    The message's own routing key need not be: a queue may be bound to other exchanges.
    """
    return str(message.channel.consumed[message.delivery_info["consumer_tag"]])


def _copy(request: Request, headers: dict[str, Any]) -> amqp.Message:
    """A copy of the message with these headers and the count of its deliveries."""
    message = request.message
    kept = {name: value for name, value in (message.headers or {}).items() if name not in _DROPPED_HEADERS}
    headers = kept | {queues.REPEAT_HEADER: True, queues.DELIVERIES_HEADER: request.deliveries} | headers
    body = message.body if isinstance(message.body, bytes | str) else bytes(message.body)
    return copy_of(message, body, headers)
