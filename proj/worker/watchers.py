"""Switches a worker's events about tasks on and off: they are sent only while somebody receives them.

They cost a worker a quarter of its rate or more. Flower enables them by remote control, but nothing disables
them when it has gone, and Celery's own `celery events` does not enable them at all.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import amqp
import kombu
from celery import bootsteps
from celery.utils.log import get_logger

from proj.enqueue import checks
from proj.logs import formats, spans
from proj.logs.printable import shortened
from proj.rabbitmq import connection, failures

log = get_logger(__name__)

#: Seconds between two probes, each one small message: a new watcher misses at most these.
INTERVAL: Final = 2.0

#: What Celery calls the events about tasks.
_GROUP: Final = "task"

#: The routing key with which a worker sends them, several in one message.
_ROUTING_KEY: Final = "task.multi"

#: The body of a probe: a list of no events, which every watcher accepts.
_NO_EVENTS: Final = b"[]"

#: AMQP's delivery mode "not written to disk".
_TRANSIENT: Final = 1


def are_sent(dispatcher: Any) -> bool:
    """Whether Celery's dispatcher sends the events about tasks that it is given."""
    # It takes no groups for all of them.
    return bool(dispatcher and dispatcher.enabled and (not dispatcher.groups or _GROUP in dispatcher.groups))


def tell_failure(
    dispatcher: Any, task_id: object, reason: str, error: Exception, headers: Mapping[str, Any]
) -> None:
    """Send an event that the task of this message has failed: it became a dead letter without an attempt.

    Otherwise a watcher would never see an end of it. The headers name it, if the watcher does not know it.
    """
    name = headers.get("task")
    if not isinstance(task_id, str) or not checks.is_id(task_id) or not isinstance(name, str):
        return
    spans.dead_lettered(headers, name, task_id, reason)
    if dispatcher and getattr(dispatcher.app.tasks.get(name), "send_events", True):
        texts = {"name": name, "args": headers.get("argsrepr"), "kwargs": headers.get("kwargsrepr")}
        texts["exception"] = repr(error)
        fields = {field: cut(text) for field, text in texts.items() if isinstance(text, str)}
        # Whether or not events are on: they are few, and a watcher may have come in this very second.
        dispatcher.publish("task-failed", {"uuid": task_id, **fields}, dispatcher.producer)


def cut(text: str) -> str:
    """A text of an event, shortened to what the broker accepts."""
    return shortened(text, formats.LONGEST_TEXT)


class Producer(kombu.Producer):
    """Publishes events, and drops them while an alarm of the broker blocks their connection.

    The broker does not read them then. Once all buffers are full, the system gives the connection up, and
    Celery then ends all running tasks.
    """

    def publish(self, *args: Any, **options: Any) -> None:
        if not connection.is_blocked(self.connection):
            super().publish(*args, **options)


class WatchersStep(bootsteps.StartStopStep):
    """Asks the broker again and again whether a queue is bound to the exchange of events.

    A probe is a mandatory message: the broker returns it when there is no such queue, and confirms it in any
    case. Events change only on an answer, which does not come during an alarm.
    """

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, c: Any, *, task_events: bool = False, **options: Any) -> None:
        super().__init__(c, **options)
        self._probes = not task_events  # with -E they stay on
        self._exchange = c.app.conf.event_exchange
        self._watched = False
        #: None while there is no connection for events, as with `--without-gossip --without-heartbeat`.
        self._channel: Any = None
        self._unanswered = self._returned = False
        c.watchers = self

    def start(self, c: Any) -> None:
        """Let the event loop alone flush events, since it reads from their connection, which has no lock.

        Celery flushes a full buffer in the thread that fills it, such as one of a pool. Before each publish,
        py-amqp reads too, and changes the timeout of the socket.
        """
        dispatcher = c.event_dispatcher
        if dispatcher and dispatcher.enabled:
            dispatcher.buffer_limit = math.inf
            dispatcher.producer = Producer(
                dispatcher.connection,
                exchange=dispatcher.exchange,
                serializer=dispatcher.serializer,
                auto_declare=False,
            )

    def open(self, conn: Any) -> None:
        """Open a channel on a new connection for events.

        Before anything is published on it: in an alarm the broker reads no further from such a connection.
        """
        connection.listen_for_alarms(conn)
        if self._probes:
            self._unanswered = False
            self._channel = conn.channel()
            self._channel.confirm_select()
            self._channel.events["basic_return"].add(self._on_return)
            self._channel.events["basic_ack"].add(self._on_answer)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called for each connection; the loop cancels the timer when the connection is lost."""
        if self._channel:
            hub.call_soon(self._probe, c)
            hub.call_repeatedly(INTERVAL, self._probe, c)

    def _probe(self, c: Any) -> None:
        if self._unanswered:
            return
        self._consumer = c
        self._unanswered, self._returned = True, False
        probe = amqp.Message(
            _NO_EVENTS,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=_TRANSIENT,
            application_headers={"hostname": c.hostname},
        )
        with suppress(*failures.ERRORS):  # Celery's loop notices the lost connection too, and reconnects
            self._channel.basic_publish(probe, self._exchange, _ROUTING_KEY, mandatory=True)

    def _on_return(self, *_: Any) -> None:
        self._returned = True

    def _on_answer(self, *_: Any) -> None:
        """Called with the confirm of a probe, which follows its return."""
        self._unanswered = False
        before, self._watched = self._watched, not self._returned
        dispatcher = self._consumer.event_dispatcher
        # As Celery's commands `enable_events` and `disable_events` do it.
        if not self._watched:
            if _GROUP in dispatcher.groups:  # whoever enabled them
                dispatcher.groups.discard(_GROUP)
                log.info("Events about tasks are off: nobody receives them")
        elif not before:
            # Not at each answer: `control disable_events` holds until the next watcher comes, which may have
            # enabled them itself.
            dispatcher.groups.add(_GROUP)
            log.info("Events about tasks are on: somebody receives them")
