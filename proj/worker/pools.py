"""What Celery's pools leave undone.

They keep a task that they could not be given. Their threads drop what is raised outside of a task, and are
waited for at the end.
"""

import atexit
import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import click
from celery.platforms import EX_OK


def forget_job(pool: Any, task_id: str) -> None:
    """Let the pool forget a task that it could not be given; at its end it would wait for it."""
    # upstream: not reported; remove when `apply_async` of billiard keeps nothing of what it cannot send
    jobs = getattr(getattr(pool, "_pool", None), "_cache", {})
    for job in tuple(jobs.values()):
        if getattr(job, "correlation_id", None) == task_id and not hasattr(job, "_payload"):
            job.discard()


def on_lost_error(result: Any, report: Callable[[BaseException], None]) -> None:
    """Call `report` with what a pool of threads would drop: an error that is raised outside of the task."""
    future = getattr(result, "f", None)
    if isinstance(future, Future):

        def ended(future: Future[Any]) -> None:
            if not future.cancelled() and (error := future.exception()):
                report(error)

        future.add_done_callback(ended)


def wait_for_no_thread() -> None:
    """Let the process end with its command, and not wait for a thread that still executes a task.

    Python waits for each; before 3.13 it did not for one that it was interrupted in waiting for.
    """
    if context := click.get_current_context(silent=True):  # else a program runs the worker, and ends itself
        context.find_root().call_on_close(_exit)


def _exit() -> None:
    # What Python does before it ends, besides waiting: the worker's heartbeat is removed, Celery's files too.
    atexit._run_exitfuncs()
    os._exit(EX_OK)
