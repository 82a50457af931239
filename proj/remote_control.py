"""Celery's remote control: what the workers of a virtual host answer, asked once and in bounded time."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Final

from kombu import Producer

#: Seconds without a further answer after which no more is expected. Workers answer in milliseconds, also
#: while their tasks run; those of `-P solo` only between two tasks.
PATIENCE: Final = 1.0


class RemoteControl:
    """Asks over a connection that is its own; `celery.app.control` would publish on another, again and again.

    To answer, a worker needs a queue: it is exclusive, and goes with the connection.
    """

    def __init__(self, app: Any, connection: Any) -> None:
        once = SimpleNamespace(acquire=lambda: nullcontext(_Once(connection, auto_declare=False)))
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
        self._mailbox = mailbox(connection)

    def ask(self, command: str, workers: list[str] | None = None) -> dict[str, Any]:
        """What each worker answers to one of Celery's inspection commands, by the worker's name.

        Returns when all of `workers` have answered; without, or when one is silent, `PATIENCE` after the last
        answer. Raises `proj.connection.ERRORS`.
        """
        if workers is None:
            answers = self._mailbox.multi_call(command, timeout=PATIENCE)
        else:
            answers = self._mailbox.call(workers, command, timeout=PATIENCE)
        return {worker: said for answer in answers for worker, said in answer.items() if _is_answer(said)}


class _Once(Producer):
    """Kombu's mailbox would repeat a publish for as long as the broker is away."""

    def publish(self, *args: Any, **options: Any) -> Any:
        return super().publish(*args, **options | {"retry": False})


def _is_answer(said: Any) -> bool:
    # An error in the worker is told as {"error": ...}; every command that is asked here answers a list.
    return isinstance(said, list)
