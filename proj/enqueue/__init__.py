"""Enqueueing: turns a call into a message that the broker has confirmed."""

from proj.enqueue.batch import Batch, enqueue_many
from proj.enqueue.published import Published, Status
from proj.enqueue.task import Task, enqueue, find_task, own_tasks

__all__ = ["Batch", "Published", "Status", "Task", "enqueue", "enqueue_many", "find_task", "own_tasks"]
