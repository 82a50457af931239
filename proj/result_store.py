"""The result store: opened when it is used, patient when it is down, and shared by many workers.

A task is done when its result is stored, and only then is its message acknowledged. While the store is
down, a worker that has a result tries again for `STORE_PATIENCE`, which also keeps it from taking more
work. After that the task has failed, with that reason, and its message goes to the dead-letter queue.
"""

import logging
import math
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import celery.exceptions
from celery import current_task, states
from celery.app import backends
from celery.local import PromiseProxy
from celery.utils.log import get_logger

from proj import config, finality, queues, stored_exception
from proj.deadline import cut_after
from proj.errors import ConfigError, ProjError, ResultStoreError
from proj.printable import shortened

log = get_logger(__name__)

#: Seconds that a worker tries to store what a task has ended with: enough for a database server to be
#: started anew, and well below the time limits of a task, which go on meanwhile.
STORE_PATIENCE: Final = 30

#: Seconds that all else is tried, such as to read a result: somebody waits for the answer.
PATIENCE: Final = 2

#: Seconds between two attempts, at most.
ATTEMPT_INTERVAL: Final = 1

#: Seconds that one attempt may take to connect to a database server that does not answer, and seconds
#: that what was sent to it may stay without a sign of life from its machine.
CONNECT_TIMEOUT: Final = 5

#: Seconds that a database server may keep one operation waiting before its connection is cut. It takes
#: milliseconds; a server that hangs would otherwise hold the slot for as long as it likes.
ANSWER_TIMEOUT: Final = 10

#: Seconds that SQLite waits for another writer in one attempt, before it says "database is locked". A
#: write takes milliseconds.
SQLITE_BUSY_TIMEOUT: Final = 5

#: What must be stored before the message of a task is acknowledged.
_NEEDED: Final = (states.SUCCESS, states.REVOKED)

#: Databases in which one statement stores a state, if it may replace what is stored. The others do as Celery
#: does: they read, and then write.
_UPSERTS: Final = {
    "sqlite": "sqlalchemy.dialects.sqlite",
    "postgresql": "sqlalchemy.dialects.postgresql",
}

#: Seconds between two attempts to change the mode of an SQLite file that others open.
LOCK_INTERVAL: Final = 0.02


class _WhenNeeded(PromiseProxy):
    """A database backend that is made when it is first asked for something.

    To publish asks it for nothing, so a program that only enqueues pays neither for the import of
    SQLAlchemy nor for a database that is down.
    """

    #: As they are for Celery's database backend; asked for before anything is.
    thread_safe = False
    persistent = True

    def __bool__(self) -> bool:
        return True

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Do nothing, as `celery.backends.base.Backend` does."""

    def remove_pending_result(self, result: Any) -> Any:
        """Do nothing, as `celery.backends.base.SyncBackendMixin` does; every result calls it at its end."""
        return result


class _Patient:
    """What every backend class of Celery gets in addition: how long it tries, and what it does then."""

    #: Until when the operation that is under way is tried again. Each thread has a backend of its own.
    _deadline = 0.0

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Store it. Raises `BackendStoreError` for a success or a revocation that cannot be stored.

        A failure that cannot be stored is logged: its message becomes a dead letter all the same. Were
        it raised, Celery 5.7 would answer the message of a task in a pool of threads with nothing, for
        good, and end a worker with `-P solo`.
        """
        # Outside of a task, it is the worker's main process that is kept from all else. And what is to be
        # stored here may be that nothing can be stored.
        traceback = traceback and shortened(traceback, stored_exception.LONGEST_TEXT)
        patient = current_task and not isinstance(result, celery.exceptions.BackendStoreError)
        self._deadline = time.monotonic() + (STORE_PATIENCE if patient else PATIENCE)
        try:
            stored = super().store_result(task_id, result, state, traceback, *args, **kwargs)  # type: ignore[misc]
            if state in states.READY_STATES and current_task and current_task.request.id == task_id:
                current_task.request.end_is_stored = True  # perhaps by the task itself
            return stored
        except Exception as error:
            if state in _NEEDED:
                raise celery.exceptions.BackendStoreError(
                    f"the result cannot be stored: {_reason(error)}", task_id=task_id, state=state
                ) from error
            said = {"task_id": task_id, "task_name": getattr(kwargs.get("request"), "task", None)}
            log.error("State %s of task %s is not stored: %s", state, task_id, _reason(error), extra=said)
            return result

    def get_task_meta(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        """Read it. Raises `BackendGetMetaError`, which Celery expects when it looks for a stored success."""
        self._deadline = time.monotonic() + PATIENCE
        try:
            return super().get_task_meta(task_id, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if not super().exception_safe_to_retry(error):  # type: ignore[misc]
                raise  # not the store's
            raise celery.exceptions.BackendGetMetaError(_reason(error), task_id=task_id) from error

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Store the result; of a task that ignores it, the bare success, where a repeat looks for one."""
        is_ignored = not store_result or getattr(request, "ignore_result", False)
        if is_ignored and self.persistent and getattr(request, queues.REPEAT_HEADER, False):  # type: ignore[attr-defined]
            self.store_result(task_id, None, state, request=request)
        super().mark_as_done(task_id, result, request, store_result, state)  # type: ignore[misc]

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, **options: Any
    ) -> Any:
        """Store that a task is tried again; not once more when its next attempt is published."""
        if not getattr(request, "retry_is_stored", False):
            super().mark_as_retry(task_id, exc, traceback, request, **options)  # type: ignore[misc]

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        exc = stored_exception.original(exc)
        stored = super().prepare_exception(exc, serializer)  # type: ignore[misc]
        return stored_exception.with_text(stored, exc)

    def exception_to_python(self, exc: Any) -> Any:
        return stored_exception.read(exc, super().exception_to_python(exc))  # type: ignore[misc]

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Asked by Celery after each attempt."""
        return time.monotonic() < self._deadline and super().exception_safe_to_retry(exc)  # type: ignore[misc]


class _PatientDatabase(_Patient):
    """A database that is down, or new, is found out at once, and is used once it is there."""

    url: str
    engine_options: dict[str, Any]
    session_manager: Any
    task_cls: Any

    def ResultSession(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802  as Celery names it
        if not self.session_manager.prepared:
            # One that is down raises here. Celery would look for its tables ten times, in each attempt.
            self.session_manager.get_engine(self.url, **self.engine_options).connect().close()
        return super().ResultSession(*args, **kwargs)  # type: ignore[misc]

    def on_backend_retryable_error(self, exc: Exception) -> None:
        super().on_backend_retryable_error(exc)  # type: ignore[misc]
        self.session_manager.prepared = False  # the database that comes back may be a new one, with no tables

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, **more: Any
    ) -> Any:
        from celery.backends.database import session_cleanup

        if traceback:
            # No database takes half a character, as of a file's name that is no UTF-8; and PostgreSQL no NUL.
            traceback = traceback.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
        session = self.ResultSession()
        upsert = _UPSERTS.get(session.get_bind().dialect.name)
        if not upsert or "retries" not in self.task_cls.__table__.columns:
            session.close()
            return super()._store_result(task_id, result, state, traceback, **more)  # type: ignore[misc]
        with session_cleanup(session):
            session.execute(self._upsert(upsert, task_id, result, state, traceback, more.get("request")))
            session.commit()
        return None

    def _upsert(
        self, kind: str, task_id: str, result: Any, state: str, traceback: str | None, request: Any
    ) -> Any:
        """One statement that stores the state, or leaves what is stored and may not be replaced."""
        from sqlalchemy import func

        insert = import_module(kind).insert
        row = self.task_cls(task_id)
        # upstream: not reported; remove when Celery stores a state, by its attempt, in one statement
        self._update_result(row, result, state, traceback=traceback, request=request)  # type: ignore[attr-defined]
        attempt = finality.attempt_of(request)
        row.retries = None if request is None else attempt
        table = self.task_cls.__table__
        values = {column.name: getattr(row, column.name) for column in table.columns if column.name != "id"}
        kept = {"task_id"} if values["stamps"] else {"task_id", "stamps"}
        stored_attempt = func.coalesce(table.c.retries, 0)
        return (
            insert(table)
            .values(values)
            .on_conflict_do_update(
                index_elements=[table.c.task_id],
                set_={name: value for name, value in values.items() if name not in kept},
                where=finality.may_replace(state, attempt, table.c.status, stored_attempt),
            )
        )

    def _get_task_meta_for(self, task_id: str) -> Any:
        meta = super()._get_task_meta_for(task_id)  # type: ignore[misc]
        if isinstance(meta.get("retries"), int):
            meta["retries"] = finality.retries_of(meta["retries"])
        return meta

    def _decode_stored_result(self, payload: Any) -> Any:
        # Celery would unpickle what is not JSON, as its older versions wrote it, and so execute what a row
        # says: https://github.com/celery/celery/issues/3025. There are no such rows here.
        return None if payload is None else self.decode(payload)  # type: ignore[attr-defined]


def open_store(app: Any, url: str) -> Any:
    """The result backend of `url`, which is any that Celery knows; Celery calls this by its name.

    Raises `ConfigError` for a URL that names none; for a database, when that is first used.
    """

    def make() -> Any:
        try:
            kind, rest = backends.by_url(url, app.loader)
            if is_database:
                _check_database(rest)
            patient = type(kind.__name__, (_PatientDatabase if is_database else _Patient, kind), {})
            store = patient(app=app, url=rest)
        except (ImportError, AttributeError, celery.exceptions.ImproperlyConfigured) as error:
            raise _wrong_url(_reason(error), "the URL of a database begins with db+") from None
        store.max_retries = math.inf  # what ends it is the deadline
        store.max_sleep_between_retries_ms = ATTEMPT_INTERVAL * 1000
        return store

    is_database = url.startswith("db+")
    logging.getLogger("celery.backends.base").addFilter(_in_one_line)
    return _WhenNeeded(make) if is_database else make()


def _check_database(url: str) -> None:
    """Raise `ConfigError` for a URL that no database can be opened with, and make SQLite's folder."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        parsed = make_url(url)
        parsed.get_dialect().import_dbapi()
        urlsplit(url).port  # noqa: B018  as Celery reads it, for its banner
    except NoSuchModuleError:
        raise _wrong_url(
            f"SQLAlchemy has no database {url.partition(':')[0]!r}", "such as postgresql"
        ) from None
    except ImportError as error:
        raise _wrong_url(
            _reason(error), "install the driver; for PostgreSQL: pip install 'psycopg[binary]'"
        ) from None
    except (ArgumentError, ValueError):
        # Their words may hold what was taken for a port, and is a password.
        raise _wrong_url(
            "it is no URL of a database",
            "such as db+postgresql://user:password@host:5432/database, with / in a password as %2F",
        ) from None
    path = parsed.database or ":memory:"
    if parsed.drivername.startswith("sqlite") and not path.startswith((":", "file:")):
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(error) from error


def _wrong_url(reason: str, hint: str) -> ConfigError:
    return ConfigError(f"CELERY_RESULT_BACKEND cannot be used: {reason}", hint)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Say what Celery says of each attempt, without a traceback of a hundred lines."""
    if record.exc_info and str(record.msg).startswith("Failed operation"):
        record.msg, record.args = "The result store fails, trying again: %s", (_reason(record.exc_info[1]),)
        record.exc_info = None
    return True


def tune_engine(engine: Any) -> None:
    """Let the workers of one machine share an SQLite file, and no server block a worker for ever.

    With a write-ahead log readers do not wait for writers, and `synchronous=NORMAL` is safe against a
    crash of the program; a crash of the machine may lose the last results, never the tasks
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    elif engine.dialect.driver.startswith("psycopg"):
        _tune_postgresql(engine)


def _tune_postgresql(engine: Any) -> None:
    from sqlalchemy import event

    @event.listens_for(engine, "do_connect")
    def before_connect(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:
        options.setdefault("connect_timeout", CONNECT_TIMEOUT)
        options.setdefault("tcp_user_timeout", CONNECT_TIMEOUT * 1000)

    _bound_all_use(engine)


def _bound_all_use(engine: Any) -> None:
    from sqlalchemy import event

    # By connection, since SQLAlchemy forgets all else of one that fails while it is new.
    bounds: dict[Any, ExitStack] = {}

    def end(connection: Any, *_: Any) -> None:
        bounds.pop(connection, ExitStack()).close()

    def begin(connection: Any, *_: Any) -> None:
        end(connection)
        bounds[connection] = bound = ExitStack()
        bound.enter_context(_bounded(connection))

    # Before all others: SQLAlchemy asks a new connection questions of its own, long before the checkout.
    event.listen(engine, "connect", begin, insert=True)
    event.listen(engine, "checkout", begin)
    event.listen(engine, "checkin", end)

    # Neither a ping before a use nor the end of a connection that fails while it is new is told by an event.
    ping, close = engine.dialect.do_ping, engine.dialect.do_close

    def bounded_ping(connection: Any) -> bool:
        with _bounded(connection):
            return bool(ping(connection))

    def ending_close(connection: Any) -> None:
        end(connection)
        close(connection)

    engine.dialect.do_ping, engine.dialect.do_close = bounded_ping, ending_close


@contextmanager
def _bounded(connection: Any) -> Iterator[None]:
    """Cut the connection, so that whatever waits on it fails, when the block takes longer than it may.

    No option of libpq bounds the wait for an answer; `statement_timeout` is the hanging server's own, and
    for TCP its machine is alive.
    """
    # A handle of our own: the driver's number may be that of another file by then.
    with (
        socket.socket(fileno=os.dup(connection.fileno())) as sock,
        cut_after(ANSWER_TIMEOUT, partial(_cut, sock)),
    ):
        yield


def _cut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _tune_sqlite(engine: Any) -> None:
    from sqlalchemy import event
    from sqlalchemy.exc import DisconnectionError

    @event.listens_for(engine, "connect")
    def after_connect(connection: Any, record: Any) -> None:
        connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT * 1000}")
        _write_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        record.info["file"] = path = _path_of(connection)
        record.info["identity"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def before_use(_connection: Any, record: Any, _proxy: Any) -> None:
        # A file that was deleted, or replaced, would take results that nobody ever reads.
        if _identity(record.info["file"]) != record.info["identity"]:
            raise DisconnectionError("the database file is another one now")


def _write_ahead(connection: Any) -> None:
    # Of several processes that open a new file at once, one changes its mode. The others are told at once
    # that it is locked, whatever the timeout.
    deadline = time.monotonic() + SQLITE_BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(LOCK_INTERVAL)


def _path_of(connection: Any) -> str:
    """The file of the database; none for one in memory."""
    # As bytes: SQLite's driver reads no text that is not UTF-8, as a file's name may be.
    found = connection.execute("SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'")
    return os.fsdecode(found.fetchone()[0] or b"")


def _identity(path: str) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:  # as for a database in memory, which has no path
        return None
    return found.st_dev, found.st_ino


def store_error(error: Exception, verb: str = "read") -> ProjError:
    """The error in words, with the store that it is of, and no password."""
    if isinstance(error, ProjError):
        return error
    return ResultStoreError(
        f"the result store cannot be {verb}: {_reason(error)}",
        f"it is {config.load().safe_result_backend}; check CELERY_RESULT_BACKEND",
    )


def _reason(error: BaseException | None) -> str:
    """The words of the store itself, in one line."""
    while isinstance(error, celery.exceptions.BackendError) and error.__cause__:
        error = error.__cause__  # these say only that it failed
    # SQLAlchemy adds the statement, the result itself among its values, and a link.
    return " ".join(str(getattr(error, "orig", None) or error).split())
