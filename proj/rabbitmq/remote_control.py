"""Celery's remote control: what the workers of a virtual host answer, asked once and in bounded time."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Final

from kombu import Producer

from proj.errors import BrokerRefused, BrokerUnreachable
from proj.rabbitmq import connection

#: Seconds without a further answer after which no more is expected. Workers answer in milliseconds, also
#: while their tasks run; those of `-P solo` only between two tasks.
PATIENCE: Final = 1.0

#: Seconds for all questions to workers.
WORKERS_TIMEOUT: Final = 5.0


class RemoteControl:
    """Asks and tells over one connection, once; `celery.app.control` publishes on a second one, however long
    it takes.

    Workers answer to a queue that is exclusive, and goes with the connection.
    """

    def __init__(self, app: Any, broker: Any) -> None:
        once = SimpleNamespace(acquire=lambda: nullcontext(_Once(broker, auto_declare=False)))
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
        """What each worker answers to one of Celery's inspection commands, by the worker's name.

        Returns when all of `workers` have answered; without, or when one is silent, `PATIENCE` after the last
        answer. Raises `proj.rabbitmq.failures.ERRORS`.
        """
        if workers is None:
            answers = self._mailbox.multi_call(command, timeout=PATIENCE)
        else:
            answers = self._mailbox.call(workers, command, timeout=PATIENCE)
        return {worker: said for answer in answers for worker, said in answer.items() if _is_answer(said)}

    def tell(self, command: str) -> None:
        """Send all workers one of Celery's commands. Raises `proj.rabbitmq.failures.ERRORS`."""
        self._mailbox.abcast(command)


def held_by_workers(app: Any, queue: Any, consumers: int) -> int:
    """How many messages of a work queue its workers hold, as they say themselves, within `WORKERS_TIMEOUT`.

    Raises `BrokerUnreachable` or `BrokerRefused` when not all of the queue's consumers answer.
    """
    broker = app.connection_for_write(transport_options={"confirm_publish": False})
    try:
        with connection.bounded(broker, WORKERS_TIMEOUT):
            control = RemoteControl(app, broker)
            consuming = control.ask("active_queues")
            workers = [name for name, of in consuming.items() if queue.name in (each["name"] for each in of)]
            # In the order in which a message goes through a worker, so that none is missed on its way.
            states = ("scheduled", "reserved", "active") if workers else ()
            answers = [control.ask(state, workers) for state in states]
            answered = min((len(said) for said in answers), default=0)
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
    held = {
        (worker, request["id"])
        for said in answers
        for worker, requests in said.items()
        for request in (each.get("request", each) for each in requests)
        if not request["acknowledged"] and request["delivery_info"]["routing_key"].endswith(queue.routing_key)
    }
    return len(held)


def _in_alarm() -> BrokerRefused:
    return BrokerRefused("the broker has an alarm, and takes no questions", "see its log")


class _Once(Producer):
    """Kombu's mailbox would repeat a publish for as long as the broker is away."""

    def publish(self, *args: Any, **options: Any) -> Any:
        return super().publish(*args, **options | {"retry": False})


def _is_answer(said: Any) -> bool:
    # An error in the worker is told as {"error": ...}.
    return isinstance(said, list) or (isinstance(said, dict) and "error" not in said)
