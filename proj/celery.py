"""The Celery application: `celery -A proj …` finds it here."""

from celery.app import default_app

from proj import celeryconfig, config, worker
from proj.enqueue.app import App
from proj.logs import celery_command

celery_command.install()
with celery_command.one_line_errors():
    settings = config.load()
app = App("proj", include=settings.task_modules)
app.config_from_object(celeryconfig.configuration(settings))
worker.install(app, settings)
if not default_app:
    app.set_default()  # else `AsyncResult` and shared tasks find it in this thread only

if celery_command.is_running("flower"):
    from proj import flower  # here, since a worker needs no web server

    flower.install(settings)

if celery_command.is_running("call"):
    with celery_command.one_line_errors():
        app.loader.import_default_modules()  # the options of a task, such as its queue, hold for its messages
