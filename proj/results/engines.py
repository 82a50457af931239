"""One SQLAlchemy engine a process for each database, tuned and bounded; a forked child makes its own."""

import os
import select
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from typing import Any, Final, Self

from proj.deadline import CutAfter
from proj.results import forking
from proj.results.statements import UPSERTS, Statement

#: Seconds for one attempt to connect to a database server, and seconds for its machine to acknowledge what
#: was sent (TCP).
CONNECT_TIMEOUT: Final = 5

#: Seconds for one operation of a database server before its connection is cut. It takes milliseconds; a
#: server that hangs would otherwise hold the slot without limit.
ANSWER_TIMEOUT: Final = 10

#: Seconds that SQLite waits for another writer in one attempt, before it reports "database is locked". A
#: write takes milliseconds.
SQLITE_BUSY_TIMEOUT: Final = 5

#: Seconds between two attempts to change the mode of an SQLite file that another process is opening.
LOCK_INTERVAL: Final = 0.02

#: Connections that a process keeps; more are open while more of its threads use the database.
_KEPT_CONNECTIONS: Final = 8

#: The engines of this process, and those of its parent: these stay, since closing their connections would
#: close them for the parent too.
_engines: Final[dict[tuple[int, str], "Kept"]] = {}


def kept(url: str, options: dict[str, Any]) -> "Kept":
    """The engine of this process for a database; Celery would make one for each operation, in 5 ms."""
    key = os.getpid(), url
    # Two threads may make one at the same time; both get the same.
    return _engines.get(key) or _engines.setdefault(key, Kept(url, options))


class Kept:
    """An engine whose tables are there, and each use of which is bounded."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        from sqlalchemy import QueuePool, create_engine, make_url

        dialect: Any = make_url(url).get_dialect()
        is_psycopg = dialect.driver.startswith("psycopg")
        if dialect.name in UPSERTS:
            options = options | {"isolation_level": "AUTOCOMMIT"}  # one statement is one transaction
        if dialect.name == "sqlite" or is_psycopg:
            # `checkout` below looks at a connection before its use.
            options = options | {"pool_pre_ping": False}
        has_pool = issubclass(dialect.get_pool_class(make_url(url)), QueuePool)
        if has_pool:
            # Without an end: a thread would wait for a connection, or fail.
            options = options | {"pool_size": _KEPT_CONNECTIONS, "max_overflow": -1, "pool_use_lifo": True}
        self.engine: Any = create_engine(url, **options)
        self._uses = threading.local()
        #: Whether Celery's tables are there, as far as is known.
        self._is_ready = False
        #: A database of SQLite in memory has no lock, and would be gone with its connection.
        self._is_file = dialect.name == "sqlite" and has_pool
        if self._is_file:
            forking.close_before_forks(self.engine)
        if dialect.name == "sqlite":
            _tune_sqlite(self.engine)
        elif is_psycopg:
            _tune_postgresql(self.engine, self._uses)

    @contextmanager
    def use(self) -> Iterator[Any]:
        """A connection; tables that are missing are made first."""
        with self._bounded():
            self._prepare()
            with self.engine.connect() as connection:
                yield connection

    def execute(self, statement: Statement, values: Mapping[str, Any]) -> None:
        """Execute a statement that returns nothing; tables that are missing are made first.

        Raises SQLAlchemy's errors.
        """
        try:
            with self._bounded():
                self._prepare()
                self._execute(statement.sql, statement.parameters(values))
        except self.engine.dialect.loaded_dbapi.Error as error:
            from sqlalchemy.exc import DatabaseError

            raise DatabaseError(statement.sql, None, error) from error

    def _execute(self, sql: str, parameters: Any) -> None:
        """By the driver alone. Raises its errors."""
        connection = self.engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(sql, parameters)
            cursor.close()
        except BaseException as error:
            connection.invalidate(error)  # it may be broken, or in the middle of an answer
            raise
        connection.close()

    def session(self) -> Any:
        """A session as Celery's own, for what it does seldom, and to read a state."""
        with ExitStack() as bound:
            bound.enter_context(self._bounded())
            self._prepare()
            kept = bound.pop_all()
        return _bounded_session()(self.engine, kept)

    def _bounded(self) -> AbstractContextManager[None]:
        """Around each use. SQLite bounds its waits itself."""
        return forking.using() if self._is_file else self._cut_when_late()

    @contextmanager
    def _cut_when_late(self) -> Iterator[None]:
        with _Use() as use, CutAfter(ANSWER_TIMEOUT, use.cut):
            outer = getattr(self._uses, "current", None)
            self._uses.current = use
            try:
                yield
            finally:
                self._uses.current = outer

    def _prepare(self) -> None:
        """Make Celery's tables where they are missing."""
        if not self._is_ready:
            from celery.backends.database.session import SessionManager

            # A database that is down raises here; Celery would look for its tables ten times an attempt.
            self.engine.connect().close()
            SessionManager().prepare_models(self.engine)
            self._is_ready = True

    def forget(self) -> None:
        """Connect anew, and look for the tables: the database may come back as a new one."""
        self._is_ready = False
        self.engine.dispose()


@cache
def _bounded_session() -> type[Any]:
    """The class, made once: SQLAlchemy prepares each for its events, which takes as long as a query."""
    from sqlalchemy.orm import Session

    class Bounded(Session):
        def __init__(self, engine: Any, bound: ExitStack) -> None:
            super().__init__(engine)
            self._bound = bound

        def close(self) -> None:
            super().close()
            self._bound.close()

    return Bounded


class _Use:
    """One use of a connection, which can be cut so that whatever waits on it fails.

    No option of libpq bounds the wait for an answer: the hanging server itself would have to apply
    `statement_timeout`, and TCP only notices that a machine is gone.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._until = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket:
            self._socket.close()

    def begin(self, descriptor: int) -> None:
        """Give the connection of this descriptor its time; the one before it is not used any more."""
        self.__exit__()
        self._until = time.monotonic() + ANSWER_TIMEOUT
        # A descriptor of our own: by then, the driver's number may belong to another file.
        self._socket = socket.socket(fileno=os.dup(descriptor))

    def cut(self) -> None:
        if self._socket and time.monotonic() >= self._until:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _tune_postgresql(engine: Any, uses: threading.local) -> None:
    """Bound all waits for a PostgreSQL server."""
    from sqlalchemy import event
    from sqlalchemy.exc import DisconnectionError

    @event.listens_for(engine, "do_connect")
    def before_connect(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:
        options.setdefault("connect_timeout", CONNECT_TIMEOUT)
        options.setdefault("tcp_user_timeout", CONNECT_TIMEOUT * 1000)

    def begin(connection: Any, *_: Any) -> None:
        if use := getattr(uses, "current", None):
            use.begin(connection.fileno())

    def before_use(connection: Any, *_: Any) -> None:
        # A server that restarted has closed it. To ask the server would take as long as the use itself.
        if connection.closed or _has_input(connection.fileno()):
            raise DisconnectionError("the server has closed the connection")
        begin(connection)

    # Before all others: SQLAlchemy queries a new connection long before the checkout.
    event.listen(engine, "connect", begin, insert=True)
    event.listen(engine, "checkout", before_use)


def _has_input(descriptor: int) -> bool:
    poll = select.poll()  # unlike `select`, for any descriptor
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _tune_sqlite(engine: Any) -> None:
    """Let the workers of one machine share an SQLite file.

    With a write-ahead log readers do not wait for writers. `synchronous=NORMAL` survives a crash of the
    program; a crash of the machine may lose the last results, never the tasks
    (https://www.sqlite.org/pragma.html#pragma_synchronous).
    """
    from sqlalchemy import event
    from sqlalchemy.exc import DisconnectionError

    @event.listens_for(engine, "connect")
    def after_connect(connection: Any, record: Any) -> None:
        try:
            connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT * 1000}")
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            record.info["file"] = path = _path_of(connection)
            record.info["identity"] = _identity(path)
        except BaseException:
            connection.close()  # or the file stays open until the error is forgotten
            raise

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
