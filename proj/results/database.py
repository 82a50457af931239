"""A database as result store: shared by many workers, perhaps new or down, and used with timeouts only."""

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

#: Seconds for one attempt to connect to a database server, and seconds for its machine to acknowledge what
#: was sent (TCP).
CONNECT_TIMEOUT: Final = 5

#: Seconds for one operation of a database server before its connection is cut. It takes milliseconds; a
#: server that hangs would otherwise hold the slot without limit.
ANSWER_TIMEOUT: Final = 10

#: Seconds that SQLite waits for another writer in one attempt, before it reports "database is locked". A
#: write takes milliseconds.
SQLITE_BUSY_TIMEOUT: Final = 5

#: Databases in which one statement stores a state if it may replace the stored one. In others a state is read
#: and then written, as Celery does.
_UPSERTS: Final = {
    "sqlite": "sqlalchemy.dialects.sqlite",
    "postgresql": "sqlalchemy.dialects.postgresql",
}

#: Seconds between two attempts to change the mode of an SQLite file that another process is opening.
LOCK_INTERVAL: Final = 0.02


class Database(Patient):
    """Celery's database backend, which detects a database that is down or new at once, and recovers."""

    url: str
    engine_options: dict[str, Any]
    session_manager: Any
    task_cls: Any

    def ResultSession(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802  as Celery names it
        if not self.session_manager.prepared:
            # A database that is down raises here; Celery would look for its tables ten times an attempt.
            self.session_manager.get_engine(self.url, **self.engine_options).connect().close()
        return super().ResultSession(*args, **kwargs)  # type: ignore[misc]

    def on_backend_retryable_error(self, exc: Exception) -> None:
        super().on_backend_retryable_error(exc)  # type: ignore[misc]
        self.session_manager.prepared = False  # the database may come back as a new one without tables

    # upstream: not reported; remove when Celery stores a state, by its attempt, in one statement
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
        """One statement that stores the state unless the stored one is to be kept."""
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

    # upstream: not reported; remove when Celery stores a state, by its attempt, in one statement
    def _get_task_meta_for(self, task_id: str) -> Any:
        meta = super()._get_task_meta_for(task_id)  # type: ignore[misc]
        if isinstance(meta.get("retries"), int):
            meta["retries"] = finality.retries_of(meta["retries"])
        return meta

    # upstream: celery#3025; remove when Celery unpickles no stored result that is not JSON
    def _decode_stored_result(self, payload: Any) -> Any:
        # Celery would unpickle what is not JSON, for results of its older versions, and so execute code from
        # a row: https://github.com/celery/celery/issues/3025. There are no such rows here.
        return None if payload is None else self.decode(payload)  # type: ignore[attr-defined]


def _fitting(value: Any, length: int | None = None) -> Any:
    """The value as a column can store it: text is escaped where necessary, and cut to the column's length.

    No database stores lone surrogates, as in a file name that is not UTF-8, and PostgreSQL no NUL. A routing
    key may have 255 bytes, and Celery's column for it 155 characters.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:length]
    return value


def tune_engine(engine: Any) -> None:
    """Let the workers of one machine share an SQLite file, and bound all waits for a PostgreSQL server.

    With a write-ahead log readers do not wait for writers. `synchronous=NORMAL` survives a crash of the
    program; a crash of the machine may lose the last results, never the tasks
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

    # Kept by connection, since SQLAlchemy discards the record of a new connection that fails.
    bounds: dict[Any, ExitStack] = {}

    def end(connection: Any, *_: Any) -> None:
        bounds.pop(connection, ExitStack()).close()

    def begin(connection: Any, *_: Any) -> None:
        end(connection)
        bounds[connection] = bound = ExitStack()
        bound.enter_context(_bounded(connection))

    # Before all others: SQLAlchemy queries a new connection long before the checkout.
    event.listen(engine, "connect", begin, insert=True)
    event.listen(engine, "checkout", begin)
    event.listen(engine, "checkin", end)

    # There is no event for a ping before use, nor for the close of a new connection that fails.
    ping, close = engine.dialect.do_ping, engine.dialect.do_close

    def bounded_ping(connection: Any) -> bool:
        with _bounded(connection):
            return bool(ping(connection))

    def ending_close(connection: Any) -> None:
        end(connection)
        close(connection)

    # upstream: not reported; remove when SQLAlchemy has events for each ping and each close
    engine.dialect.do_ping, engine.dialect.do_close = bounded_ping, ending_close


@contextmanager
def _bounded(connection: Any) -> Iterator[None]:
    """Cut the connection when the block takes more than `ANSWER_TIMEOUT`, so that whatever waits on it fails.

    No option of libpq bounds the wait for an answer: the hanging server itself would have to apply
    `statement_timeout`, and TCP only notices that a machine is gone.
    """
    # A descriptor of our own: by then, the driver's number may belong to another file.
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
        # Results written to a file that was deleted or replaced would be lost.
        if _identity(record.info["file"]) != record.info["identity"]:
            raise DisconnectionError("the database file was replaced")


def _write_ahead(connection: Any) -> None:
    # When several processes open a new file at once, one changes its mode. For the others SQLite reports at
    # once that it is locked, and ignores the timeout.
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
    """The path of the database file; empty for a database in memory."""
    # As bytes: SQLite's driver cannot read text that is not UTF-8, which a file name may be.
    found = connection.execute("SELECT CAST(file AS BLOB) FROM pragma_database_list WHERE name = 'main'")
    return os.fsdecode(found.fetchone()[0] or b"")


def _identity(path: str) -> tuple[int, int] | None:
    """What distinguishes a file from another one at the same path; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:  # such as for a database in memory, which has no path
        return None
    return found.st_dev, found.st_ino
