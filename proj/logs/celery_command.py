"""Celery's own command line, whose errors are one line with an exit code of the contract, as `proj`'s are."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from proj.errors import ConfigError, ProjError
from proj.logs import streams
from proj.logs.printable import error_line

#: Commands that write only words for people.
_PROGRAMS = ("worker", "beat", "flower")


def is_running(*names: str) -> bool:
    """Whether this process is one of these subcommands of `celery`."""
    context = click.get_current_context(silent=True)
    return bool(context and context.invoked_subcommand in names)


def install() -> None:
    """Let the command of Celery's that this process runs, if any, end as one of `proj` would."""
    if is_running(*_PROGRAMS):
        # Celery would end over a word that cannot be written.
        streams.prepare(lossy_stdout=True)
    context = click.get_current_context(silent=True)
    if context and context.find_root().command.name == "celery":
        context.find_root().with_resource(_errors_of_click())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """While Celery's command line loads the application: it would show a traceback of what it was loading."""
    try:
        yield
    except ProjError as error:
        if click.get_current_context(silent=True) is None:
            raise
        click.echo(f"Error: {error_line(str(error))}", err=True)
        sys.exit(error.exit_code)


@contextmanager
def _errors_of_click() -> Iterator[None]:
    try:
        yield
    except ProjError as error:
        raise _OneLine(error) from error
    except OSError as error:
        if error.filename is None:
            raise
        # As of --logfile.
        raise _OneLine(ConfigError(f"{error.filename!r} cannot be used: {error.strerror}")) from error


class _OneLine(click.ClickException):
    """What click shows as one line, and then exits with the code of the error."""

    def __init__(self, error: ProjError) -> None:
        super().__init__(error_line(str(error)))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click's own subclasses do so
