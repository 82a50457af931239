"""Celery's remote control over one connection, in bounded time."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Final

from kombu import Producer

from proj.errors import BrokerRefused, BrokerUnreachable
from proj.rabbitmq import connection

#: Seconds without a further answer after which no more is expected. Workers answer in milliseconds, even
#: while their tasks run; those of `-P solo` only between two tasks.
PATIENCE: Final = 1.0

#: Seconds for all requests to workers together.
WORKERS_TIMEOUT: Final = 5.0


class RemoteControl:
    """Sends commands to workers over the given connection, without retry.

    `celery.app.control` would publish on a second connection, without a timeout. Workers reply to an
    exclusive queue, which the broker deletes with the connection.
    """

    def __init__(self, app: Any, broker: Any) -> None:
        once = SimpleNamespace(acquire=lambda: nullcontext(_NoRetryProducer(broker, auto_declare=False)))
        mailbox = app.control.Mailbox(
            app.conf.control_exchange,
            type="fanout",
            accept=app.conf.accept_content,
            serializer=app.conf.task_serializer,
            producer_pool=once,
            queue_exclusive=app.conf.control_queue_exclusive,
            queue_durable=app.conf.control_queue_durable,
            reply_queue_expires=app.conf.control_queue_expires,
        )
        self._mailbox = mailbox(broker)

    def ask(self, command: str, workers: list[str] | None = None) -> dict[str, Any]:
        """The workers' answers to one of Celery's inspection commands, by worker name.

        Returns when all of `workers` have answered, or else `PATIENCE` seconds after the last answer. Raises
        `proj.rabbitmq.failures.ERRORS`.
        """
        if workers is None:
            answers = self._mailbox.multi_call(command, timeout=PATIENCE)
        else:
            answers = self._mailbox.call(workers, command, timeout=PATIENCE)
        return {worker: reply for answer in answers for worker, reply in answer.items() if _is_answer(reply)}

    def broadcast(self, command: str) -> None:
        """Send one of Celery's commands to all workers. Raises `proj.rabbitmq.failures.ERRORS`."""
        self._mailbox.abcast(command)


def held_by_workers(app: Any, queue: Any, consumers: int) -> int:
    """The number of messages of a work queue that its workers report to hold, within `WORKERS_TIMEOUT`.

    Raises `BrokerUnreachable` or `BrokerRefused` unless all of the queue's consumers answer.
    """
    broker = app.connection_for_write(transport_options={"confirm_publish": False})
    try:
        with connection.bounded(broker, WORKERS_TIMEOUT):
            control = RemoteControl(app, broker)
            consuming = control.ask("active_queues")
            workers = [name for name, of in consuming.items() if queue.name in (each["name"] for each in of)]
            # In the order in which a message passes through a worker, so that none is missed.
            states = ("scheduled", "reserved", "active") if workers else ()
            answers = [control.ask(state, workers) for state in states]
            answered = min((len(replies) for replies in answers), default=0)
            if answered < consumers and connection.is_blocked(broker):
                raise _in_alarm()
    except BrokerUnreachable as error:
        if not connection.is_blocked(broker):
            raise
        raise _in_alarm() from error
    finally:
        connection.abandon(broker)
    if answered < consumers:
        raise BrokerRefused(
            f"{answered} of {consumers} workers answer", "those with -P solo do so only between two tasks"
        )
    queue_of = app.settings.topology.work_queue_of
    held = {
        (worker, request["id"])
        for replies in answers
        for worker, requests in replies.items()
        for request in (each.get("request", each) for each in requests)
        if not request["acknowledged"] and queue_of(request["delivery_info"]["routing_key"]) == queue
    }
    return len(held)


def _in_alarm() -> BrokerRefused:
    return BrokerRefused("the broker's memory or disk alarm is on, so it reads no requests", "see its log")


class _NoRetryProducer(Producer):
    """A producer that never retries; kombu's mailbox retries without limit while the broker is down."""

    def publish(self, *args: Any, **options: Any) -> Any:
        return super().publish(*args, **options | {"retry": False})


def _is_answer(reply: Any) -> bool:
    # A worker reports an error as {"error": ...}.
    return isinstance(reply, list) or (isinstance(reply, dict) and "error" not in reply)
