"""A worker that many tests read the log of, the tasks that they let it execute, and what it logged."""

import json
from collections.abc import Iterable
from typing import Any, Self

from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

JSON = {"PROJ_LOG_FORMAT": "json"}

#: A task that is retried once, then fails until it is mended.
MOODY = """
    @app.task(name="proj.tasks.moody", pydantic=True, bind=True)
    def moody(self) -> int:
        from pathlib import Path
        if Path("mended").exists():
            return 42
        if not self.request.retries:
            raise ConnectionError("the other side hung up")
        raise ValueError("no such\\nthing")
"""

#: A task that writes in every way that there is.
CHATTY = """
    @app.task(name="proj.tasks.chatty", pydantic=True)
    def chatty() -> None:
        import logging, warnings
        log.info("from Celery's\\nlogger")
        library = logging.getLogger("any.library")
        library.warning("from a library", extra={"order": 4711, "share": float("nan")})
        print("from\\nprint")
        warnings.warn("from warnings")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("with a traceback")
"""


#: A task that prints, and leaves a line without its end.
PRINTS = """
    @app.task(name="proj.tasks.prints", pydantic=True)
    def prints() -> None:
        import sys
        print("several", "words", 4711)
        print("flushed", end="", flush=True)
        print()
        print("on stderr", "too", file=sys.stderr)
        print("begun", end="")
"""

#: A task whose texts have the length of a file.
VERBOSE = """
    @app.task(name="proj.tasks.verbose", pydantic=True)
    def verbose(length: int) -> None:
        log.info("%s", "y" * length)
        try:
            raise LookupError("z" * length)
        except LookupError:
            log.exception("caught")
        raise ValueError("x" * length)
"""

#: A task that ends its first attempt in one of many ways.
WILD = """
    @app.task(name="proj.tasks.wild", pydantic=True)
    def wild(action: str) -> None:
        import os, sys
        from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
        def reject(): raise Reject("no", requeue=False)
        def ignore(): raise Ignore()
        def sleep_on():
            while True:
                try:
                    time.sleep(600)
                except SoftTimeLimitExceeded:
                    pass
        if not os.path.exists(action):
            open(action, "w").close()
            eval(action)
"""


def objects(*texts: str) -> list[dict[str, Any]]:
    """What the programs logged, in the order of time; every line is an object of JSON."""
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    return sorted(found, key=lambda line: line["time"])


def way(lines: Iterable[dict[str, Any]], task_id: str) -> list[str]:
    return [line["event"] for line in lines if line.get("task_id") == task_id and line["event"] != "log"]


class Shared:
    """A worker for many tests, and what it logged since a test began."""

    def __init__(self, bundle: Bundle) -> None:
        for task in (MOODY, CHATTY, PRINTS, VERBOSE, WILD):
            bundle.add_task(task)
        self.bundle = bundle
        self.worker = bundle.worker("-n", "w@here").ready()
        self._start = 0

    def begin(self) -> Self:
        """To be called when all that earlier tests have enqueued is executed."""
        self._start = len(self.worker.text())
        return self

    def text(self) -> str:
        return self.worker.text()[self._start :]

    def says(self, *words: str) -> None:
        """Wait for a line with all of the words."""
        eventually(
            f"the worker says {words}",
            lambda: any(all(word in line for word in words) for line in self.text().splitlines()),
            seen=self.text,
        )

    def logs(self, event: str, task_id: str) -> None:
        """Wait for the event, in JSON."""
        self.says(f'"event": "{event}"', f'"task_id": "{task_id}"')
