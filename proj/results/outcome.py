"""How tasks ended, as the result store has it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final

import celery.exceptions
from celery import Celery, states
from celery.result import AsyncResult

from proj.errors import BadArguments, Ignored, NoResultYet, NotExecuted
from proj.results import stored_exception
from proj.results.store import store_error

#: Seconds between two looks for a result. Each is a query; Celery's half a second makes short tasks wait.
POLL_INTERVAL: Final = 0.1

#: Seconds that one wait of Celery's lasts, after which whoever waits is asked whether to go on.
WAIT_INTERVAL: Final = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a task ended, or that it did not end yet; `result` and `error` exclude each other."""

    id: str
    task: str | None
    #: Celery's word for it: `SUCCESS`, `FAILURE`, …; `PENDING` when nothing is stored under this id.
    state: str
    result: Any
    error: str | None
    traceback: str | None
    worker: str | None
    #: When the result was stored: ISO 8601, UTC.
    finished: str | None

    @property
    def executed(self) -> bool:
        """False when a worker has ended it without executing it, or has refused its arguments."""
        never = (f"{NotExecuted.__name__}: ", f"{BadArguments.__name__}: {self.task}: ")
        return not (self.error or "").startswith(never)

    @property
    def way(self) -> str:
        """How it ended without a result, for people."""
        if self.state != states.REVOKED:
            return "failed"
        return "was ignored" if (self.error or "").startswith(f"{Ignored.__name__}: ") else "was revoked"

    @property
    def ended(self) -> bool:
        return self.state in states.READY_STATES


def outcome(app: Celery, task_id: str) -> Outcome:
    """What the result store holds for this id. Raises `ResultStoreError`."""
    return _read(app, app.AsyncResult(task_id))


def failure(app: Celery, task_id: str) -> object:
    """What tells the failure that is stored under this id from a later one; None when none is stored.

    Raises `ResultStoreError`.
    """
    result = app.AsyncResult(task_id)
    try:
        return (result.state, result.date_done) if result.state in states.PROPAGATE_STATES else None
    except Exception as error:
        raise store_error(app, error) from error


def wait(
    app: Celery,
    task_id: str,
    timeout: float | None = None,
    on_interval: Callable[[], None] | None = None,
    failed_before: object = None,
) -> Outcome:
    """The outcome of this task, once it has ended; `on_interval` is called every `WAIT_INTERVAL` of the wait.

    `failed_before` is the `failure` that was stored before the message was published: it is not how that
    ended. Raises `NoResultYet` when it has not ended within `timeout` seconds, and `ResultStoreError`.
    """
    deadline = math.inf if timeout is None else time.monotonic() + timeout
    while failed_before is not None and failure(app, task_id) == failed_before:
        if time.monotonic() > deadline:
            raise _not_yet(task_id, timeout)
        time.sleep(POLL_INTERVAL)
        if on_interval:
            on_interval()
    result = app.AsyncResult(task_id)
    while True:
        # Celery has an `on_interval` too, and calls it once: a promise's callbacks are called once.
        left = max(POLL_INTERVAL, deadline - time.monotonic())
        try:
            result.get(timeout=min(left, WAIT_INTERVAL), interval=POLL_INTERVAL, propagate=False)
            return _read(app, result)
        except celery.exceptions.TimeoutError:
            if time.monotonic() > deadline:
                raise _not_yet(task_id, timeout) from None
        except Exception as error:
            raise store_error(app, error) from error
        if on_interval:
            on_interval()


def _not_yet(task_id: str, timeout: float | None) -> NoResultYet:
    return NoResultYet(
        f"message {task_id} is accepted, but has no result after {timeout:g} s",
        f"is a worker running? Look again with: proj result {task_id}",
    )


def _read(app: Celery, result: AsyncResult) -> Outcome:
    try:
        if result._cache is None:
            # Celery keeps what it has read of a task that has ended, and of any other reads each field anew.
            result._cache = result.backend.meta_from_decoded(result.backend.get_task_meta(result.id))
        state, value = result.state, result.result
        failed = isinstance(value, BaseException)
        return Outcome(
            id=result.id,
            task=result.name,
            state=state,
            result=None if failed else value,
            error=stored_exception.words(value) if failed else None,
            traceback=result.traceback,
            worker=result.worker,
            # Stored without a zone; Celery stores UTC.
            finished=f"{result.date_done.replace(tzinfo=UTC):%FT%TZ}" if result.date_done else None,
        )
    except Exception as error:  # the store may be of any kind
        raise store_error(app, error) from error
