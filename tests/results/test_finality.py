"""Ends are final: a state that is stored late replaces none that is newer, on SQLite and on PostgreSQL."""

import itertools
import json
from typing import Any

import pytest

from tests.lib.bundle import Bundle
from tests.lib.waiting import PATIENCE, eventually

pytestmark = pytest.mark.used_vhost

#: Each of them (state, redrives, retries), and what is stored after both were written, in either order.
PAIRS: list[tuple[tuple[str, int, int], tuple[str, int, int]]] = [
    (("RETRY", 0, 0), ("SUCCESS", 0, 1)),
    (("RETRY", 0, 0), ("FAILURE", 0, 1)),
    (("RETRY", 0, 0), ("RETRY", 0, 1)),
    (("FAILURE", 0, 3), ("FAILURE", 1, 0)),
    (("FAILURE", 0, 3), ("SUCCESS", 1, 0)),
    (("RETRY", 0, 3), ("RETRY", 1, 0)),
    (("STARTED", 0, 3), ("FAILURE", 1, 0)),
    (("FAILURE", 0, 1), ("SUCCESS", 0, 0)),
]

#: Stores a state as a worker does; `write` is (state, redrives, retries).
WRITE = """
import json
from celery.app.task import Context
from proj import app

def write(task_id, state, redrives, retries):
    value = ValueError("no") if state in ("RETRY", "FAILURE") else retries
    request = Context({"id": task_id, "task": "t", "retries": retries, "x-proj-redrives": redrives})
    app.backend.store_result(task_id, value, state, request=request)

def read(task_id):
    meta = app.backend.get_task_meta(task_id)
    return [meta["status"], meta["retries"]]
"""


#: A driver of PostgreSQL that is not the one that we tune, and takes its parameters by their order.
ANOTHER_DRIVER = """
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

class Another(PGDialect_psycopg):
    driver = "another"
    supports_statement_cache = True

    def __init__(self, **options):
        super().__init__(**options | {"paramstyle": "format"})

registry.register("postgresql.another", __name__, "Another")
"""


def _call(bundle: Bundle, code: str) -> Any:
    return bundle.python(WRITE + code)


# upstream: not reported; remove when Celery stores a state, by its attempt, in one statement
def test_newer_state_stands_in_either_order(stored: Bundle) -> None:
    """The later attempt's state is what is left, whoever writes first; and a success is."""
    found = _call(
        stored,
        f"""
found = []
for number, pair in enumerate({PAIRS!r}):
    for name, order in (("a", pair), ("b", pair[::-1])):
        for state in order:
            write(f"{{number}}{{name}}", *state)
        found.append(read(f"{{number}}{{name}}"))
print(json.dumps(found))
""",
    )

    assert found == [[last[0], last[2]] for _, last in PAIRS for _ in "ab"]


@pytest.mark.usefixtures("database")
def test_any_driver_commits(bundle: Bundle) -> None:
    """A state is stored by each; unless it is told not to, a driver begins a transaction."""
    url = bundle.env["CELERY_RESULT_BACKEND"]
    bundle.env["CELERY_RESULT_BACKEND"] = url.replace("postgresql:", "postgresql+another:")
    found = _call(
        bundle,
        ANOTHER_DRIVER
        + """
write("x", "FAILURE", 0, 2)
write("x", "RETRY", 0, 1)
dialect = app.backend.kept().engine.dialect
print(json.dumps([dialect.driver, dialect.positional, read("x")]))
""",
    )

    assert found == ["another", True, ["FAILURE", 2]]


def test_values_of_a_refused_state_are_not_stored(stored: Bundle) -> None:
    """The row is that of one state in whole."""
    meta = _call(
        stored,
        """
write("x", "SUCCESS", 0, 1)
write("x", "FAILURE", 0, 2)
meta = app.backend.get_task_meta("x")
print(json.dumps([meta["status"], meta["result"], meta["traceback"], meta["retries"], meta["name"]]))
""",
    )

    assert meta == ["SUCCESS", 1, None, 1, "t"]


@pytest.mark.parametrize("before", ["", "STARTED", "RETRY", "FAILURE"])
def test_revocation_is_stored_over_all_but_a_success(stored: Bundle, before: str) -> None:
    """Whoever revokes an id has no attempt of its message, and so no request to store it with."""
    assert (
        _call(
            stored,
            f"""
if {before!r}: write("x", {before!r}, 1, 1)
app.backend.mark_as_revoked("x", "revoked")
print(json.dumps(app.backend.get_task_meta("x")["status"]))
""",
        )
        == "REVOKED"
    )


def test_concurrent_writers_end_with_the_last_attempt(stored: Bundle) -> None:
    """Four writers store the states of the same new ids at once; no end is lost."""
    found = _call(
        stored,
        """
import random, threading
states = [("RETRY", 0, 0), ("RETRY", 0, 1), ("RETRY", 0, 2), ("FAILURE", 0, 3)]
turn, problems = threading.Barrier(len(states)), []

def run(number):
    try:
        for n in range(40):
            turn.wait(60)
            write(f"c{n}", *states[(number + n) % len(states)])
    except Exception as error:
        problems.append(repr(error))

threads = [threading.Thread(target=run, args=(number,)) for number in range(len(states))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([problems, [read(f"c{n}") for n in range(40)]]))
""",
    )

    assert found == [[], [["FAILURE", 3]] * 40]


def test_retry_is_stored_before_it_is_published(bundle: Bundle) -> None:
    """The next attempt may begin, and end, at once; its predecessor stores nothing after it is published."""
    bundle.add_task("""
        from celery import signals
        seen = []

        def status(task_id):
            return app.backend.get_task_meta(task_id)["status"]

        @signals.before_task_publish.connect(weak=False)
        def look(headers, **_):
            if headers["retries"]:
                seen.append(status(headers["id"]))
                app.backend.store_result(headers["id"], None, "PROBE")

        @signals.task_retry.connect(weak=False)
        def look_again(request, **_):
            seen.append(status(request.id))

        @app.task(bind=True, name="proj.tasks.once_more", max_retries=1, ignore_result=False)
        def once_more(self):
            if not self.request.retries:
                raise self.retry(exc=ConnectionError("not yet"), countdown=0)
            return seen
    """)
    bundle.worker("--concurrency=1", "--without-gossip")

    seen = bundle.python("""
import json
from proj.tasks import once_more
print(json.dumps(once_more.delay().get(timeout=90)))
""")

    assert seen == ["RETRY", "PROBE"]


def test_tasks_that_retry_at_once_all_end(stored: Bundle) -> None:
    """32 tasks that retry, on 8 slots: each ends with its last attempt, and the log has no error."""
    stored.add_task("""
        @app.task(bind=True, name="proj.tasks.again", max_retries=2)
        def again(self, end):
            if self.request.retries < 2 or not end:
                raise self.retry(exc=ConnectionError("not yet"), countdown=0)
            return end
    """)
    # All eight make the new file of SQLite.
    stored.switch_off(
        "results/engines.py", "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 60"
    )
    worker = stored.worker("--concurrency=8", "--without-gossip")
    stored.python("""
from proj.tasks import again
for n in range(32): again.apply_async((n % 2,), task_id=f"r{n}")
print(0)
""")

    def states() -> list[list[Any]]:
        found: list[list[Any]] = _call(stored, 'print(json.dumps([read(f"r{n}") for n in range(32)]))')
        return found

    eventually(
        "all have ended",
        lambda: worker.text().count(" succeeded in ") == 16 and stored.depth("proj.dead") == 16,
        patience=3 * PATIENCE,
    )
    assert states() == list(itertools.islice(itertools.cycle([["FAILURE", 2], ["SUCCESS", 2]]), 32))
    assert "is not stored" not in worker.text()
    assert "result store failed" not in worker.text()
    assert "UNIQUE" not in worker.text()


def test_long_routing_key_fits_the_store(stored: Bundle) -> None:
    """Celery's column for it has room for 155 characters, and AMQP for 255 bytes."""
    body = [[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    stored.declare()
    stored.publish(
        body,
        exchange="proj",
        routing_key=f"{'k' * 200}.proj.tasks",
        serializer="json",
        headers={"id": "it", "task": "proj.tasks.add", "lang": "py"},
        correlation_id="it",
    )
    stored.worker()

    def result() -> Any:
        return json.loads(stored.proj("result", "it", "--json").stdout)["result"]

    assert eventually("it succeeds", result) == 3
