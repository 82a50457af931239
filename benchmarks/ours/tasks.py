"""The application with the tasks that are measured: as those of `benchmarks.peers.celery_app`."""

import os
import time
from pathlib import Path

from proj.celery import app


@app.task(name="bench.add")
def add(x: float, y: float) -> float:
    return x + y


@app.task(name="bench.mark")
def mark(file: str, *facts: float) -> None:
    """Write the time of the start into a file, and what else is to be known then."""
    now = time.time()
    with Path(file).open("a") as marks:
        marks.write(" ".join(map(str, [now, os.getpid(), *facts])) + "\n")


@app.task(name="bench.sleep")
def sleep(file: str, seconds: float) -> None:
    """Sleep, and write when that began and ended."""
    start = time.time()
    time.sleep(seconds)
    mark(file, start)


@app.task(name="bench.hold")
def hold(file: str) -> None:
    """Write the time of the start, and last until the worker is killed."""
    mark(file)
    time.sleep(600)


@app.task(name="bench.wait")
def wait(file: str, gate: str) -> None:
    """Write the time of the start, and last until the other file is there."""
    mark(file)
    while not Path(gate).exists():
        time.sleep(0.005)
