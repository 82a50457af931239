"""Deletes old results from a database, in small steps, by one worker at a time.

Successes go after `PROJ_RESULT_EXPIRES`, and so do revocations whose message has come. A failure explains a
dead letter: it goes when there is none any more.
"""

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from celery import states
from sqlalchemy import Column, Float, MetaData, String, Table, and_, bindparam, delete, or_, select, update
from sqlalchemy.schema import CreateTable

from proj import queues
from proj.results import statements, stored_exception
from proj.results.database import Database

#: Seconds between two looks for old results, of all workers together.
INTERVAL: Final = 60

#: Rows of one statement, which takes milliseconds: a task that ends meanwhile waits for it on SQLite.
STEP: Final = 500

#: The pause after a step, as a multiple of its duration.
_PAUSE: Final = 10

#: Seconds from now that no turn lasts: what says so was written by a machine whose clock is wrong.
_LONGEST_TURN: Final = 3600

#: Seconds that a failure is older than the look that found no dead letter, at least: the broker first has
#: to move the message.
MARGIN: Final = 60

#: Seconds of the longest delay: the message of a revocation comes by then.
_LONGEST_DELAY: Final = 2 ** len(queues.DELAY_QUEUES)

#: Whose turn it is: our own table, beside Celery's.
_turns: Final = Table(
    "proj_turns",
    MetaData(),
    Column("name", String(50), primary_key=True),
    Column("until", Float, nullable=False),
)


class Ageing:
    """What one worker deletes from its store."""

    def __init__(self, store: Database, expires: float) -> None:
        self._kept = store.kept()
        self._expires = timedelta(seconds=expires)
        self._results = store.task_cls.__table__
        self._groups = store.taskset_cls.__table__

    def turn(self, is_over: Callable[[], bool], nothing_is_dead: Callable[[], bool]) -> int:
        """Delete what is old, if no other worker does or did within `INTERVAL`; returns how many rows.

        Ends early when `is_over`. Failures are deleted when `nothing_is_dead`. Raises the store's errors.
        """
        if not self._wins():
            return 0
        now = datetime.now(UTC).replace(tzinfo=None)
        old, ids = now - self._expires, self._results.c
        done = [ids.status == states.SUCCESS, and_(ids.status == states.REVOKED, ids.name.is_not(None))]
        kinds = [
            (self._results, and_(or_(*done), ids.date_done < old)),
            (self._groups, self._groups.c.date_done < old),
        ]
        # A command that revokes an id knows no name; the message that comes then stores it.
        oldest = old - timedelta(seconds=_LONGEST_DELAY)
        kinds.append((self._results, and_(ids.status == states.REVOKED, ids.date_done < oldest)))
        if self._any_failure(settled := min(old, now - timedelta(seconds=MARGIN))) and nothing_is_dead():
            kinds.append((self._results, and_(ids.status == states.FAILURE, ids.date_done < settled)))
        return sum(self._delete(table, condition, is_over) for table, condition in kinds)

    def _wins(self) -> bool:
        """Whether this worker is the one that looks now; its clock may differ from another's."""
        now = time.time()
        is_over = or_(_turns.c.until <= now, _turns.c.until > now + _LONGEST_TURN)
        mine = (
            statements.insert(self._kept.engine.dialect, _turns)
            .values(name="ageing", until=now + INTERVAL)
            .on_conflict_do_update(index_elements=["name"], set_={"until": now + INTERVAL}, where=is_over)
        )
        with self._kept.use() as connection:
            # PostgreSQL refuses the statement to a user who may create no table, also where there is one.
            if not connection.dialect.has_table(connection, _turns.name):
                connection.execute(CreateTable(_turns, if_not_exists=True))
            # Without the option, SQLAlchemy counts no inserted rows.
            counted = connection.execution_options(preserve_rowcount=True)
            return bool(counted.execute(mine).rowcount == 1)

    def _any_failure(self, before: datetime) -> bool:
        table = self._results
        wanted = select(table.c.id).where(table.c.status == states.FAILURE, table.c.date_done < before)
        with self._kept.use() as connection:
            return connection.execute(wanted.limit(1)).first() is not None

    def _delete(self, table: Any, condition: Any, is_over: Callable[[], bool]) -> int:
        some = delete(table).where(table.c.id.in_(select(table.c.id).where(condition).limit(STEP)))
        deleted = STEP
        total = 0
        while deleted == STEP and not is_over():
            began = time.monotonic()
            with self._kept.use() as connection:
                deleted = connection.execute(some).rowcount
                mine = update(_turns).where(_turns.c.name == "ageing")
                pause = _PAUSE * (time.monotonic() - began)
                connection.execute(mine.values(until=time.time() + INTERVAL + pause))
            total += deleted
            if deleted == STEP:
                time.sleep(pause)
        return total


def failures(store: Any, ids: Collection[str]) -> dict[str, tuple[datetime, str]]:
    """Of those of these ids under which a failure is stored: when (UTC, without a zone), and its error."""
    table = store.task_cls.__table__
    columns = select(table.c.task_id, table.c.date_done, table.c.result)
    wanted = columns.where(table.c.status == states.FAILURE, table.c.task_id.in_(ids))
    with store.kept().use() as connection:
        rows = connection.execute(wanted).all()
    errors = {row.task_id: store.exception_to_python(store.decode(row.result)) for row in rows}
    return {row.task_id: (row.date_done, stored_exception.words(errors[row.task_id])) for row in rows}


def forget_failures(store: Database, until: dict[str, datetime]) -> None:
    """Delete the failures under these ids that were stored before their times (UTC, without a zone)."""
    table = store.task_cls.__table__
    one = delete(table).where(
        table.c.task_id == bindparam("wanted"),
        table.c.status == states.FAILURE,
        table.c.date_done < bindparam("until"),
    )
    with store.kept().use() as connection:
        for task_id, moment in until.items():
            connection.execute(one, {"wanted": task_id, "until": moment})
