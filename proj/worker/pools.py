"""Workarounds for Celery's pools.

Pools of processes keep a task that they failed to send. Pools of threads drop errors raised outside of a
task, and Python waits for their threads when the process ends.
"""

import atexit
import os
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, Final

import click
from celery.concurrency import prefork
from celery.platforms import EX_OK
from kombu.asynchronous import Hub
from kombu.utils.compat import fileno

#: Levels of nesting that the pool adds to the headers.
_MARGIN: Final = 50

#: Levels of nesting that can be pickled for certain, twice what `proj.rabbitmq.decoding` leaves to a header.
_FEW: Final = 128


def has_processes(pool: Any) -> bool:
    """Whether the pool executes a task in another process, which gets copies of its arguments."""
    return isinstance(pool, prefork.TaskPool)


def check_sendable(pool: Any, headers: Any) -> None:
    """Raise what the pickling of these headers, which hold the arguments, raises if the pool has processes.

    Such a pool keeps a task that it failed to send, and waits for it at its end.
    """
    if has_processes(pool):
        for _ in range(_MARGIN):
            headers = [headers]
        pickle.dumps(headers)


def is_shallow(body: Any) -> bool:
    """Whether this JSON is nested to few levels, for all that few brackets tell. Headers always are."""
    if isinstance(body, bytes):
        return body.count(b"[") + body.count(b"{") <= _FEW
    return isinstance(body, str) and body.count("[") + body.count("{") <= _FEW


def without_soft_limit(pool: Any) -> Any:
    """The pool for a task that has no soft time limit."""

    def apply_async(*args: Any, **options: Any) -> Any:
        return pool.apply_async(*args, **options | {"soft_timeout": None})

    return SimpleNamespace(apply_async=apply_async)


def send_at_once(consumer: Any) -> None:
    """Write the task that the pool, which has processes, was handed to the pipe of a free one.

    Celery does so in the next turn of its event loop, while the process waits. If no other process is busy,
    the loop has nothing else to do, and lets the process begin: Linux wakes it on the core of the loop, where
    it would wait in one case of two until the loop sleeps.
    """
    # upstream: not reported; remove when the pool writes a task as it is handed over
    pool = consumer.pool._pool
    free = list(pool._all_inqueues - pool._busy_workers)
    consumer.hub.consolidate_callback(free)
    if len(free) == len(pool._all_inqueues):
        os.sched_yield()


def remove_writers_once(hub: Hub) -> None:
    """Let the event loop look before it removes a writer.

    In each turn, a pool of processes removes the writers of all that are idle. Kombu makes a system call for
    each, which fails: with two processes, a quarter of what a worker's main process does for a task.
    """

    def remove_writer(fd: Any) -> None:
        number = fd if isinstance(fd, int) else fileno(fd)
        if number in hub.writers:
            Hub.remove_writer(hub, number)

    # upstream: not reported; remove when kombu looks before it removes a writer
    hub.remove_writer = remove_writer


def keep_written(pool: Any) -> None:
    """Let the tasks that were written to a process end there, before a warm shutdown.

    Celery drops each task whose process has not reported its start yet: the process executes it, but no one
    waits for its end, and another worker executes it again.
    """
    if has_processes(pool) and pool._pool:
        # upstream: not reported; remove when the pool writes a task as it is handed over
        for job in pool._pool._cache.values():
            job._accepted = job._accepted or job._write_to is not None
        # While the pool is open, this completes what is written in part.
        pool.flush()


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
