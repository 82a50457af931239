"""The result store: opened when it is used, and tuned for many workers on one machine."""

from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import celery.exceptions
from celery import states
from celery.app import backends
from celery.local import PromiseProxy
from celery.result import AsyncResult

from proj.errors import NoResultYet, ResultStoreError

#: Seconds that SQLite waits for another writer before it gives up with "database is locked".
SQLITE_BUSY_TIMEOUT: Final = 30

#: Seconds between two looks for a result. Each is a query; Celery's half a second makes short tasks wait.
POLL_INTERVAL: Final = 0.1


class _DatabaseWhenNeeded(PromiseProxy):
    """A database backend that is made when it is first asked for something.

    To publish asks it for nothing, so a program that only enqueues pays neither for the import of
    SQLAlchemy nor for a database that is down.
    """

    #: As it is for Celery's database backend; asked for before anything is.
    thread_safe = False

    def __bool__(self) -> bool:
        return True

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing, as `celery.backends.base.Backend` does."""

    def remove_pending_result(self, result: Any) -> Any:
        """Do nothing, as `celery.backends.base.SyncBackendMixin` does; every result calls it at its end."""
        return result


def open_store(app: Any, url: str) -> Any:
    """The result backend of `url`, which is any that Celery knows; Celery calls this by its name."""

    def make() -> Any:
        if url.startswith("db+sqlite:///"):
            Path(url.removeprefix("db+sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        backend, backend_url = backends.by_url(url, app.loader)
        return backend(app=app, url=backend_url)

    return _DatabaseWhenNeeded(make) if url.startswith("db+") else make()


def tune_engine(engine: Any) -> None:
    """Let the workers of one machine share an SQLite file; other databases are left as they are.

    With a write-ahead log readers do not wait for writers, and `synchronous=NORMAL` is safe against a
    crash of the program; a crash of the machine may lose the last results, never the tasks
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    if engine.dialect.name != "sqlite":
        return
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")


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


def wait(task_id: str, timeout: float | None = None) -> Outcome:
    """The outcome of this task, once it has ended.

    Raises `NoResultYet` when it has not ended within `timeout` seconds, and `ResultStoreError`.
    """
    result = _result(task_id)
    try:
        result.get(timeout=timeout, interval=POLL_INTERVAL, propagate=False)
    except celery.exceptions.TimeoutError:
        raise NoResultYet(
            f"message {task_id} is accepted, but has no result after {timeout:g} s",
            f"is a worker running? Look again with: proj result {task_id}",
        ) from None
    except Exception as error:
        raise _store_error(error) from error
    return _read(result)


def _result(task_id: str) -> AsyncResult:
    from proj import app

    return app.AsyncResult(task_id)


def _read(result: AsyncResult) -> Outcome:
    try:
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
    except Exception as error:
        raise _store_error(error) from error


def _store_error(error: Exception) -> ResultStoreError:
    # SQLAlchemy adds the statement and a link to what the database said.
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    return ResultStoreError(f"the result store cannot be read: {reason}", "check CELERY_RESULT_BACKEND")
