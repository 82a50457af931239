"""Our worker's consumer: it waits for its broker, and every delivery passes its gate."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from amqp.exceptions import AccessRefused, ResourceLocked
from celery import signals
from celery.exceptions import WorkerShutdown
from celery.utils.log import get_logger
from celery.worker import consumer

from proj.dead_letters.reasons import Reason
from proj.errors import ExitCode
from proj.rabbitmq import connection, failures, topology
from proj.worker import burial
from proj.worker.delaying import Delays
from proj.worker.delivery import Turns, strategy
from proj.worker.heartbeat import HeartbeatStep, beating

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
                topology.ensure(conn)
                topology.ensure_delays(conn)
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

    def __init__(self, *args: Any, **options: Any) -> None:
        self.turns = Turns()
        super().__init__(*args, **options)
        self.delays = Delays(self.app, self)

    def update_strategies(self) -> None:
        """Let each task's messages be taken by our strategy, whatever base the task has."""
        super().update_strategies()
        for name, task in self.app.tasks.items():
            self.strategies[name] = strategy(task, self.app, self)

    def reset_rate_limits(self) -> None:
        super().reset_rate_limits()
        self.turns.forget()

    def on_close(self) -> None:
        super().on_close()
        self.delays.forget()

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """What is called with each delivery.

        Whatever is raised between the delivery and the pool is about the message, which becomes a dead
        letter, or about the broker, and the worker connects anew.
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
        """Make a message that cannot be read a dead letter; Celery would acknowledge it, and lose it."""
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

    def routing_key_of(self, request: Any) -> str:
        """The routing key of the queue that the message was delivered from."""
        tag = request.message.delivery_info.get("consumer_tag")
        # upstream: not reported; remove when kombu's consumer says which queue a delivery came from
        tags = self.task_consumer._active_tags
        name = next(queue for queue, of_queue in tags.items() if of_queue == tag)
        return str(self.app.amqp.queues[name].routing_key)


@contextmanager
def _ending_on_refusal(conn: Any) -> Iterator[None]:
    """Log the reason and raise `WorkerShutdown` when the broker says no: to wait would change nothing."""
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
