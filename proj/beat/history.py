"""Which run of each entry was enqueued last, in the result store, so that all beats share it."""

import hashlib
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

from proj.enqueue.app import App
from proj.errors import ResultStoreError
from proj.results.patience import reason_of

#: The table; a row for each entry of the schedule.
TABLE: Final = "proj_beat"

#: Characters of the table's key.
MOST_CHARACTERS: Final = 255

#: Seconds without a further attempt to write, for each second that the last one took to fail: a store that
#: hangs delays runs for a fifth of the time.
_PAUSE: Final = 4


class History:
    """The due time of each entry's last run.

    A result store that is no database cannot keep it: then each beat knows only its own runs.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._is_ready = False
        #: Written, or to be written when the store is up again.
        self._unsaved: dict[str, datetime] = {}
        #: Why the last attempt to write has failed, and when the next one may be made (`time.monotonic`).
        self._failure = ""
        self._resumes = 0.0

    @property
    def is_shared(self) -> bool:
        return hasattr(self._app.backend, "ResultSession")

    def read(self, entries: Iterable[str]) -> dict[str, datetime]:
        """The times of those of the entries that have one. Raises `ResultStoreError`."""
        if not self.is_shared:
            return {}
        from sqlalchemy import select

        with self._session() as session:
            rows = session.execute(select(self._table.c.entry, self._table.c.due)).all()
        found = {key: datetime.fromtimestamp(due, UTC) for key, due in rows}
        return {entry: found[key] for entry in entries if (key := key_of(entry)) in found}

    def keep(self, entry: str, due: datetime) -> None:
        """Keep the time, to be written by `save`."""
        self._unsaved[entry] = due

    def save(self) -> None:
        """Write all times that are not written yet. A later one stays. Raises `ResultStoreError`.

        After an attempt that has taken long to fail it raises the same for a while without another one.
        """
        if not self.is_shared or not self._unsaved:
            return
        began = time.monotonic()
        if began < self._resumes:
            raise ResultStoreError(self._failure)
        try:
            with self._session() as session:
                for name, when in self._unsaved.items():
                    self._write(session, key_of(name), when.timestamp())
                session.commit()
        except ResultStoreError as error:
            now = time.monotonic()
            self._failure, self._resumes = error.message, now + _PAUSE * (now - began)
            raise
        self._unsaved.clear()

    def _write(self, session: Any, key: str, due: float) -> None:
        table = self._table
        found = session.execute(
            table.update().where(table.c.entry == key, table.c.due <= due).values(due=due)
        )
        if not found.rowcount and not session.execute(table.select().where(table.c.entry == key)).first():
            session.execute(table.insert().values(entry=key, due=due))

    @contextmanager
    def _session(self) -> Iterator[Any]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._app.backend.ResultSession() as session:
                if not self._is_ready:
                    self._table.create(session.connection(), checkfirst=True)
                    session.commit()
                    self._is_ready = True
                yield session
        except (SQLAlchemyError, OSError) as error:
            self._is_ready = False  # it may come back as a new one
            raise ResultStoreError(f"the result store does not answer: {reason_of(error)}") from error

    @cached_property
    def _table(self) -> Any:
        from sqlalchemy import Column, Float, MetaData, String, Table

        return Table(
            TABLE,
            MetaData(),
            Column("entry", String(MOST_CHARACTERS), primary_key=True),
            Column("due", Float(53)),
        )


def key_of(entry: str) -> str:
    """The entry's name. Of a long one, which Celery makes of a call, the beginning and a hash."""
    if len(entry) <= MOST_CHARACTERS:
        return entry
    end = hashlib.sha256(entry.encode(errors="surrogatepass")).hexdigest()
    return f"{entry[: MOST_CHARACTERS - len(end)]}{end}"
