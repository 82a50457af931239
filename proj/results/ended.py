"""Celery's kind of signal for the end of a message, sent once its end is stored."""

from typing import Final

from celery.utils.dispatch import Signal

#: Sent by the store, in the process that has stored the end: the worker's main one, or that of the task.
#: Receivers get `sender`, the application, `task_id`, `state`, `result` (for a failure its exception), and
#: `request`, the task's context, or None. Celery logs what a receiver raises.
ended: Final = Signal(name="ended", providing_args={"task_id", "state", "result", "request"})
