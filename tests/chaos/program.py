"""What the programs of chaos have in common: nobody's settings, an end in one line, and no process left."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psutil
from rich.console import Console

from proj.errors import ExitCode, ProjError
from tests.lib import fork_server

#: Seconds for the last processes to end by themselves.
_GRACE: Final = 10


@contextmanager
def alone(console: Console) -> Iterator[None]:
    """Run with no settings of others; an error or an interrupt ends the program with one line."""
    _clean_environment()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        yield
    except ProjError as error:
        console.print(f"Error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("Error: interrupted; all processes of the run have ended")
        sys.exit(ExitCode.INTERRUPTED)


def left_behind() -> list[str]:
    """Processes of the run that do not end by themselves, which there must not be."""
    server = fork_server.server_pid()
    found = [each for each in psutil.Process().children(recursive=True) if each.pid != server]
    # A helper of a node that was killed may become a child of this process, and ends when it notices.
    _, left = psutil.wait_procs(found, _GRACE)
    return [f"{each.pid} {each.name()}" for each in left if each.status() != psutil.STATUS_ZOMBIE]


def _clean_environment() -> None:
    """Settings of others must not decide."""
    for name in list(os.environ):
        if name.startswith(("CELERY_", "AMQP_", "PROJ_", "RABBITMQ_")):
            del os.environ[name]


def _interrupt(*_: object) -> None:
    """Unwind once: all programs are ended on the way, and nothing interrupts that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
