"""What our worker adds to Celery's, through its signals, its settings and its classes."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from amqp.exceptions import AccessRefused
from celery import states
from celery.exceptions import InvalidTaskError, Reject, TimeLimitExceeded, WorkerLostError, WorkerShutdown
from celery.signals import celeryd_after_setup, celeryd_init, worker_shutting_down
from celery.utils.log import get_logger
from celery.utils.nodenames import default_nodename
from celery.worker import consumer, request

from proj import celery_lines, config, connection, events, logs, queues
from proj.errors import ConfigError, ProjError
from proj.worker_heartbeat import HeartbeatStep, beating

log = get_logger(__name__)


class Consumer(consumer.Consumer):
    """Celery's consumer, which waits for a broker that is down, and ends when the broker says no."""

    #: Put here by its step of Celery's blueprint, before the first connection.
    heartbeat: HeartbeatStep

    class Blueprint(consumer.Consumer.Blueprint):
        """Celery's steps, without that of delay queues: it would take a refusal for their absence."""

        default_steps: ClassVar = [
            step
            for step in consumer.Consumer.Blueprint.default_steps
            if not step.endswith(":DelayedDelivery")
        ]

    def start(self) -> None:
        """Consume until told to stop. Raises `WorkerShutdown` when the user lacks a right for it."""
        try:
            super().start()
        except AccessRefused as error:
            raise _shutdown(error, self.connection or self.app.connection_for_read()) from None

    def connect(self) -> Any:
        """Connect, and declare the topology each time: the broker may be a new, empty one."""
        conn = super().connect()
        with _ending_on_refusal(conn):
            queues.ensure(conn)
            queues.ensure_delays(conn)
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
        with _ending_on_refusal(conn), beating(self.heartbeat, conn):
            return super().ensure_connected(conn)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Make a message that cannot be read a dead letter; Celery would acknowledge it, and lose it."""
        _say_dead(message, "unreadable", exc)
        message.reject_log_error(log, self.connection_errors)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        _say_dead(message, "no_task")
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        _say_dead(message, "unknown_task")
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        _say_dead(message, "invalid", exc)
        super().on_invalid_task(body, message, exc)


class Request(request.Request):
    """One delivery: what becomes of its message when the task does not just end."""

    #: The task was ended for good, and must not be tried again by itself.
    _over = False

    #: Why the message is rejected, once it is, and the exception in the worker's main process.
    _reason = "failed"
    _exception: str | None = None

    #: It was said that the message is given back: its task is ended, and it is left unacknowledged.
    _cancelled = False

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
        self._say(
            logging.INFO,
            events.RECEIVED,
            "received",
            retries=self.request_dict.get("retries") or None,
            redelivered=message.delivery_info.get("redelivered") or None,
        )

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Make a message whose task was killed at its time limit a dead letter, at once."""
        if not soft:
            self._end_at_limit(TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def maybe_expire(self) -> bool:
        """Whether the message's time is over; then it becomes a dead letter instead of being dropped."""
        if super().maybe_expire():
            self._over, self._reason = True, "expired"
        return self._over

    def revoked(self) -> bool:
        before = self._already_revoked
        revoked = bool(super().revoked())
        if revoked and not before and not self._over:
            self._say(logging.INFO, events.REVOKED, "revoked")
        return revoked

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if self.time_start:
            self._say(logging.WARNING, events.REVOKED, "revoked: terminated")
        super().terminate(pool, signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End the task and leave its message to the broker, who gives it to another worker."""
        # The worker asks for no retry only when it ends.
        self._say_given_back("connection_lost" if emit_retry else "shutdown")
        self._cancelled = True
        super().cancel(pool, signal, emit_retry)

    def acknowledge(self) -> None:
        if self._over:
            self.reject()
        else:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        requeue = requeue and not self._over
        if requeue:
            self._say_given_back(self._reason)
        elif not self.acknowledged:
            words = f"became a dead letter: {self._reason.replace('_', ' ')}"
            self._say(logging.WARNING, events.DEAD_LETTERED, words, reason=self._reason)
        super().reject(requeue=requeue)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell an exception from a process that ended under its task, and store how that ended."""
        # Billiard wraps what it raised in the worker's main process.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, SystemExit):
            error = WorkerLostError(f"the process of the task exited with code {error.code}")
        if isinstance(error, TimeLimitExceeded):
            self._end_at_limit(error)
        elif isinstance(error, WorkerLostError):
            self._reason, self._exception = "worker_lost", repr(error)
        elif isinstance(error, Reject):
            self._reason = "rejected"
        ended = super().on_failure(exc_info, *args, **kwargs)
        if isinstance(error, WorkerLostError):
            self.task.backend.store_result(self.id, error, states.RETRY, request=self._context)
        return ended

    def _end_at_limit(self, error: TimeLimitExceeded) -> None:
        """Note that the task was killed at its hard time limit, which is told twice, in any order."""
        if not self._over:
            self._over, self._reason = True, "time_limit"
            words = "failed: hard time limit exceeded, its process is killed"
            self._say(logging.ERROR, events.FAILED, words, exception=repr(error))

    def _say_given_back(self, reason: str) -> None:
        if not self.acknowledged and not self._cancelled:
            words = f"given back: {reason.replace('_', ' ')}"
            if self._exception:
                words += f": {self._exception}"
            self._say(logging.WARNING, events.GIVEN_BACK, words, reason=reason, exception=self._exception)

    def _say(self, level: int, event: str, words: str, **fields: Any) -> None:
        events.say(log, level, event, self.id, self.name, words, **fields)


def install() -> None:
    """Add to the workers of this process what this module has, besides its classes."""
    celery_lines.install()
    celeryd_init.connect(give_unique_name)
    celeryd_init.connect(logs.log_all_that_is_said)
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


def _say_dead(message: Any, reason: str, error: BaseException | None = None) -> None:
    """Say that a message becomes a dead letter because it is no request to execute a task."""
    headers, properties = message.headers or {}, message.properties or {}
    words = f"became a dead letter: {reason.replace('_', ' ')}{f': {error}' if error else ''}"
    task_id = headers.get("id") or properties.get("correlation_id") or properties.get("message_id")
    events.say(log, logging.ERROR, events.DEAD_LETTERED, task_id, headers.get("task"), words, reason=reason)


@contextmanager
def _ending_on_refusal(conn: Any) -> Iterator[None]:
    """Log the reason and raise `WorkerShutdown` when the broker says no: to wait would change nothing."""
    try:
        yield
    except connection.ERRORS as error:
        if not connection.is_refusal(error):
            raise
        raise _shutdown(error, conn) from None


def _shutdown(error: BaseException, conn: Any) -> WorkerShutdown:
    problem = connection.explain(error, conn)
    log.critical("%s", problem)
    return WorkerShutdown(int(problem.exit_code))
