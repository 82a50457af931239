"""Results that are old go, and only those: successes after their time, failures with their dead letters."""

import json
from typing import Any

import pytest

from tests.lib import stores
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost


#: Stores states, lets them age by days, and sweeps as a worker does.
_AGEING = """
import json
from datetime import UTC, datetime, timedelta
from celery.app.task import Context
from celery.result import GroupResult
from sqlalchemy import func, select, update
from proj import app
from proj.results import ageing
from proj.results.ageing import Ageing

backend = app.backend
table, kept = backend.task_cls.__table__, backend.kept()

def write(task_id, state, request=True):
    value = ValueError("no") if state in ("FAILURE", "REVOKED") else 1
    request = Context({"id": task_id, "task": "t", "retries": 0}) if request else None
    backend.store_result(task_id, value, state, request=request)

def age(days, of=table):
    with kept.use() as connection:
        for row in connection.execute(select(of.c.id, of.c.date_done)):
            if row.date_done:
                then = row.date_done - timedelta(days=days)
                connection.execute(update(of).where(of.c.id == row.id).values(date_done=then))

def left():
    with kept.use() as connection:
        return sorted(connection.execute(select(table.c.task_id)).scalars())

def sweep(dead=False, expires=7 * 86400):
    with kept.use() as connection:
        ageing._turns.create(connection, checkfirst=True)
        connection.execute(update(ageing._turns).values(until=0))
    return Ageing(backend, expires).turn(lambda: False, lambda: not dead)
"""


def test_what_is_old_goes_and_only_that(stored: Bundle) -> None:
    """Each state by its rule: what has no end stays, and a revocation whose message has not come."""
    found: Any = stored.python(
        _AGEING
        + """
for state in ("SUCCESS", "FAILURE", "REVOKED", "RETRY", "STARTED"):
    write("old " + state, state)
write("old command", "REVOKED", request=False)
GroupResult("old group", []).save(backend)
age(8)
age(8, backend.taskset_cls.__table__)
for state in ("SUCCESS", "FAILURE", "REVOKED"):
    write("new " + state, state)
GroupResult("new group", []).save(backend)
found = [sweep(dead=True), left(), sweep(dead=False), left()]
age(9 * 365)
found += [sweep(dead=True), left()]
found.append([backend.restore_group(name) is not None for name in ("old group", "new group")])
print(json.dumps(found))
"""
    )

    new = ["new FAILURE", "new REVOKED", "new SUCCESS"]
    open_ends = ["old RETRY", "old STARTED"]
    assert found == [
        3,
        [*new, "old FAILURE", *sorted([*open_ends, "old command"])],
        1,
        [*new, *sorted([*open_ends, "old command"])],
        3,
        ["new FAILURE", *open_ends],
        [False, True],
    ]


def test_user_who_may_create_no_table_deletes_old_results(bundle: Bundle, database: stores.Database) -> None:
    """As long as somebody has made them; PostgreSQL refuses `IF NOT EXISTS` too."""
    bundle.python(_AGEING + "print(sweep())")
    database.execute("ALTER SCHEMA public OWNER TO admin")
    database.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")

    refused, deleted = bundle.python(
        _AGEING
        + """
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.schema import CreateTable
try:
    with kept.use() as connection:
        connection.execute(CreateTable(ageing._turns, if_not_exists=True))
except ProgrammingError as error:
    refused = str(error.orig)
write("old", "SUCCESS")
age(8)
print(json.dumps([refused, sweep()]))
"""
    )

    assert "permission denied for schema public" in refused
    assert deleted == 1


def test_one_worker_at_a_time(stored: Bundle) -> None:
    """Of many that look at once one deletes, in steps, and no other does within a minute."""
    found: Any = stored.python(
        _AGEING
        + """
import threading
ageing.STEP, ageing._PAUSE = 10, 0
for n in range(35):
    write(f"it {n}", "SUCCESS")
age(8)
sweep(expires=10**9)
with kept.use() as connection:
    connection.execute(update(ageing._turns).values(until=0))
turns = []
def look():
    turns.append(Ageing(backend, 7 * 86400).turn(lambda: False, lambda: True))
threads = [threading.Thread(target=look) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
look()
with kept.use() as connection:  # of a worker whose clock was wrong
    connection.execute(update(ageing._turns).values(until=1e12))
write("last", "SUCCESS")
age(8)
look()
print(json.dumps([sorted(turns), left()]))
"""
    )

    assert found == [[0] * 8 + [1, 35], []]


def test_sqlite_file_does_not_grow_without_end(bundle: Bundle) -> None:
    """What was deleted makes room for what comes."""
    sizes: Any = bundle.python(
        _AGEING
        + """
import os
path = kept.engine.url.database
sizes = []
for lap in range(6):
    for n in range(200):
        backend.store_result(f"{lap} {n}", "x" * 2000, "SUCCESS")
    age(8)
    sweep()
    with kept.use() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    sizes.append(os.path.getsize(path))
print(json.dumps([sizes, left()]))
"""
    )

    (first, *_, last), left = sizes
    assert last <= first * 1.1
    assert left == []


def _is_gone(bundle: Bundle, task_id: str) -> None:
    eventually(f"the result of {task_id} is gone", lambda: task_id not in stores.states(bundle))
    assert stores.outcome(bundle, task_id)["state"] == "PENDING"


@pytest.mark.celery_docs("Periodic Tasks: backend_cleanup")
def test_worker_deletes_old_results(bundle: Bundle) -> None:
    """A success goes by itself, and a repeat of its id is executed again; a failure stays with its letter."""
    bundle.switch_off("worker/ageing.py", "INTERVAL: Final = 30.0", "INTERVAL: Final = 0.1")
    bundle.switch_off("results/ageing.py", "INTERVAL: Final = 60", "INTERVAL: Final = 0.1")
    bundle.switch_off("results/ageing.py", "MARGIN: Final = 60", "MARGIN: Final = 0")
    bundle.env["PROJ_RESULT_EXPIRES"] = "1"
    bundle.add_task("""
        @app.task(name="proj.tasks.failing")
        def failing():
            raise ValueError("no")
    """)
    worker = stores.worker(bundle)
    bundle.enqueue("task", "proj.tasks.failing", "--id", "failed")
    bundle.enqueue("add", "1", "2", "--id", "it")
    eventually("its result is stored", lambda: len(worker.lines("succeeded in")) == 1)
    _is_gone(bundle, "it")
    assert "no result for it (kept for 1 second)" in bundle.proj("result", "it").stderr

    bundle.enqueue("add", "1", "2", "--id", "it")
    eventually("that of the repeat is stored", lambda: len(worker.lines("succeeded in")) == 2)

    mend = stores.garbage(bundle)
    try:
        worker.says("Old results cannot be deleted: ")
    finally:
        mend()
    bundle.enqueue("task", "proj.tasks.failing", "--id", "failed again")
    eventually("it is dead", lambda: bundle.depth("proj.dead") == 2)
    bundle.enqueue("add", "1", "2", "--id", "last")
    eventually("its result is stored too", lambda: len(worker.lines("succeeded in")) == 3)
    _is_gone(bundle, "last")
    assert stores.outcome(bundle, "failed again")["state"] == "FAILURE"
    dropped = bundle.proj("dead", "drop", "--all", "--yes")
    assert dropped.returncode == 0, dropped.stderr
    _is_gone(bundle, "failed again")


def test_drop_deletes_the_failure_that_it_showed(stored: Bundle) -> None:
    """Not one of a later life of the message, whose own dead letter is still to come."""
    stored.add_task("""
        @app.task(name="proj.tasks.failing")
        def failing():
            raise ValueError("no")
    """)
    worker = stores.worker(stored)
    for task_id in ("dropped", "redriven"):
        stored.enqueue("task", "proj.tasks.failing", "--id", task_id)
    eventually("both are dead", lambda: stored.depth("proj.dead") == 2)
    stored.python("""
import json
from datetime import timedelta
from sqlalchemy import update
from proj import app
table = app.backend.task_cls.__table__
done = app.backend.get_task_meta("redriven")["date_done"] + timedelta(hours=1)
with app.backend.kept().use() as connection:
    connection.execute(update(table).where(table.c.task_id == "redriven").values(date_done=done))
print(json.dumps(str(done)))
""")

    worker.stop()
    done = stored.proj("dead", "drop", "--all", "--yes")

    assert done.returncode == 0, done.stderr
    states = [
        json.loads(stored.proj("result", name, "--json").stdout)["state"] for name in ("dropped", "redriven")
    ]
    assert states == ["PENDING", "FAILURE"]
