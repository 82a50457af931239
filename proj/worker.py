"""What our worker adds to Celery's, through its signals, its bootsteps and its settings."""

import os
from typing import Any

from celery.exceptions import WorkerShutdown
from celery.signals import celeryd_init
from celery.utils.log import get_logger
from celery.utils.nodenames import default_nodename
from celery.worker import consumer

from proj import connection, queues

log = get_logger(__name__)


class Consumer(consumer.Consumer):
    """Celery's consumer, which waits for a broker that is down, and ends when the broker says no."""

    def connect(self) -> Any:
        """Connect, and declare the topology each time: the broker may be a new, empty one."""
        conn = super().connect()
        try:
            queues.declare(conn.default_channel)
        except connection.ERRORS as error:
            if not connection.is_refusal(error):
                raise
            raise _shutdown(error, conn) from None
        return conn

    def connection_for_write(self, url: str | None = None, heartbeat: int | None = None) -> Any:
        """The connection that events are sent on: unconfirmed, since nothing rests on an event.

        Confirmed, each would cost the worker a round trip; `-P threads -E` then falls to a few tasks a
        second.
        """
        return self.ensure_connected(
            self.app.connection_for_write(
                url=url, heartbeat=heartbeat, transport_options={"confirm_publish": False}
            )
        )

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, for as long as it takes. Raises `WorkerShutdown` when the broker refuses."""
        try:
            return super().ensure_connected(conn)
        except connection.ERRORS as error:
            if not connection.is_refusal(error):
                raise
            raise _shutdown(error, conn) from None


def install() -> None:
    """Add to the workers of this process what this module has, besides `Consumer`."""
    celeryd_init.connect(give_unique_name)


def give_unique_name(instance: Any, **_: Any) -> None:
    """Name a worker that was given no name `celery-PID@host`.

    Two workers with the same name cannot share a broker: the second ends with 405.
    """
    if instance.hostname == default_nodename(None):
        instance.hostname = default_nodename(None, f"celery-{os.getpid()}")


def _shutdown(error: BaseException, conn: Any) -> WorkerShutdown:
    problem = connection.explain(error, conn)
    log.critical("%s", problem)
    return WorkerShutdown(int(problem.exit_code))
