"""What a command that publishes shows of the log: all events as JSON, or warnings for people."""

import logging

import click

import proj


class _Warnings(logging.Handler):
    """Prints what is logged as a warning: a command has no log."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"Warning: {record.getMessage()}", err=True)


def show_log() -> None:
    """Let this command write to stderr what concerns its user."""
    from proj.enqueue import priorities
    from proj.logs import formats

    formats.write_events(proj.app.settings)
    if proj.app.settings.proj_log_format == "text":
        priorities.log.addHandler(_Warnings())
