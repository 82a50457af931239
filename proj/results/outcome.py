"""The outcome of a task: read from the result store, or waited for."""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import celery.exceptions
from celery import Celery, states

from proj.errors import BadArguments, Ignored, NoResultYet, NotExecuted
from proj.results import polling, stored_exception
from proj.results.store import store_error, stored_at


@dataclass(frozen=True)
class Outcome:
    """The state of a task, and its result or its error once it has ended."""

    id: str
    task: str | None
    #: Celery's state: `SUCCESS`, `FAILURE`, …; `PENDING` when nothing is stored under this id.
    state: str
    result: Any
    error: str | None
    traceback: str | None
    worker: str | None
    #: When the result was stored: ISO 8601, UTC.
    finished: str | None

    @property
    def executed(self) -> bool:
        """False when a worker ended the task without executing it, or refused its arguments."""
        never = (f"{NotExecuted.__name__}: ", f"{BadArguments.__name__}: {self.task}: ")
        return not (self.error or "").startswith(never)

    @property
    def way(self) -> str:
        """How the task ended without a result, for people."""
        if self.state != states.REVOKED:
            return "failed"
        return "was ignored" if (self.error or "").startswith(f"{Ignored.__name__}: ") else "was revoked"

    @property
    def ended(self) -> bool:
        return self.state in states.READY_STATES


def outcome(app: Celery, task_id: str) -> Outcome:
    """The outcome that is stored under this id. Raises `ResultStoreError`."""
    try:
        # One query for all fields; a result of Celery's makes one for each until the task has ended.
        return _outcome(task_id, app.backend.meta_from_decoded(app.backend.get_task_meta(task_id)))
    except Exception as error:  # the store may be of any kind
        raise store_error(app, error) from error


def failure(app: Celery, task_id: str) -> object:
    """Identifies the failure that is stored under this id, to distinguish it from a later one; None without.

    Raises `ResultStoreError`.
    """
    result = app.AsyncResult(task_id)
    try:
        return (result.state, result.date_done) if result.state in states.PROPAGATE_STATES else None
    except Exception as error:
        raise store_error(app, error) from error


def failures(app: Celery, ids: Collection[str]) -> dict[str, tuple[datetime, str]]:
    """When SQLite or PostgreSQL stored the failures of these ids, and their errors, for those that have one.

    Raises `ResultStoreError`.
    """
    if not ids:
        return {}
    from proj.results import ageing  # here, since it imports SQLAlchemy

    try:
        found = ageing.failures(app.backend, ids)
        return {task_id: (done.replace(tzinfo=UTC), error) for task_id, (done, error) in found.items()}
    except Exception as error:
        raise store_error(app, error) from error


def forget_failures(app: Celery, until: dict[str, datetime]) -> None:
    """Delete the failures of these ids that were stored before these times, in SQLite or PostgreSQL.

    Raises `ResultStoreError`.
    """
    from proj.results import ageing

    times = {task_id: moment.astimezone(UTC).replace(tzinfo=None) for task_id, moment in until.items()}
    try:
        ageing.forget_failures(app.backend, times)
    except Exception as error:
        raise store_error(app, error, "written") from error


def wait(
    app: Celery,
    task_id: str,
    timeout: float | None = None,
    on_interval: Callable[[], None] | None = None,
    failed_before: object = None,
    began: float | None = None,
) -> Outcome:
    """Wait until the task has ended, and return its outcome; `on_interval` is called between two queries.

    `failed_before` is the `failure` that was stored before the message was published; it is ignored. Raises
    `NoResultYet` when the task has not ended within `timeout` seconds after `began` (`time.monotonic`), by
    default the time of the call, and `ResultStoreError`. An end that is stored by then is returned.
    """
    until = (time.monotonic() if began is None else began) + (math.inf if timeout is None else timeout)

    def left() -> float | None:
        return None if timeout is None else max(0, until - time.monotonic())

    if failed_before is not None:
        for _ in polling.turns(left()):
            if failure(app, task_id) != failed_before:
                break
            if on_interval:
                on_interval()
        else:
            raise _not_yet(task_id, timeout)
    result = app.AsyncResult(task_id)
    try:
        # As `AsyncResult.get` does, which would call `on_interval` only once, as the callback of a promise.
        app.backend.add_pending_result(result)
        app.backend.wait_for_pending(result, timeout=left(), on_interval=on_interval, propagate=False)
        fields = ("result", "traceback", "name", "worker", "date_done")
        found = {name: getattr(result, name) for name in fields}
        return _outcome(task_id, {"status": result.state, **found})
    except celery.exceptions.TimeoutError:
        raise _not_yet(task_id, timeout) from None
    except Exception as error:
        raise store_error(app, error) from error


def _not_yet(task_id: str, timeout: float | None) -> NoResultYet:
    return NoResultYet(
        f"message {task_id} is accepted, but has no result after {timeout:g} s",
        f"is a worker running? Look again with: proj result {task_id}",
    )


def _outcome(task_id: str, meta: dict[str, Any]) -> Outcome:
    value, stored = meta["result"], stored_at(meta)
    failed = isinstance(value, BaseException)
    return Outcome(
        id=task_id,
        task=meta.get("name"),
        state=meta["status"],
        result=None if failed else value,
        error=stored_exception.words(value) if failed else None,
        traceback=meta.get("traceback"),
        worker=meta.get("worker"),
        finished=f"{stored:%FT%TZ}" if stored else None,
    )
