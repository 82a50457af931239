"""What a driver is given of a statement that is made once is what SQLAlchemy gives it."""

from datetime import datetime
from typing import Any

import pytest
from celery.backends.database.models import TaskExtended
from sqlalchemy import bindparam, create_engine, event
from sqlalchemy.dialects import sqlite

from proj.results.statements import Statement

TABLE: Any = TaskExtended.__table__

#: Of each column but the number, which the database gives; and of a parameter that is no column.
VALUES: dict[str, Any] = {
    "task_id": "it",
    "status": "FAILURE",
    "result": b"null",
    "date_done": datetime(2026, 1, 2, 3, 4, 5, 6),
    "traceback": None,
    "children": b"[]",
    "name": "t",
    "args": b"[1]",
    "kwargs": None,
    "worker": "w@host",
    "retries": 3,
    "queue": "q",
    "stamps": None,
    "attempt": 4,
}


@pytest.mark.parametrize("paramstyle", ["qmark", "named"])
def test_driver_gets_what_sqlalchemy_gives_it(paramstyle: Any) -> None:
    """By order or by name; times and bytes are converted, and constants are there."""
    engine = create_engine("sqlite://", paramstyle=paramstyle)
    TABLE.create(engine)
    insert = sqlite.insert(TABLE).on_conflict_do_update(
        index_elements=[TABLE.c.task_id],
        set_={"status": "again"},
        where=(TABLE.c.retries <= bindparam("attempt")) & (TABLE.c.status != "SUCCESS"),
    )
    given: list[Any] = []

    @event.listens_for(engine, "before_cursor_execute")
    def keep(_connection: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        given.append((sql, parameters))

    with engine.connect() as connection:
        connection.execute(insert, VALUES)
    engine.dispose()
    made = Statement(insert, engine.dialect, [column for column in TABLE.columns if column.name != "id"])

    ((sql, parameters),) = given
    assert made.sql == sql
    assert _comparable(made.parameters(VALUES)) == _comparable(parameters)


def _comparable(parameters: Any) -> Any:
    if isinstance(parameters, dict):
        return {name: _comparable([value]) for name, value in parameters.items()}
    return [bytes(value) if isinstance(value, memoryview) else value for value in parameters]
