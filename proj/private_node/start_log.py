"""Finds in RabbitMQ's log whether a start is complete, or why it failed."""

import re
from itertools import islice
from pathlib import Path
from typing import Final

#: A line of RabbitMQ's log such as `2026-11-21 07:00:25.715748+00:00 [error] <0.223.0> Failed to …`.
_LOGGED_ERROR: Final = re.compile(
    r"^\S+ \S+ \[error\] <[\d.]+> +(?:- )?(?!BOOT FAILED|=)(\S.*)$", re.MULTILINE
)

#: Most characters of the reason of a failed start; Erlang's terms can have thousands.
_REASON_WIDTH: Final = 240


#: The last line of a start; the same from 3.10 to 4.3.
_COMPLETE: Final = "Server startup complete"


def is_complete(log: Path, start: int) -> bool:
    """Whether the start whose log begins at byte `start` is over: clients are served a moment before."""
    return _COMPLETE in _read(log, start)


def reason(log: Path, start: int) -> str:
    """The reason in one line, from what was logged after byte `start`."""
    text = _read(log, start)
    # The first error is the cause, or a heading such as `Exception during startup:` before the cause; the
    # last lines are an Erlang crash report. Errors before RabbitMQ has a logger have no level: there the last
    # line is the best.
    errors = [match[1].strip() for match in islice(_LOGGED_ERROR.finditer(text), 2)]
    if errors:
        reason = " ".join(errors if errors[0].endswith(":") else errors[:1])
    else:
        reason = (text.strip() or "its log is empty").splitlines()[-1].strip()
    if len(reason) > _REASON_WIDTH:
        # Both ends are kept: the line begins with what failed, and often ends with why.
        reason = f"{reason[: _REASON_WIDTH // 2]} … {reason[-_REASON_WIDTH // 2 :]}"
    return reason


def _read(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", "replace")
