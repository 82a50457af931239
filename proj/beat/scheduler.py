"""Periodic tasks: what `celery beat` publishes."""

from celery.beat import PersistentScheduler


class Scheduler(PersistentScheduler):
    """Celery's scheduler, which leaves the connection of each message to `App.send_task`."""

    #: Celery's own waits for a broker that is down without bound, and the tasks of all other entries with it.
    producer = None
