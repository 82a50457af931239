"""The worker's consumer: it connects, declares the topology, and receives every delivery."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from amqp.exceptions import AccessRefused, ResourceLocked
from celery import signals
from celery.concurrency import solo
from celery.exceptions import WorkerShutdown
from celery.utils.log import get_logger
from celery.worker import consumer
from celery.worker.state import maybe_shutdown, successful_requests

from proj.dead_letters.reasons import Reason
from proj.errors import ExitCode
from proj.rabbitmq import connection, failures, topology
from proj.worker import burial, commands, pools, replies
from proj.worker.delaying import Delays
from proj.worker.delivery import Turns, strategy
from proj.worker.heartbeat import HeartbeatStep
from proj.worker.message import Message
from proj.worker.revocation import Revocations
from proj.worker.watchers import WatchersStep

log = get_logger(__name__)

#: Seconds until another exclusive queue is declared, when a lost connection owns the worker's former one.
LOCK_INTERVAL: Final = 2


class Consumer(consumer.Consumer):
    """Celery's consumer, which waits while the broker is unreachable, and ends when the broker refuses."""

    #: Set by `HeartbeatStep` before the first connection.
    heartbeat: HeartbeatStep

    #: Set by `WatchersStep`, likewise.
    watchers: WatchersStep

    #: Py-amqp's connection, as it was made.
    _live: Any = None

    #: The thread that may write to it.
    _loop_thread: int | None = None

    class Blueprint(consumer.Consumer.Blueprint):
        """Celery's steps without the one for delay queues, which treats a refusal as a missing queue."""

        default_steps: ClassVar = [
            step
            for step in consumer.Consumer.Blueprint.default_steps
            if not step.endswith(":DelayedDelivery")
        ]

        def start(self, parent: Any) -> None:
            """Start the steps. After a `ConnectionResetError`, Celery starts all of them again."""
            try:
                super().start(parent)
            except ResourceLocked:
                if not parent.restart_count:
                    raise
                # The broker keeps a lost connection, and the exclusive queue that it owns, until heartbeats
                # are missed.
                parent.app.control.mailbox.move()
                time.sleep(LOCK_INTERVAL)
                raise ConnectionResetError("the broker has not noticed the lost connection yet") from None

    def start(self) -> None:
        """Consume until the worker shuts down.

        Raises `WorkerShutdown` when the user lacks a permission, or another worker has the same name.
        """
        try:
            super().start()
        except AccessRefused as error:
            raise _shutdown(error, self.connection or self.app.connection_for_read()) from None
        except ResourceLocked:
            log.critical(
                "another worker with the name %s is connected, or was until a moment ago"
                " (choose another name with -n, or retry after the broker's heartbeat timeout)",
                self.hostname,
            )
            raise WorkerShutdown(int(ExitCode.UNREACHABLE)) from None

    def connection_for_read(self, heartbeat: int | None = None) -> Any:
        """Connect, and declare the topology each time, since the broker may be a new, empty one."""
        conn = super().connection_for_read(heartbeat)
        try:
            with _ending_on_refusal(conn):
                topology.ensure(conn, self.app.settings.topology)
                topology.ensure_delays(conn, self.app.settings.topology)
                conn.default_channel.Message = Message
        except BaseException:
            # Celery's event loop does not know this connection, and would mistake its end for that of the
            # next one.
            connection.abandon(conn)
            raise
        self._live = conn.connection
        # This pool executes a task where its message is handled.
        self._live.takes_turns = isinstance(self.pool, solo.TaskPool)
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Drop the connection that is lost, with all channels on it.

        Celery may read from it once more, for which kombu connects anew. Celery drops only the new one; its
        steps would then cancel their consumers over the lost one, and log a traceback.
        """
        super().on_connection_error_after_connected(exc)
        connection.drop(self._live)

    def connection_for_write(self, url: str | None = None, heartbeat: int | None = None) -> Any:
        """The connection for events, without confirms, since no message depends on an event.

        With confirms, each event costs a round trip, and `-P threads -E` slows down to a few tasks a second.
        """
        conn = self.ensure_connected(
            self.app.connection_for_write(
                url=url, heartbeat=heartbeat, transport_options={"confirm_publish": False}
            )
        )
        self.watchers.open(conn)
        return conn

    def ensure_connected(self, conn: Any) -> Any:
        """Connect with retries without limit, and write heartbeats meanwhile.

        Raises `WorkerShutdown` when the broker refuses.
        """

        def failed(error: Exception, interval: float) -> None:
            then = f"Trying again in {interval:.2f} seconds" if interval else "Trying the next node"
            log.error("consumer: Cannot connect to %s: %s. %s.", conn.as_uri(), error, then)

        def waiting() -> None:
            self.heartbeat.connecting()
            maybe_shutdown()

        self.heartbeat.connecting()
        with _ending_on_refusal(conn):
            conn.ensure_connection(failed, callback=waiting)
        self.first_connection_attempt = False
        return conn

    def __init__(self, *args: Any, **options: Any) -> None:
        commands.install()
        # Both before the pool forks.
        replies.install()
        # Celery skips a repeat of a success that it remembers, without a look into the store: when the task
        # ignores its result, or when the result has expired, nothing is stored.
        # upstream: not reported; remove when Celery looks into the result store for each repeat
        successful_requests.add = lambda *_: None
        self.turns = Turns()
        super().__init__(*args, **options)
        self.delays = Delays(self.app, self)
        self.revocations = Revocations(self.app)

    def register_with_event_loop(self, hub: Any) -> None:
        super().register_with_event_loop(hub)
        pools.remove_writers_once(hub)
        self._loop_thread = threading.get_ident()

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Acknowledge at once if this is the event loop's thread; the broker sends the next message sooner.

        Celery waits until the loop has handled all else that has come with the task's end.
        """
        if threading.get_ident() == self._loop_thread:
            try:
                return p(*args, **options)
            except Exception:  # it fails again in the loop, which then connects anew
                log.debug("An acknowledgement is tried again", exc_info=True)
        return super().call_soon_ack(p, *args, **options)

    def update_strategies(self) -> None:
        """Use our strategy for all tasks, whatever their base."""
        super().update_strategies()
        for name, task in self.app.tasks.items():
            self.strategies[name] = strategy(task, self.app, self)

    def reset_rate_limits(self) -> None:
        super().reset_rate_limits()
        self.turns.forget()

    def prepare_end(self) -> None:
        """Settle what is half done, before a warm shutdown drops all that has not begun."""
        pools.keep_written(self.pool)
        if self.connection:  # else nothing can be acknowledged
            self.delays.finish()

    def on_close(self) -> None:
        super().on_close()
        self.delays.forget()
        self.turns.drop()

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """The function that is called with each delivery.

        After an error of the broker's connection the worker reconnects. Any other error between delivery and
        pool is the message's, which becomes a dead letter.
        """
        handle = super().create_task_handler(*args, **options)
        lost = (*self.connection_errors, *self.channel_errors)

        def handle_safely(message: Any) -> None:
            try:
                handle(message)
            except lost:
                raise
            except Exception as error:
                burial.bury_message(self, message, Reason.INVALID, repr(error))

        return handle_safely

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Make an unreadable message a dead letter. Celery would acknowledge it and so lose it."""
        burial.bury_message(self, message, Reason.UNREADABLE, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:
        burial.bury_message(self, message, Reason.NO_TASK)
        signals.task_rejected.send(sender=self, message=message, exc=None)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        burial.bury_message(self, message, Reason.UNKNOWN_TASK, exc)
        signals.task_unknown.send(
            sender=self,
            message=message,
            exc=exc,
            name=message.headers.get("task"),
            id=message.headers.get("id"),
        )

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        burial.bury_message(self, message, Reason.INVALID, exc)
        signals.task_rejected.send(sender=self, message=message, exc=exc)


@contextmanager
def _ending_on_refusal(conn: Any) -> Iterator[None]:
    """Log the reason and raise `WorkerShutdown` when the broker refuses, which no retry changes."""
    try:
        yield
    except failures.ERRORS as error:
        if not failures.is_refusal(error):
            raise
        raise _shutdown(error, conn) from None


def _shutdown(error: BaseException, conn: Any) -> WorkerShutdown:
    problem = failures.explain(error, conn)
    log.critical("%s", problem)
    return WorkerShutdown(int(problem.exit_code))
