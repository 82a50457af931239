"""A worker that a test has started."""

import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.lib.waiting import PATIENCE, eventually


@dataclass(frozen=True)
class LogLine:
    """A line of a worker's log about one task."""

    at: float
    process: str
    task: str
    id: str
    text: str


class Worker:
    """A `celery -A proj worker` of its own, and what it logs."""

    _LINE = re.compile(r"\[([\d-]+ [\d:]+),(\d+): \w+/([\w-]+)\] (?:Task )?([\w.]+)\[([^\]]+)\]:? (.*)")

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def lines(self, containing: str = "") -> list[LogLine]:
        found = []
        for match in self._LINE.finditer(self.text()):
            day, millis, process, task, task_id, text = match.groups()
            at = time.mktime(time.strptime(day, "%Y-%m-%d %H:%M:%S")) + int(millis) / 1000
            if containing in text:
                found.append(LogLine(at, process, task, task_id, text))
        return found

    def says(self, text: str, patience: float = PATIENCE) -> None:
        def said() -> bool:
            if text in self.text():
                return True
            if self.process.poll() is not None and text not in self.text():
                raise AssertionError(f"the worker ended without saying {text!r}:\n{self.text()}")
            return False

        eventually(f"the worker says {text!r}", said, patience, seen=self.text)

    def ready(self) -> Self:
        self.says(" ready.")
        return self

    def watched(self) -> Self:
        """Wait until it has noticed that somebody receives its events."""
        self.says("Events about tasks are on")
        return self

    @property
    def name(self) -> str:
        """The name by which others reach it, once it is ready."""
        found = re.search(r"(\w[\w.-]*@\S+) ready\.", self.ready().text())
        assert found, self.text()
        return found[1]

    def started(self, task_id: str) -> LogLine:
        """The line that its `sleep_dots` task wrote at its start."""
        return eventually(
            f"task {task_id} starts",
            lambda: [line for line in self.lines("Received ") if line.id == task_id],
            seen=self.text,
        )[-1]

    def kill(self) -> None:
        """SIGKILL the worker, as the system does when memory runs out, and prove that it is gone."""
        self.process.kill()
        assert self.ends() == -signal.SIGKILL

    def terminate(self) -> int:
        """SIGTERM the worker; its exit code, once its tasks have ended."""
        self.process.terminate()
        return self.ends()

    def ends(self) -> int:
        """Its exit code, once it has ended by itself. What it said is shown if the test fails."""
        if code := self.process.wait(PATIENCE):
            print(self.text())  # noqa: T201
        return code

    def stop(self) -> None:
        if self.process.poll() is None:
            children = self.children()
            self.process.kill()
            self.process.wait(PATIENCE)
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()

    def children(self) -> list[psutil.Process]:
        """The processes that execute its tasks."""
        return psutil.Process(self.process.pid).children(recursive=True)
