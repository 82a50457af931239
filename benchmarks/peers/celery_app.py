"""Celery as its first steps show it; with BENCH_SAME=1 at the settings that the project has."""

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_URL"], backend=os.environ.get("BENCH_BACKEND"))

if os.environ.get("BENCH_SAME"):
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_acks_on_failure_or_timeout=False,
        worker_prefetch_multiplier=1,
        task_default_queue_type="quorum",
        task_default_exchange_type="topic",
        broker_transport_options={"confirm_publish": True},
        result_extended=True,
        task_time_limit=25 * 60,
        task_soft_time_limit=24 * 60,
        task_store_errors_even_if_ignored=True,
        worker_deduplicate_successful_tasks=True,
        worker_cancel_long_running_tasks_on_connection_loss=True,
    )


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
