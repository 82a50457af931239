"""What our workers add to Celery's, through its signals, its settings and its classes; `install` adds it."""

from proj.config import Settings
from proj.enqueue.app import App
from proj.logs import celery_lines
from proj.rabbitmq import connection, decoding
from proj.worker import chords, commands, start

__all__ = ["install"]


def install(app: App, settings: Settings) -> None:
    """Make this application one that keeps the promise, before its first task is defined.

    What is Celery's or py-amqp's for a whole process, such as signals, is changed once, for all applications.
    """
    app.settings = settings
    # Celery lets the environment's CELERY_RESULT_BACKEND win over the configuration, but not over this.
    app.backend_cls = f"proj.results.store:open_store+{settings.result_backend}"
    # Not as `task_annotations`, which would win over what a task says itself.
    app.Task.max_retries = settings.proj_max_retries
    app.steps["consumer"].add("proj.worker.heartbeat:HeartbeatStep")
    app.steps["worker"].add("proj.worker.lookout:LookoutStep")
    connection.keep_from_children(app)
    chords.install(app)
    celery_lines.install()
    commands.install()
    decoding.install()
    start.install()
