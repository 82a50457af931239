"""What is stored of a task: as it was, by many writers at once, and in a file that was deleted."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.lib import stores
from tests.lib.bundle import Bundle
from tests.lib.stores import Database
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: What JSON can hold and a store could spoil.
VALUES = [
    2**200,
    -(2**63),
    0.1,
    "Grüße, 世界 🎉\u2028\x7f\\\"'",
    "",
    None,
    True,
    [],
    {"": {"nested": [[1, {"ключ": None}], "x" * 10_000]}},
]


# --- What is stored


#: What returns, what fails and has no result, and what fails with words that are no text.
_TASKS = """
    @app.task(name="proj.tasks.echo")
    def echo(value: object) -> object:
        return value

    @app.task(name="proj.tasks.silent", ignore_result=True)
    def silent(divisor: int) -> float:
        return 1 / divisor

    @app.task(name="proj.tasks.unnamed")
    def unnamed():
        raise ValueError("no file caf\\udce9.txt\\0")
"""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def stored(
    vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Bundle]:
    """Each kind of store, with a worker that works."""
    name = f"results-{request.param}"
    with vhosts.lend(tmp_path_factory.mktemp(name)) as bundle:
        env = {}
        if request.param == "postgresql":
            Database(request.getfixturevalue("postgres"), bundle)
            url = bundle.env["CELERY_RESULT_BACKEND"]
            # The driver by its name; for whoever reads, it is the usual one.
            env = {"CELERY_RESULT_BACKEND": url.replace("postgresql", "postgresql+psycopg")}
        bundle.add_task(_TASKS)
        bundle.worker("--without-gossip", env=env)
        yield bundle


def test_values_come_back_as_they_were(stored: Bundle) -> None:
    """A result is read as the task returned it, whatever JSON can hold."""
    returned = stored.python(f"""
import json
from proj.tasks import echo
results = [echo.apply_async((value,), task_id=f"echo-{{n}}") for n, value in enumerate({VALUES!r})]
print(json.dumps([result.get(timeout=90) for result in results]))
""")

    assert returned == VALUES
    done = stored.proj("result", f"echo-{VALUES.index(None)}")
    assert done.returncode == 0, done.stderr
    assert "state     SUCCESS\nresult    null\n" in done.stdout


def test_failure_is_stored_even_of_a_task_that_ignores_results(stored: Bundle) -> None:
    """A dead letter explains itself: its exception and traceback are there, though a result never is."""
    dead = stored.depth("proj.dead") if stored.has("proj.dead") else 0
    stored.enqueue("task", "proj.tasks.silent", "1", "--id", "well")
    stored.enqueue("task", "proj.tasks.silent", "0", "--id", "badly")

    eventually("the failed one is a dead letter", lambda: stored.depth("proj.dead") == dead + 1)

    well = stores.outcome(stored, "well")
    assert (well["state"], well["result"]) == ("SUCCESS", None)
    badly = stores.outcome(stored, "badly")
    assert (badly["state"], badly["error"]) == ("FAILURE", "ZeroDivisionError: division by zero")
    assert "return 1 / divisor" in badly["traceback"]


def test_failure_that_names_what_is_no_text_is_stored(stored: Bundle) -> None:
    """Half a character, as of a file's name that is no UTF-8, or a NUL keeps no exception from its store."""
    dead = stored.depth("proj.dead") if stored.has("proj.dead") else 0
    stored.enqueue("task", "proj.tasks.unnamed", "--id", "it")

    eventually("it is a dead letter", lambda: stored.depth("proj.dead") == dead + 1)

    outcome = stores.outcome(stored, "it")
    assert outcome["error"] == "ValueError: no file caf\\udce9.txt\0"
    assert "no file caf\\udce9.txt\\x00" in outcome["traceback"]


# --- SQLite with many writers


def test_many_writers_lose_nothing(bundle: Bundle) -> None:
    """Four processes of two workers store 120 results in one new file, and none finds it locked."""
    bundle.switch_off(
        "results/engines.py", "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 60"
    )
    workers = [stores.worker(bundle, "--concurrency=2", log=f"{n}.log").ready() for n in "ab"]
    bundle.python("""
from proj.tasks import add
for n in range(120): add.delay(n, 1)
print(0)
""")

    def succeeded() -> int:
        return sum(worker.text().count(" succeeded in ") for worker in workers)

    eventually("all are done", lambda: succeeded() == 120)
    with closing(sqlite3.connect(stores.file(bundle))) as connection:
        stored = connection.execute("SELECT result FROM celery_taskmeta WHERE status = 'SUCCESS'").fetchall()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sorted(int(value) for (value,) in stored) == list(range(1, 121))
    for worker in workers:
        assert len({line.process for line in worker.lines("Result of")}) == 2, "not all had work"
        assert "database is locked" not in worker.text()
        assert "result store failed" not in worker.text()


def test_sqlite_is_tuned(bundle: Bundle) -> None:
    """Our connections write ahead, sync at checkpoints, and wait for another writer."""
    assert bundle.python("""
import json
from proj import app
session = app.backend.ResultSession()
from sqlalchemy import text
pragmas = ("journal_mode", "synchronous", "busy_timeout")
print(json.dumps([session.execute(text("PRAGMA " + name)).scalar() for name in pragmas]))
""") == ["wal", 1, 5000]


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_file_that_is_deleted_under_a_worker(bundle: Bundle, protected: bool) -> None:
    """The next result goes into a new file, and not into one that nobody can read; the control loses it."""
    if not protected:
        bundle.switch_off("results/engines.py", 'raise DisconnectionError("the database file', 'str("the')
    stores.worker(bundle)
    first = bundle.proj("enqueue", "add", "1", "2", "--id", "first", "--wait")
    assert first.stdout == "3\n", first.stderr

    stores.remove(bundle)

    timeout = "90" if protected else "2"
    done = bundle.proj("enqueue", "add", "2", "3", "--id", "second", "--wait", "--timeout", timeout)
    assert (done.returncode, done.stdout) == ((0, "5\n") if protected else (75, ""))
    assert stores.outcome(bundle, "first")["state"] == "PENDING"
    assert (bundle.depth("proj.tasks"), bundle.depth("proj.dead")) == (0, 0)
