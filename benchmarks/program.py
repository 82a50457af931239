"""Programs that are measured: those that obey the line protocol, and workers."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[1]

#: The Pythons of the project's environment, and of its peers'.
OURS: Final = Path(sys.executable)
PEERS: Final = ROOT / "build/peers/bin/python"

#: Seconds for one measurement, after which the program is killed.
PATIENCE: Final = 900

#: Seconds for a program to end by itself.
GRACE: Final = 10

#: Settings of others must not decide.
_FOREIGN: Final = ("CELERY_", "AMQP_", "PROJ_", "RABBITMQ_", "dramatiq_")

_numbers = itertools.count()


class ProgramFailed(Exception):
    """Raised when a program ended, or said something unexpected."""


def clean_environment() -> dict[str, str]:
    """The environment without settings of others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


class Process:
    """A program in a folder of its own; all its processes end with the block."""

    def __init__(
        self, command: list[str | Path], folder: Path, env: Mapping[str, str], *, talks: bool = False
    ) -> None:
        self.command = [str(word) for word in command]
        self.folder = folder
        self.log = folder / f"{next(_numbers)}.log"
        self._env = clean_environment() | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
            **env,
        }
        self._talks = talks

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self._env,
                stdin=subprocess.PIPE if self._talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._talks else log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill the program and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        for pipe in filter(None, (self.popen.stdin, self.popen.stdout)):
            with suppress(OSError):
                pipe.close()
        self.popen.wait()

    def failed(self, what: str) -> ProgramFailed:
        return ProgramFailed(f"{' '.join(self.command[1:])} {what}:\n{self.log.read_text()[-4000:]}")


class Program(Process):
    """A program that obeys the line protocol: see `benchmarks.protocol`."""

    def __init__(
        self, python: Path, module: str, folder: Path, env: Mapping[str, str], arguments: tuple[str, ...] = ()
    ) -> None:
        super().__init__([python, "-m", f"benchmarks.{module}", *arguments], folder, env, talks=True)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._read("ready")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self.popen.stdin
        with suppress(OSError, subprocess.TimeoutExpired):
            self.popen.stdin.close()
            self.popen.wait(GRACE)
        self.kill()

    def go(self, count: int) -> Any:
        """What it measures, `count` times."""
        assert self.popen.stdin
        self.popen.stdin.write(f"go {count}\n")
        self.popen.stdin.flush()
        return json.loads(self._read("result"))

    def _read(self, word: str) -> str:
        assert self.popen.stdout
        timer = threading.Timer(PATIENCE, self.popen.kill)
        timer.start()
        try:
            line = self.popen.stdout.readline()
        finally:
            timer.cancel()
        if not line.startswith(word):
            raise self.failed(f"did not say {word}, but {line!r}")
        return line.removeprefix(word)
