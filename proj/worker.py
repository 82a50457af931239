"""What our worker adds to Celery's, through its signals, its settings and its classes."""

import os
import signal
import threading
from typing import Any

from celery import states
from celery.exceptions import InvalidTaskError, TimeLimitExceeded, WorkerLostError, WorkerShutdown
from celery.signals import celeryd_after_setup, celeryd_init, worker_shutting_down
from celery.utils.log import get_logger
from celery.utils.nodenames import default_nodename
from celery.worker import consumer, request

from proj import config, connection, queues
from proj.errors import ConfigError, ProjError
from proj.worker_heartbeat import HeartbeatStep, beating

log = get_logger(__name__)


class Consumer(consumer.Consumer):
    """Celery's consumer, which waits for a broker that is down, and ends when the broker says no."""

    #: Put here by its step of Celery's blueprint, before the first connection.
    heartbeat: HeartbeatStep

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
        """Connect, for as long as it takes, and beat. Raises `WorkerShutdown` when the broker refuses."""
        try:
            with beating(self.heartbeat, conn):
                return super().ensure_connected(conn)
        except connection.ERRORS as error:
            if not connection.is_refusal(error):
                raise
            raise _shutdown(error, conn) from None

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Make a message that cannot be read a dead letter; Celery would acknowledge it, and lose it."""
        log.error("message %s cannot be read: %s", message.properties.get("correlation_id"), exc)
        message.reject_log_error(log, self.connection_errors)


class Request(request.Request):
    """One delivery: what becomes of its message when the task does not just end."""

    #: The task was ended for good, and must not be tried again by itself.
    _over = False

    def __init__(self, message: Any, **options: Any) -> None:
        """Raises `InvalidTaskError`, which makes a dead letter, for what is no request to execute a task.

        Any other error would leave the message in the worker's hands for good, and its slot with it.
        """
        try:
            super().__init__(message, **options)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidTaskError(f"the message is no request to execute a task: {error!r}") from error
        if self.request_dict.get(queues.REPEAT_HEADER):
            # What Celery looks at before it looks for a stored success. The broker's own flag does not know
            # of a message that was published twice.
            self.delivery_info["redelivered"] = True

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Make a message whose task was killed at its time limit a dead letter, at once."""
        self._over = not soft
        super().on_timeout(soft, timeout)

    def maybe_expire(self) -> bool:
        """Whether the message's time is over; then it becomes a dead letter instead of being dropped."""
        self._over = bool(super().maybe_expire())
        return self._over

    def acknowledge(self) -> None:
        if self._over:
            self.reject()
        else:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        super().reject(requeue=requeue and not self._over)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell an exception from a process that ended under its task, and store how that ended."""
        # Billiard wraps what it raised in the worker's main process.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, TimeLimitExceeded):
            self._over = True
        ended = super().on_failure(exc_info, *args, **kwargs)
        if isinstance(error, SystemExit):
            error = WorkerLostError(f"the process of the task exited with code {error.code}")
        if isinstance(error, WorkerLostError):
            self.task.backend.store_result(self.id, error, states.RETRY, request=self._context)
        return ended


def install() -> None:
    """Add to the workers of this process what this module has, besides its classes."""
    celeryd_init.connect(give_unique_name)
    celeryd_after_setup.connect(check_time_limits)
    celeryd_after_setup.connect(check_result_store)
    worker_shutting_down.connect(bound_shutdown)


def give_unique_name(instance: Any, **_: Any) -> None:
    """Name a worker that was given no name `celery-PID@host`.

    Two workers with the same name cannot share a broker: the second ends with 405.
    """
    if instance.hostname == default_nodename(None):
        instance.hostname = default_nodename(None, f"celery-{os.getpid()}")


def check_time_limits(instance: Any, **_: Any) -> None:
    """End a worker that has a task whose own time limit the broker would not wait for."""
    timeout = config.load().proj_consumer_timeout
    for name, task in instance.app.tasks.items():
        if task.time_limit and task.time_limit >= timeout:
            error = ConfigError(
                f"the time_limit of {name} must be below the broker's consumer_timeout, got "
                f"{task.time_limit} and {timeout}",
                "lower it, or raise consumer_timeout in the broker's configuration and say so with "
                "PROJ_CONSUMER_TIMEOUT",
            )
            log.critical("%s", error)
            raise SystemExit(int(error.exit_code))


def check_result_store(instance: Any, **_: Any) -> None:
    """End a worker whose result store cannot exist; one that is down for a while is waited for."""
    try:
        instance.app.backend.persistent  # noqa: B018  to ask for anything makes it
    except ProjError as error:
        log.critical("%s", error)
        raise SystemExit(int(error.exit_code)) from None


def bound_shutdown(how: str, **_: Any) -> None:
    """Give back what is not done when the grace period after SIGTERM is over.

    SIGQUIT is Celery's cold shutdown: it ends the tasks, and their messages go to other workers.
    """
    if how == "Warm":
        grace = config.load().proj_shutdown_grace
        timer = threading.Timer(grace, os.kill, (os.getpid(), signal.SIGQUIT))
        timer.daemon = True
        timer.start()


def _shutdown(error: BaseException, conn: Any) -> WorkerShutdown:
    problem = connection.explain(error, conn)
    log.critical("%s", problem)
    return WorkerShutdown(int(problem.exit_code))
