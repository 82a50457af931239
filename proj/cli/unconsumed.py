"""Says why a result does not come: no worker consumes the queue."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import click

from proj import queues
from proj.errors import ProjError

if TYPE_CHECKING:
    from proj.enqueue.app import App

#: Seconds of waiting until the first look; after each look, as long as has passed until then.
PATIENCE: Final = 5.0

#: Seconds for one look.
_TIMEOUT: Final = 2.0


class Watch:
    """Looks at the queue of messages whose results are waited for, and says once that it has no worker."""

    def __init__(self, app: "App", queue: str | None) -> None:
        """`queue` is the name; without one, nothing is looked at."""
        self._app = app
        self._queue = queue
        self._began = time.monotonic()
        self._next = self._began + PATIENCE
        self._has_said = False

    def __call__(self) -> None:
        """Look when it is time to; called between two queries for a result."""
        now = time.monotonic()
        if self._has_said or now < self._next or self._queue is None:
            return
        self._next = now + max(PATIENCE, now - self._began)
        with suppress(ProjError):  # the user may be allowed to publish alone
            self._has_said = self._waits_without_worker(self._queue)
        if self._has_said:
            which = "" if self._queue == queues.DEFAULT_QUEUE else f" -Q {self._queue}"
            click.echo(f"{self._queue} has no worker; start one with: celery -A proj worker{which}", err=True)

    def _waits_without_worker(self, queue: str) -> bool:
        from proj.rabbitmq import connection, topology

        broker = self._app.connection_for_read()
        with connection.bounded(broker, _TIMEOUT):
            found = topology.look(broker.default_channel, queue, patience=0)
            broker.release()
        # A worker that is shutting down consumes no more, and may have the message.
        return bool(found.message_count and not found.consumer_count)
