"""How tasks ended, as the result store has it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, time
from typing import Any, Final

import celery.exceptions
from celery import states
from celery.result import AsyncResult

from proj.errors import NoResultYet
from proj.result_store import store_error

#: Seconds between two looks for a result. Each is a query; Celery's half a second makes short tasks wait.
POLL_INTERVAL: Final = 0.1


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
    def ended(self) -> bool:
        return self.state in states.READY_STATES


def outcome(task_id: str) -> Outcome:
    """What the result store holds for this id. Raises `ResultStoreError`."""
    return _read(_result(task_id))


def wait(
    task_id: str, timeout: float | None = None, on_interval: Callable[[], None] | None = None
) -> Outcome:
    """The outcome of this task, once it has ended; `on_interval` is called after each look.

    Raises `NoResultYet` when it has not ended within `timeout` seconds, and `ResultStoreError`.
    """
    result = _result(task_id)
    try:
        result.get(timeout=timeout, interval=POLL_INTERVAL, on_interval=on_interval, propagate=False)
    except celery.exceptions.TimeoutError:
        raise NoResultYet(
            f"message {task_id} is accepted, but has no result after {timeout:g} s",
            f"is a worker running? Look again with: proj result {task_id}",
        ) from None
    except Exception as error:
        raise store_error(error) from error
    return _read(result)


def to_json(value: Any) -> str:
    """The value as JSON; what Celery's JSON has beyond that, such as a date or a decimal number, as text."""
    return json.dumps(value, default=_as_text)


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _result(task_id: str) -> AsyncResult:
    from proj import app

    return app.AsyncResult(task_id)


def _read(result: AsyncResult) -> Outcome:
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
            error=f"{type(value).__name__}: {value}" if failed else None,
            traceback=result.traceback,
            worker=result.worker,
            # Stored without a zone; Celery stores UTC.
            finished=f"{result.date_done.replace(tzinfo=UTC):%FT%TZ}" if result.date_done else None,
        )
    except Exception as error:  # the store may be of any kind
        raise store_error(error) from error
