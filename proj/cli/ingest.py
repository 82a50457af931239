"""`proj ingest`: makes tasks of the messages of programs that know nothing of Celery."""

import signal

import click

import proj
from proj.errors import ExitCode


@click.command()
def ingest() -> None:
    """Make tasks of plain messages in queues of other programs.

    Consumes the queues of the routes, task_queue (text) and add (JSON) unless PROJ_INGEST_ROUTES names a file
    with others, until Ctrl-C or SIGTERM. A message is acknowledged once its task is enqueued. One from which
    no task can be made becomes a dead letter. Start as many as you like.

    Example: proj ingest
    """
    from proj.ingest import routes
    from proj.ingest.consumer import Consumer
    from proj.logs import formats

    consumer = Consumer(proj.app, routes.load(proj.app))
    formats.write_log(proj.app.settings)
    interrupted = False

    def stop(number: int, _frame: object) -> None:
        nonlocal interrupted
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        interrupted = interrupted or number == signal.SIGINT
        consumer.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    consumer.run()
    raise click.exceptions.Exit(ExitCode.INTERRUPTED if interrupted else ExitCode.DONE)
