"""Ledgers: files to which programs append what they do, one line a fact, before they do the next thing.

A line is written by one system call and no buffer, so that it survives SIGKILL of its writer. A power cut is
not what is tested. Each process has a file of its own.
"""

import enum
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: The setting with which programs find the folder of their ledgers.
FOLDER: Final = "CHAOS_LEDGERS"

#: Files beside the ledgers: while the first is there tasks hold (`tests.chaos.tasks`), while the second is,
#: they fail.
HOLD: Final = "hold"
FAIL: Final = "fail"

#: How the names of files begin that tell which worker holds which task.
HELD: Final = "held"

_SUFFIX: Final = ".ledger"


class Kind(enum.StrEnum):
    """What a line says of a token, which stands for one message."""

    ATTEMPTED = "attempted"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    EXECUTED = "executed"
    DEAD = "dead"


@dataclass(frozen=True)
class Fact:
    """One line: what happened to the message, when by the writer's clock, and in which process.

    `delivery` counts from 1; 0 where it is not known.
    """

    kind: Kind
    token: str
    at: float
    process: int
    delivery: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.token} {self.at:.6f} {self.process} {self.delivery}"

    @classmethod
    def parse(cls, line: str) -> "Fact":
        kind, token, at, process, delivery = line.split(" ")
        return cls(Kind(kind), token, float(at), int(process), int(delivery))


class DamagedLedger(Exception):
    """Raised when a ledger holds what is no fact: nothing can be said of the run."""


class Ledger:
    """The file of one writer."""

    def __init__(self, folder: Path, writer: str) -> None:
        path = folder / f"{writer}-{os.getpid()}{_SUFFIX}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, kind: Kind, token: str, delivery: int = 0) -> None:
        line = f"{Fact(kind, token, time.time(), os.getpid(), delivery)}\n".encode()
        if os.write(self._fd, line) != len(line):
            raise OSError("a line of the ledger was written in part")


def read(folder: Path) -> dict[str, list[Fact]]:
    """The facts of each ledger, in the order in which they were written. Raises `DamagedLedger`."""
    return {path.name: list(_facts(path)) for path in sorted(folder.glob(f"*{_SUFFIX}"))}


def _facts(path: Path) -> Iterator[Fact]:
    text = path.read_text()
    if text and not text.endswith("\n"):
        raise DamagedLedger(f"{path} ends in the middle of a line")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            yield Fact.parse(line)
        except ValueError:
            raise DamagedLedger(f"line {number} of {path} is no fact: {line!r}") from None


class Count:
    """How many lines of each kind the ledgers of a folder hold, read on from where the last look ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[Path, int] = {}
        self._counts: Counter[Kind] = Counter()
        self._tokens: dict[Kind, set[str]] = {kind: set() for kind in Kind}

    def look(self) -> Counter[Kind]:
        for path in self._folder.glob(f"*{_SUFFIX}"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                whole, end, _ = file.read().rpartition(b"\n")
            self._offsets[path] = self._offsets.get(path, 0) + len(whole) + len(end)
            for line in whole.splitlines():
                kind, token, _ = line.decode().split(" ", 2)
                self._counts[Kind(kind)] += 1
                self._tokens[Kind(kind)].add(token)
        return self._counts

    def open(self) -> set[str]:
        """Confirmed messages that were neither executed nor are dead, as far as is written."""
        self.look()
        return self._tokens[Kind.CONFIRMED] - self._tokens[Kind.EXECUTED] - self._tokens[Kind.DEAD]
