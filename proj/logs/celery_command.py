"""Makes the errors of Celery's command line like those of `proj`: one line, with a documented exit code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from amqp.exceptions import AMQPError
from celery.platforms import LockFailed
from kombu.exceptions import OperationalError

from proj.errors import BrokerRefused, BrokerUnreachable, ConfigError, ProjError
from proj.logs import streams
from proj.logs.printable import error_line

#: Commands whose stdout carries no data.
_PROGRAMS = ("worker", "beat", "flower")


def is_running(*names: str) -> bool:
    """Whether this process is one of these subcommands of `celery`."""
    context = click.get_current_context(silent=True)
    return bool(context and context.invoked_subcommand in names)


def install() -> None:
    """Handle the errors of Celery's command line, if this process runs one."""
    if is_running(*_PROGRAMS):
        # Celery would end when its output cannot be written.
        streams.prepare(lossy_stdout=True)
    context = click.get_current_context(silent=True)
    if context and context.find_root().command.name == "celery":
        context.find_root().with_resource(_errors_of_click())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End Celery's command line with one line when the block raises, instead of its loader's traceback."""
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
    except ModuleNotFoundError as error:
        if error.name != "pyrabbit":
            raise
        problem = "`celery list` needs the package pyrabbit, which is not maintained"
        raise _OneLine(ConfigError(problem, "use: rabbitmqctl list_bindings")) from error
    except OperationalError as error:
        # Such as of `celery purge`; other commands say so by themselves.
        where = "check AMQP_HOST, AMQP_PORT or CELERY_BROKER_URL"
        raise _OneLine(BrokerUnreachable(f"the broker cannot be used: {error}", where)) from error
    except AMQPError as error:
        where = "check AMQP_USER, AMQP_PASSWORD and AMQP_VHOST, or CELERY_BROKER_URL"
        raise _OneLine(BrokerRefused(f"the broker refuses: {error.reply_text or error}", where)) from error
    except (OSError, LockFailed) as error:
        if unusable := unusable_file(error):
            raise _OneLine(unusable) from error
        raise


def unusable_file(error: OSError | LockFailed) -> ConfigError | None:
    """The error for a file that cannot be used, such as --logfile or --pidfile; None if no file is named."""
    # A `LockFailed` is raised while the error of the pidfile is handled.
    reason = error.__context__ if isinstance(error, LockFailed) else error
    if not isinstance(reason, OSError) or reason.filename is None:
        return None
    return ConfigError(f"{reason.filename!r} cannot be used: {reason.strerror}")


class _OneLine(click.ClickException):
    """An error that click prints as one line before it exits with the error's code."""

    def __init__(self, error: ProjError) -> None:
        super().__init__(error_line(str(error)))
        self.exit_code = error.exit_code  # type: ignore[misc]  # click's own subclasses do so
