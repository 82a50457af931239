"""Workarounds for Celery's pools.

A pool keeps a task that it failed to send to a process, and waits for it at its end. Pools of threads drop
errors raised outside of a task, and Python waits for their threads when the process ends.
"""

import atexit
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import click
from celery.platforms import EX_OK


def forget_job(pool: Any, task_id: str) -> None:
    """Let the pool forget a task that it could not accept; at its end it would wait for the task."""
    # upstream: not reported; remove when `apply_async` of billiard keeps nothing of what it cannot send
    jobs = getattr(getattr(pool, "_pool", None), "_cache", {})
    for job in tuple(jobs.values()):
        if getattr(job, "correlation_id", None) == task_id and not hasattr(job, "_payload"):
            job.discard()


def on_lost_error(result: Any, report: Callable[[BaseException], None]) -> None:
    """Call `report` with an error raised outside of the task, which a pool of threads would drop."""
    future = getattr(result, "f", None)
    if isinstance(future, Future):

        def ended(future: Future[Any]) -> None:
            if not future.cancelled() and (error := future.exception()):
                report(error)

        future.add_done_callback(ended)


def wait_for_no_thread() -> None:
    """Let the process end with its command, without waiting for threads that still execute tasks.

    Python waits for every thread; before 3.13, a signal could interrupt that wait.
    """
    if context := click.get_current_context(silent=True):  # without one, a program runs the worker
        context.find_root().call_on_close(_exit)


def _exit() -> None:
    # As Python does, except for the wait: exit handlers remove the worker's heartbeat and Celery's files.
    atexit._run_exitfuncs()
    os._exit(EX_OK)
