"""Handles standard streams that are closed or cannot be written: the disk is full, or the reader is gone.

Imports little, so that `proj --help` is fast.
"""

import io
import os
import sys
from typing import Any, TextIO


class _File(io.FileIO):
    """A file that records why a write failed; a lossy one drops the data instead of raising."""

    lossy = False
    problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.problem = error
            if not self.lossy:
                raise
            return len(data)


def prepare(*, lossy_stdout: bool = False) -> None:
    """Prepare the standard streams so that a broken one does not change what the program does.

    A closed stream, such as by `>&-`, is opened on the null device; otherwise the next file or connection
    would get its number. Text that cannot be written to stderr is dropped, and with `lossy_stdout`, for a
    program without data, also to stdout. Characters that the encoding lacks are escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, and stays open
            _set(name, open(number, mode, closefd=False))  # noqa: SIM115
    for name, lossy in (("stdout", lossy_stdout), ("stderr", True)):
        if (stream := getattr(sys, name)) is getattr(sys, f"__{name}__"):  # not one captured by a test
            _set(name, _writer(stream, lossy=lossy))


def stdout_problem() -> str | None:
    """Why stdout could not be written; None if it could."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    problem = raw.problem if isinstance(raw, _File) else None
    return problem.strerror if problem else None


def discard_stdout() -> None:
    """Discard the buffer of stdout, and everything that is printed from now on."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _set(name: str, stream: Any) -> None:
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def _writer(stream: TextIO, *, lossy: bool) -> TextIO:
    stream.flush()
    file = _File(stream.fileno(), "w", closefd=False)
    file.lossy = lossy
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors
    line = lossy or stream.isatty()
    return io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, errors, line_buffering=line)
