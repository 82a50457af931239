"""The queue of a message: the call says it, or the task, or `task_routes`, else it is the default one."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import celery
from celery.app.amqp import AMQP
from kombu import Queue

from proj import queues
from proj.errors import BadInput, did_you_mean
from proj.logs.printable import shown


def check_queue(app: celery.Celery, name: str) -> None:
    """Refuse a queue that is not one of the application's work queues. Raises `BadInput`."""
    if name not in app.amqp.queues:
        raise unknown_queue(app, name)


def unknown_queue(app: celery.Celery, name: str) -> BadInput:
    """The error for a name that is not one of the application's work queues, with the nearest that is."""
    known = f"known queues: {', '.join(app.amqp.queues)}; PROJ_QUEUES adds more"
    hint = did_you_mean(str(name), app.amqp.queues, likeness=0.5)
    return BadInput(f"there is no queue {shown(name)}", hint or known)


def queue_of(
    task: celery.Task, args: Sequence[Any], kwargs: Mapping[str, Any], given: str | None = None
) -> str | None:
    """The name of the queue that a call of the task goes to; `given` is the one that the call names.

    None when a route has an exchange and no queue.
    """
    named = getattr(task, "queue", None) if given is None else given
    if named is not None:
        return str(getattr(named, "name", named))
    route = task.app.amqp.router.route({}, task.name, args, kwargs, task_type=task)
    return str(route["queue"].name) if "queue" in route else None


class Amqp(AMQP):
    """Celery's messaging, in which a message for a work queue takes the direct exchange."""

    @cached_property
    def send_task_message(self) -> Callable[..., Any]:
        """As Celery's. A delayed message has the exchange of delays by now, and one may be given."""
        send = super().send_task_message

        def send_directly(
            producer: Any,
            name: str,
            message: Any,
            exchange: Any = None,
            routing_key: str | None = None,
            queue: Queue | None = None,
            **options: Any,
        ) -> Any:
            is_unrouted = exchange is None and routing_key is None
            # A route may have any queue.
            if is_unrouted and queue is not None and queue.exchange == queues.task_exchange:
                exchange, routing_key = queues.direct_exchange.name, queue.name
            return send(producer, name, message, exchange, routing_key, queue, **options)

        return send_directly
