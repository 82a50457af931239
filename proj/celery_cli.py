"""Celery's own command line, whose errors are one line with an exit code of the contract, as `proj`'s are."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from proj.errors import ConfigError, ProjError
from proj.printable import error_line


def install() -> None:
    """Let the command of Celery's that this process runs, if any, end as one of `proj` would."""
    context = click.get_current_context(silent=True)
    if context and context.find_root().command.name == "celery":
        context.find_root().with_resource(_one_line_errors())


@contextmanager
def _one_line_errors() -> Iterator[None]:
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
