"""The errors that people see, each with its exit code and, where there is one, a hint."""

import difflib
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

#: Similarity (`difflib`) from which an unknown name is treated as a misspelling of a known one.
MISSPELT: Final = 0.8


def did_you_mean(name: str, known: Iterable[str], likeness: float = MISSPELT) -> str | None:
    """The hint with the known name that is most like an unknown one; None when none is."""
    near = difflib.get_close_matches(name, list(known), 1, likeness)
    return f"did you mean {near[0]}?" if near else None


class ExitCode(IntEnum):
    """The exit status of `proj`, with the values of BSD's `sysexits.h` where one fits."""

    DONE = 0
    #: The task failed, or `proj doctor` found an error.
    TASK_FAILED = 1
    #: The command line, a setting or a module with tasks is wrong; nothing was tried.
    USAGE = 2
    #: The data is wrong: an unknown task, or arguments that the task does not take (`EX_DATAERR`).
    BAD_DATA = 65
    #: The broker, a worker or the result store is unreachable, or refuses (`EX_UNAVAILABLE`).
    UNREACHABLE = 69
    #: The output cannot be written, such as to a disk that is full (`EX_IOERR`).
    NOT_WRITTEN = 74
    #: The outcome is unknown; repeating the command with the same `--id` is safe (`EX_TEMPFAIL`).
    OUTCOME_UNKNOWN = 75
    #: Ctrl-C: 128 + SIGINT.
    INTERRUPTED = 130


class ProjError(Exception):
    """The command failed."""

    exit_code = ExitCode.TASK_FAILED

    def __init__(self, message: str, hint: str | None = None) -> None:
        """`message` is one line that says what failed and which; `hint` is the next thing to try."""
        self.message = message
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ProjError):
    """A setting has a value that cannot be used."""

    exit_code = ExitCode.USAGE


class BadTaskModule(ConfigError):
    """A module with tasks cannot be imported."""


class BadInput(ProjError):
    """The task or its arguments are invalid; nothing was sent."""

    exit_code = ExitCode.BAD_DATA


class UnknownTask(BadInput):
    """No task with this name is registered."""


class BadArguments(BadInput):
    """The task does not take these arguments."""


class BadTask(BadInput):
    """The definition of the task is invalid."""


class NotConfirmed(ProjError):
    """The broker has not confirmed a valid message; it is safe to publish it again later with the same id."""


class BrokerUnreachable(NotConfirmed):
    """The broker is unreachable; nothing was sent."""

    exit_code = ExitCode.UNREACHABLE


class BrokerRefused(NotConfirmed):
    """The broker refused the request; the message is certainly not in a queue."""

    exit_code = ExitCode.UNREACHABLE


class OutcomeUnknown(NotConfirmed):
    """The broker did not confirm in time; the message may be in the queue."""

    exit_code = ExitCode.OUTCOME_UNKNOWN


class NoResultYet(ProjError):
    """No result is stored yet."""

    exit_code = ExitCode.OUTCOME_UNKNOWN


class ResultStoreError(ProjError):
    """The result store cannot be read."""

    exit_code = ExitCode.UNREACHABLE


class BrokerNodeError(ProjError):
    """The private RabbitMQ node could not be started, found or stopped."""

    exit_code = ExitCode.UNREACHABLE


class ManagementUnavailable(ProjError):
    """The broker's management API cannot be used."""

    exit_code = ExitCode.UNREACHABLE


class ManagementRefused(ManagementUnavailable):
    """The broker's management API refused the user, or what this user asked for."""


class MonitorError(ProjError):
    """Flower could not be started."""

    exit_code = ExitCode.UNREACHABLE


#: Errors that are likely to be temporary.
TRANSIENT: Final = (ConnectionError, TimeoutError, BrokerUnreachable)


def with_transient(retried: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    """The errors that a task is retried for: beside its own the transient ones, or none if it has none."""
    given = tuple(retried)
    return tuple(dict.fromkeys((*TRANSIENT, *given))) if given else ()


# --- Stored as the exception of a message whose task raised none


class NotExecuted(Exception):
    """A worker dead-lettered the message without executing it; the text is the reason."""


class Ignored(Exception):
    """The task raised Celery's `Ignore` and stored no state of its own."""


class DeadLettered(Exception):
    """The broker or `proj ingest` made the message a dead letter; the text begins with the reason."""
