"""Standard streams that are closed, or that take nothing: the disk is full, or the reader is gone.

Little is imported here, so that `proj --help` is fast.
"""

import io
import os
import sys
from typing import Any, TextIO


class _File(io.FileIO):
    """A file that knows why it could not be written; a lossy one loses what that was, without an error."""

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
    """Make the streams of this process such that none of them decides how it ends.

    What is closed, as by `>&-`, leads nowhere; else the next file or connection would have its number. Words
    that stderr does not take are lost: what is done, and the exit code, stay as they are. With
    `lossy_stdout`, so are those of a program that writes no data. What an encoding lacks is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free; it stays open
            _set(name, open(number, mode, closefd=False))  # noqa: SIM115
    for name, lossy in (("stdout", lossy_stdout), ("stderr", True)):
        if (stream := getattr(sys, name)) is getattr(sys, f"__{name}__"):  # not one of a test
            _set(name, _writer(stream, lossy=lossy))


def stdout_problem() -> str | None:
    """Why stdout did not take what was printed, in words; None when it did."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    problem = raw.problem if isinstance(raw, _File) else None
    return problem.strerror if problem else None


def discard_stdout() -> None:
    """Let all that is printed from now on, and what is left in the buffer, go nowhere."""
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
