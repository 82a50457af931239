"""Our callers: `delay` a second, `threads` that call it, the milliseconds of `get`, and more."""

import os
import sys
import time
import uuid
from contextlib import suppress

from celery.exceptions import TimeoutError

from benchmarks.ours.tasks import mark
from benchmarks.protocol import concurrently, cpu_of_waiting, milliseconds, rate, serve, steadily
from proj.celery import app
from proj.tasks import add


def wait(seconds: float) -> None:
    """Wait for the result of a task that nobody executes."""
    with suppress(TimeoutError):
        app.AsyncResult(str(uuid.uuid4())).get(timeout=seconds)


def marked() -> None:
    mark.delay(os.environ["BENCH_MARKS"], time.time())


MEASURES = {
    "delay": rate(lambda: add.delay(2, 3)),
    "threads": concurrently(100, lambda: add.delay(2, 3)),
    "get": milliseconds(lambda: add.delay(2, 3).get(timeout=60)),
    "steadily": steadily(marked),
    "wait": cpu_of_waiting(100, wait),
}

if __name__ == "__main__":
    add.delay(2, 3)  # the first one connects
    serve(MEASURES[sys.argv[1]])
