"""One beat leads, and the others stand by: the leader holds an exclusive queue."""

import logging
import threading
import time
from contextlib import suppress
from typing import Any, Final

from amqp.exceptions import ResourceLocked

from proj import queues
from proj.config import CONNECT_TIMEOUT
from proj.enqueue.app import App
from proj.errors import ProjError
from proj.rabbitmq import connection, failures

log = logging.getLogger("proj.beat")

#: Seconds between two heartbeats of the leader's connection. The broker frees the queue of a leader that is
#: gone after it has missed two.
HEARTBEAT: Final = 1

#: Seconds between two attempts to become the leader.
RETRY: Final = 1.0

#: Seconds between two looks at the leader's connection.
_LOOK: Final = 0.25


class Leader:
    """A thread that wants to lead, with a connection of its own whose heartbeat does not wait for publishes.

    AMQP does not say to a consumer of a queue with a single active one that it became the active one. The
    declaration of an exclusive queue does: it succeeds, or the broker answers 405 (resource locked).
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._stopped = threading.Event()
        self._leads = False
        #: Why this beat can never lead.
        self.refusal: ProjError | None = None
        self._said = ""
        self._thread = threading.Thread(target=self._run, name="beat-leader", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether this beat is the one that enqueues."""
        return self._leads

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give the lead to another beat."""
        self._stopped.set()
        self._thread.join(timeout=CONNECT_TIMEOUT)

    def _run(self) -> None:
        while not self._stopped.is_set():
            broker = self._app.connection_for_read(heartbeat=HEARTBEAT)
            try:
                nodes = max(1, len(broker.alt))
                connection.connect(broker, time.monotonic() + nodes * CONNECT_TIMEOUT)
                self._lead(broker)
            except ResourceLocked:
                self._say(logging.INFO, "another beat leads; this one stands by")
            except failures.ERRORS as error:
                problem = failures.explain(error, broker)
                if failures.is_refusal(error):
                    self.refusal = problem
                    return
                self._say(logging.WARNING, str(problem))
            finally:
                if self._leads:
                    self._leads = False
                    self._say(logging.INFO, "this beat leads no more")
                connection.abandon(broker)
            self._stopped.wait(RETRY)

    def _lead(self, broker: Any) -> None:
        """Lead until stopped or disconnected. Raises `ResourceLocked` when another one leads."""
        broker.default_channel.queue_declare(
            queues.BEAT_LEADER, durable=False, exclusive=True, auto_delete=False
        )
        self._leads = True
        self._say(logging.INFO, "this beat leads")
        while not self._stopped.is_set():
            broker.heartbeat_check()
            with suppress(TimeoutError):
                broker.drain_events(timeout=_LOOK)

    def _say(self, level: int, words: str) -> None:
        """Log it once, until something else is to be said."""
        if words != self._said:
            log.log(level, "beat: %s", words)
            self._said = words
