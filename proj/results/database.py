"""A database as result store: many workers share it, it may be new or down, and no wait for it is endless."""

import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from typing import Any, Final

from proj.deadline import cut_after
from proj.results import finality
from proj.results.patience import Patient

#: Seconds that one attempt may take to connect to a database server that does not answer, and seconds
#: that what was sent to it may stay without a sign of life from its machine.
CONNECT_TIMEOUT: Final = 5

#: Seconds that a database server may keep one operation waiting before its connection is cut. It takes
#: milliseconds; a server that hangs would otherwise hold the slot for as long as it likes.
ANSWER_TIMEOUT: Final = 10

#: Seconds that SQLite waits for another writer in one attempt, before it says "database is locked". A
#: write takes milliseconds.
SQLITE_BUSY_TIMEOUT: Final = 5

#: Databases in which one statement stores a state, if it may replace what is stored. The others do as Celery
#: does: they read, and then write.
_UPSERTS: Final = {
    "sqlite": "sqlalchemy.dialects.sqlite",
    "postgresql": "sqlalchemy.dialects.postgresql",
}

#: Seconds between two attempts to change the mode of an SQLite file that others open.
LOCK_INTERVAL: Final = 0.02


class Database(Patient):
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

        session = self.ResultSession()
        upsert = _UPSERTS.get(session.get_bind().dialect.name)
        if not upsert or "retries" not in self.task_cls.__table__.columns:
            session.close()
            traceback = _fitting(traceback)
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
        values = {
            column.name: _fitting(getattr(row, column.name), getattr(column.type, "length", None))
            for column in table.columns
            if column.name != "id"
        }
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


def _fitting(value: Any, length: int | None = None) -> Any:
    """The value as a column takes it: a text with no half character and no NUL, and not too long for it.

    No database takes half a character, as of a file's name that is no UTF-8, and PostgreSQL no NUL. A routing
    key may have 255 bytes, and Celery's column for it has room for 155 characters.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:length]
    return value


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
