"""The queue of a message: the call says it, or the task, or `task_routes`, else it is the default one."""

from collections.abc import Mapping, Sequence
from typing import Any

import celery

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
    if named := given or getattr(task, "queue", None):
        return str(getattr(named, "name", named))
    route = task.app.amqp.router.route({}, task.name, args, kwargs, task_type=task)
    return str(route["queue"].name) if "queue" in route else None
