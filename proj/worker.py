"""What our worker adds to Celery's, through its signals, its settings and its classes."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import click
from amqp.exceptions import AccessRefused, ResourceLocked
from celery.exceptions import WorkerShutdown
from celery.signals import celeryd_after_setup, celeryd_init, task_postrun, worker_shutting_down
from celery.utils.log import get_logger
from celery.utils.nodenames import default_nodename
from celery.worker import consumer

from proj import broker_errors, celery_lines, config, connection, events, logs, printed, queues
from proj.enqueue import Task
from proj.errors import BadTask, ConfigError, ExitCode, ProjError
from proj.reasons import Reason
from proj.worker_heartbeat import HeartbeatStep, beating

log = get_logger(__name__)

#: Seconds between two attempts to take the queue of a worker's name from a connection that is gone.
LOCK_INTERVAL: Final = 2


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

        def start(self, parent: Any) -> None:
            """Start the steps. Raises `ConnectionResetError`, upon which all of them are started again."""
            try:
                super().start(parent)
            except ResourceLocked:
                if not parent.restart_count:
                    raise
                # A connection that was cut on our side only stands for the broker until it misses heartbeats:
                # so does the queue of the worker's name.
                time.sleep(LOCK_INTERVAL)
                raise ConnectionResetError("the broker has not noticed yet that it is gone") from None

    def start(self) -> None:
        """Consume until told to stop.

        Raises `WorkerShutdown` when the user lacks a right for it, or another worker has the same name.
        """
        try:
            super().start()
        except AccessRefused as error:
            raise _shutdown(error, self.connection or self.app.connection_for_read()) from None
        except ResourceLocked:
            log.critical(
                "a worker with the name %s is connected already, or was until a moment ago"
                " (give this one another name with -n, or try again when the broker has noticed)",
                self.hostname,
            )
            raise WorkerShutdown(int(ExitCode.UNREACHABLE)) from None

    def connection_for_read(self, heartbeat: int | None = None) -> Any:
        """Connect, and declare the topology each time: the broker may be a new, empty one."""
        conn = super().connection_for_read(heartbeat)
        try:
            with _ending_on_refusal(conn):
                queues.ensure(conn)
                queues.ensure_delays(conn)
        except BaseException:
            # Celery's event loop does not know it yet; later it would take its end for that of the next one.
            connection.abandon(conn)
            raise
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
        _say_dead(message, Reason.UNREADABLE, exc)
        message.reject_log_error(log, self.connection_errors)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        _say_dead(message, Reason.NO_TASK)
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        _say_dead(message, Reason.UNKNOWN_TASK)
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        _say_dead(message, Reason.INVALID, exc)
        super().on_invalid_task(body, message, exc)


def install() -> None:
    """Add to the workers of this process what this module has, besides its classes."""
    celery_lines.install()
    celeryd_init.connect(give_unique_name)
    celeryd_init.connect(check_queues)
    celeryd_init.connect(logs.log_all_that_is_said)
    celeryd_after_setup.connect(check_tasks)
    celeryd_after_setup.connect(check_time_limits)
    celeryd_after_setup.connect(check_result_store)
    task_postrun.connect(printed.end_line)
    worker_shutting_down.connect(bound_shutdown)


def give_unique_name(instance: Any, **_: Any) -> None:
    """Name a worker that was given no name `celery-PID@host`.

    Two workers with the same name cannot share a broker: the second ends with 405.
    """
    if instance.hostname == default_nodename(None):
        instance.hostname = default_nodename(None, f"celery-{os.getpid()}")


def check_queues(instance: Any, options: dict[str, Any], **_: Any) -> None:
    """End a worker that was told to consume a queue that does not exist, with one line."""
    known = instance.app.amqp.queues
    for name in options.get("queues") or ():
        if name not in known:
            click.echo(f"Error: there is no queue {name!r} (there is: {', '.join(known)})", err=True)
            raise SystemExit(int(ExitCode.USAGE))


def check_tasks(instance: Any, **_: Any) -> None:
    """End a worker that has a task whose arguments could never be checked."""
    try:
        for task in instance.app.tasks.values():
            if isinstance(task, Task):
                task.parameters  # noqa: B018  to ask for them reads the annotations
    except BadTask as error:
        log.critical("%s", error)
        raise SystemExit(int(error.exit_code)) from None


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
        instance.app.backend.max_retries  # noqa: B018  to ask for it makes the store
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


def _say_dead(message: Any, reason: Reason, error: BaseException | None = None) -> None:
    """Say that a message becomes a dead letter because it is no request to execute a task."""
    headers, properties = message.headers or {}, message.properties or {}
    words = f"became a dead letter: {reason.words}{f': {error}' if error else ''}"
    task_id = headers.get("id") or properties.get("correlation_id") or properties.get("message_id")
    events.say(log, logging.ERROR, events.DEAD_LETTERED, task_id, headers.get("task"), words, reason=reason)


@contextmanager
def _ending_on_refusal(conn: Any) -> Iterator[None]:
    """Log the reason and raise `WorkerShutdown` when the broker says no: to wait would change nothing."""
    try:
        yield
    except broker_errors.ERRORS as error:
        if not broker_errors.is_refusal(error):
            raise
        raise _shutdown(error, conn) from None


def _shutdown(error: BaseException, conn: Any) -> WorkerShutdown:
    problem = broker_errors.explain(error, conn)
    log.critical("%s", problem)
    return WorkerShutdown(int(problem.exit_code))
