"""A database as result store: shared by many workers, perhaps new or down, and used with timeouts only."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from celery import states
from kombu.utils.encoding import ensure_bytes
from kombu.utils.json import JSONEncoder

from proj.results import engines, finality, statements
from proj.results.patience import Patient

_encode_json: Final = JSONEncoder().encode


class Database(Patient):
    """Celery's database backend, which detects a database that is down or new at once, and recovers.

    It does with one statement what Celery's does with SQLAlchemy's ORM, which takes most of the time of a
    short task.
    """

    url: str
    engine_options: dict[str, Any]
    serializer: str
    compression: str | None
    current_task_children: Callable[[Any], list[Any]]
    task_cls: Any
    taskset_cls: Any

    def ResultSession(self, *_: Any, **__: Any) -> Any:  # noqa: N802  as Celery names it
        return self.kept().session()

    def on_backend_retryable_error(self, exc: Exception) -> None:
        self.kept().forget()

    def encode(self, data: Any) -> Any:
        """As Celery does, which takes three times as long for JSON: it makes an encoder each time."""
        if self.serializer != "json" or self.compression:
            return super().encode(data)  # type: ignore[misc]
        try:
            return _encode_json(data)
        except Exception:
            return super().encode(data)  # type: ignore[misc]  # raises it again, with Celery's words

    def kept(self) -> engines.Kept:
        return engines.kept(self.url, self.engine_options)

    # upstream: not reported; remove when Celery stores a state, by its attempt, in one statement
    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, **more: Any
    ) -> Any:
        kept = self.kept()
        upsert = statements.upsert(kept.engine.dialect, self.task_cls.__table__, state)
        if upsert is None:
            traceback = traceback and _fitting(traceback)
            return super()._store_result(task_id, result, state, traceback, **more)  # type: ignore[misc]
        kept.execute(upsert, self._row(task_id, result, state, traceback, more.get("request")))
        return None

    def _row(
        self, task_id: str, result: Any, state: str, traceback: str | None, request: Any
    ) -> dict[str, Any]:
        """The values of the columns, equal to Celery's, which take twice the time; and the attempt."""
        attempt = finality.attempt_of(request)
        row: dict[str, Any] = {
            "task_id": task_id,
            "status": state,
            "result": self._encoded(result),
            "traceback": traceback,
            # Without its zone: PostgreSQL would store the time of its own.
            "date_done": datetime.now(UTC).replace(tzinfo=None) if state in states.READY_STATES else None,
            "children": None,
            "name": None,
            "args": None,
            "kwargs": None,
            "worker": None,
            "queue": None,
            "retries": None,
            "stamps": None,
            "attempt": attempt,
        }
        if children := self.current_task_children(request):
            row["children"] = self._encoded(children)
        if request is not None:
            delivery_info = getattr(request, "delivery_info", None) or {}
            row |= {
                "name": getattr(request, "task", None),
                "args": self._encoded(getattr(request, "args", None)),
                "kwargs": self._encoded(getattr(request, "kwargs", None)),
                "worker": getattr(request, "hostname", None),
                "queue": delivery_info.get("routing_key"),
                "retries": attempt,
            }
            if (stamps := getattr(request, "stamps", None)) and (names := request.stamped_headers):
                stamps = {name: stamps[name] for name in names if name in stamps}
                row["stamps"] = self._encoded({"stamped_headers": names, "stamps": stamps})
        lengths = _lengths(self.task_cls.__table__)
        for name, value in row.items():
            if isinstance(value, str):
                row[name] = _fitting(value, lengths[name])
        return row

    def _encoded(self, value: Any) -> bytes:
        encoded: bytes = ensure_bytes(self.encode(value))
        return encoded

    # upstream: not reported; remove when Celery stores a state, by its attempt, in one statement
    def _query_task(self, session: Any, task_id: str, **more: Any) -> Any:
        if more:  # to write it, in a database without our statement
            return super()._query_task(session, task_id, **more)  # type: ignore[misc]
        found = session.execute(statements.select(self.task_cls.__table__), {"wanted": task_id})
        row = found.mappings().first()
        return None if row is None else _Row(row)

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


class _Row:
    """What Celery's backend takes for a row of its table, without the ORM."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "id"}


@cache
def _lengths(table: Any) -> dict[str, int | None]:
    """The characters that each column can hold, if they are limited."""
    return {column.name: getattr(column.type, "length", None) for column in table.columns}


def _fitting(text: str, length: int | None = None) -> str:
    """The text as a column can store it: escaped where necessary, and cut to the column's length.

    No database stores lone surrogates, as in a file name that is not UTF-8, and PostgreSQL no NUL. A routing
    key may have 255 bytes, and Celery's column for it 155 characters.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:length]
