"""Enqueueing: turns a call into a message that the broker has confirmed."""

from proj.enqueue.task import Task, enqueue, find_task, own_tasks

__all__ = ["Task", "enqueue", "find_task", "own_tasks"]
