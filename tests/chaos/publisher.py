"""A program that publishes when it is told to, over one connection, and says how each publish ended."""

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Self

from tests.bundle import COMMAND_TIMEOUT, Bundle

#: Reads one publish a line, and answers with one line.
_PROGRAM = """
import json, sys, time
from proj import errors
from proj.enqueue import enqueue
for line in sys.stdin:
    task, args, size, options = json.loads(line)
    began = time.monotonic()
    try:
        ended = "confirmed", enqueue(task, args or ["." * size], **options).id
    except errors.ProjError as error:
        ended = type(error).__name__, str(error)
    print(json.dumps([*ended, time.monotonic() - began]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a publish ended: `confirmed`, or the name of the error; the id, or the error's line; seconds.

    `limit` is how many seconds it was allowed to take.
    """

    kind: str
    text: str
    seconds: float
    limit: float


class Publisher:
    """A process that publishes with the bundle's settings, and with those of `env`."""

    def __init__(self, bundle: Bundle, **env: str) -> None:
        self._limit = float((bundle.env | env)["PROJ_PUBLISH_TIMEOUT"])
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            cwd=bundle.folder,
            env=bundle.env | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Not in good order: it would say good-bye to a broker that may be frozen.
        self._process.kill()
        self._process.communicate(timeout=COMMAND_TIMEOUT)

    def publish(
        self, *args: Any, task: str = "proj.tasks.sleep_dots", size: int = 1, **options: Any
    ) -> Outcome:
        """Publish the task with these arguments, or with one text of `size` letters."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([task, args, size, options]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the publisher died; its last words are above"
        return Outcome(*json.loads(answer), self._limit)
