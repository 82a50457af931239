"""The scheduler of `celery beat`, which publishes periodic tasks."""

from celery.beat import PersistentScheduler


class Scheduler(PersistentScheduler):
    """Celery's scheduler, with connections from `App.send_task`."""

    #: Celery's own producer waits for an unreachable broker without a timeout, and so delays all entries.
    producer = None
