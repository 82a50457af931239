"""The statements with which a database stores and reads states, each made once for a database's driver."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, Final

from celery import states

from proj.results import finality

#: Databases in which one statement stores a state if it may replace the stored one, and is a transaction of
#: its own. In others a state is read and then written, as Celery does.
UPSERTS: Final = {
    "sqlite": "sqlalchemy.dialects.sqlite",
    "postgresql": "sqlalchemy.dialects.postgresql",
}


class Statement:
    """The SQL of a driver, and its parameters.

    To execute it takes half of the time of SQLAlchemy's own way, which makes a context, a result and a
    transaction for each.
    """

    def __init__(self, statement: Any, dialect: Any, columns: list[Any]) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=[column.name for column in columns])
        self.sql = str(compiled)
        self._constants: dict[str, Any] = compiled.params
        self._order: list[str] | None = compiled.positiontup
        converters = {
            column.name: column.type.dialect_impl(dialect).bind_processor(dialect) for column in columns
        }
        self._converters = {name: convert for name, convert in converters.items() if convert}

    def parameters(self, values: Mapping[str, Any]) -> list[Any] | dict[str, Any]:
        """As the driver wants them, of the values by the names of columns and of other parameters."""
        found = {**self._constants, **values}
        for name, convert in self._converters.items():
            found[name] = convert(found[name])
        return found if self._order is None else [found[name] for name in self._order]


def insert(dialect: Any, table: Any) -> Any:
    """An insert that may update the row that is there instead, for one of `UPSERTS`."""
    return import_module(UPSERTS[dialect.name]).insert(table)


def upsert(dialect: Any, table: Any, state: str) -> Statement | None:
    """Stores a state and the values of its row, by its `attempt`, unless the stored one is to be kept.

    None in other databases.
    """
    if state in states.READY_STATES:
        return _upsert_like(dialect, table, states.SUCCESS if state == states.SUCCESS else states.FAILURE)
    return _upsert_like(dialect, table, states.STARTED)


@cache
def _upsert_like(dialect: Any, table: Any, state: str) -> Statement | None:
    from sqlalchemy import Integer, bindparam, func

    if dialect.name not in UPSERTS:
        return None
    columns = [column for column in table.columns if column.name != "id"]
    statement = insert(dialect, table)
    new = {column.name: statement.excluded[column.name] for column in columns}
    new["stamps"] = func.coalesce(new["stamps"], table.c.stamps)
    attempt, stored_attempt = bindparam("attempt", type_=Integer), func.coalesce(table.c.retries, 0)
    # `inline`: nobody wants the number of the row.
    statement = statement.inline().on_conflict_do_update(
        index_elements=[table.c.task_id],
        set_={name: value for name, value in new.items() if name != "task_id"},
        where=finality.may_replace(state, attempt, table.c.status, stored_attempt),
    )
    return Statement(statement, dialect, columns)


@cache
def select(table: Any) -> Any:
    """The row of the task whose id is `wanted`."""
    from sqlalchemy import bindparam, select

    return select(table).where(table.c.task_id == bindparam("wanted"))
