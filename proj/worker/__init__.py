"""Our extensions of Celery's worker. `install` adds them through Celery's signals, settings and classes."""

from typing import Any

from celery.signals import celeryd_init

from proj.config import Settings
from proj.enqueue.app import App
from proj.logs import celery_command, celery_lines
from proj.rabbitmq import connection, decoding

__all__ = ["install"]


def install(app: App, settings: Settings) -> None:
    """Extend this application so that it loses no message. Call it before the first task is defined.

    What Celery and py-amqp share in a process, such as signals, is extended for all applications.
    """
    app.settings = settings
    # Celery lets the environment's CELERY_RESULT_BACKEND win over the configuration, but not over this.
    app.backend_cls = f"proj.results.store:open_store+{settings.result_backend}"
    app.control_cls = "proj.worker.mailbox:Control"
    # Not as `task_annotations`, which would win over a task's own value.
    app.Task.max_retries = settings.proj_max_retries
    app.steps["consumer"].add("proj.worker.heartbeat:HeartbeatStep")
    app.steps["consumer"].add("proj.worker.watchers:WatchersStep")
    app.steps["consumer"].add("proj.worker.timers:TimersStep")
    app.steps["worker"].add("proj.worker.lookout:LookoutStep")
    app.steps["worker"].add("proj.worker.ageing:AgeingStep")
    connection.keep_from_children(app)
    celery_lines.install()
    if celery_command.is_running("control", "inspect"):
        # It looks up their arguments. A worker's `Consumer` installs them too; whoever only publishes need
        # not import Celery's worker.
        from proj.worker import commands

        commands.install()
    decoding.install()
    celeryd_init.connect(_begin)


def _begin(**given: Any) -> None:
    from proj.worker import start  # here, since whoever only publishes need not import Celery's worker

    start.begin(**given)
