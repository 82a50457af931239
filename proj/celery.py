"""The Celery application: `celery -A proj …` finds it here."""

import sys

import click

from proj import celery_cli, chords, config, connection, properties, streams, worker
from proj.door import App
from proj.errors import ConfigError
from proj.printable import error_line

context = click.get_current_context(silent=True)
if context and context.invoked_subcommand in {"worker", "beat", "flower"}:
    # They write only words for people. Celery would end over one that cannot be written.
    streams.prepare(lossy_stdout=True)
try:
    settings = config.load()
except ConfigError as error:
    # Celery's command line would show a traceback of what it was loading.
    if context is None:
        raise
    click.echo(f"Error: {error_line(str(error))}", err=True)
    sys.exit(error.exit_code)

app = App("proj", task_cls="proj.enqueue:Task", log="proj.logs:Logging", include=["proj.tasks"])
app.config_from_object(config.celery_config(settings))
# Not as `task_annotations`, which would win over what a task says itself.
app.Task.max_retries = settings.proj_max_retries
# Celery lets the environment's CELERY_RESULT_BACKEND win over the configuration, but not over this.
app.backend_cls = f"proj.store:open_store+{settings.result_backend}"
app.steps["consumer"].add("proj.worker_heartbeat:HeartbeatStep")
app.steps["worker"].add("proj.lookout:LookoutStep")
properties.install()
connection.keep_from_children(app)
worker.install()
chords.install(app)
celery_cli.install()
if context and context.invoked_subcommand == "flower":
    from proj import monitor  # here, since a worker needs no web server

    monitor.install(settings)
