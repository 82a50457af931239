"""Remote control of a worker whose queue for it may be locked."""

from typing import Any

from celery.app import control
from kombu import pidbox


class Mailbox(pidbox.Mailbox):
    """A mailbox that can leave the queue of its worker, and take a new one.

    The queue is exclusive: a connection that the worker has lost owns it until the broker notices. RabbitMQ
    4.3 keeps the exclusive queues of a node that is lost until it is back.
    """

    _moves = 0

    def move(self) -> None:
        """Use a queue with another name from now on; who sends commands knows none of them."""
        self._moves += 1

    def get_queue(self, hostname: str) -> Any:
        return super().get_queue(f"{hostname}.{self._moves}" if self._moves else hostname)


class Control(control.Control):
    """Celery's remote control with this mailbox."""

    Mailbox = Mailbox
