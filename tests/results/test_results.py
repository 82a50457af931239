"""Results last, and a result store that fails loses no task: SQLite and PostgreSQL, each with its faults."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from proj.private_node.node import BrokerNode
from tests.lib import stores
from tests.lib.bundle import Bundle, Worker, eventually
from tests.lib.stores import Database, Fault

pytestmark = pytest.mark.used_vhost

#: A result of so many letters does not fit into the store of `_impatient`.
TOO_MANY = 1_000_000

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


def _worker(bundle: Bundle, *options: str, log: str = "worker.log") -> Worker:
    return bundle.worker("--without-gossip", *options, log=log)


def _outcome(bundle: Bundle, task_id: str) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(bundle.proj("result", task_id, "--json").stdout)
    return outcome


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
    node: BrokerNode, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Bundle]:
    """Each kind of store, with a worker that works."""
    name = f"results-{request.param}"
    with Bundle(node, vhost=name, folder=tmp_path_factory.mktemp(name)) as bundle:
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

    well = _outcome(stored, "well")
    assert (well["state"], well["result"]) == ("SUCCESS", None)
    badly = _outcome(stored, "badly")
    assert (badly["state"], badly["error"]) == ("FAILURE", "ZeroDivisionError: division by zero")
    assert "return 1 / divisor" in badly["traceback"]


def test_failure_that_names_what_is_no_text_is_stored(stored: Bundle) -> None:
    """Half a character, as of a file's name that is no UTF-8, or a NUL keeps no exception from its store."""
    dead = stored.depth("proj.dead") if stored.has("proj.dead") else 0
    stored.enqueue("task", "proj.tasks.unnamed", "--id", "it")

    eventually("it is a dead letter", lambda: stored.depth("proj.dead") == dead + 1)

    outcome = _outcome(stored, "it")
    assert outcome["error"] == "ValueError: no file caf\\udce9.txt\0"
    assert "no file caf\\udce9.txt\\x00" in outcome["traceback"]


# --- SQLite with many writers


def test_many_writers_lose_nothing(bundle: Bundle) -> None:
    """Four processes of two workers store 300 results in one new file, and none finds it locked."""
    bundle.switch_off(
        "results/database.py", "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 60"
    )
    workers = [_worker(bundle, "--concurrency=2", log=f"{n}.log").ready() for n in "ab"]
    bundle.python("""
from proj.tasks import add
for n in range(300): add.delay(n, 1)
print(0)
""")

    def succeeded() -> int:
        return sum(worker.text().count(" succeeded in ") for worker in workers)

    eventually("all are done", lambda: succeeded() == 300)
    with closing(sqlite3.connect(stores.file(bundle))) as connection:
        stored = connection.execute("SELECT result FROM celery_taskmeta WHERE status = 'SUCCESS'").fetchall()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sorted(int(value) for (value,) in stored) == list(range(1, 301))
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
        bundle.switch_off("results/database.py", "raise DisconnectionError", "str")
    _worker(bundle)
    first = bundle.proj("enqueue", "add", "1", "2", "--id", "first", "--wait")
    assert first.stdout == "3\n", first.stderr

    stores.remove(bundle)

    timeout = "90" if protected else "2"
    done = bundle.proj("enqueue", "add", "2", "3", "--id", "second", "--wait", "--timeout", timeout)
    assert (done.returncode, done.stdout) == ((0, "5\n") if protected else (75, ""))
    assert _outcome(bundle, "first")["state"] == "PENDING"
    assert (bundle.depth("proj.tasks"), bundle.depth("proj.dead")) == (0, 0)


# --- A store that fails when a task has ended


def _locked(bundle: Bundle) -> Callable[[], object]:
    other = sqlite3.connect(stores.file(bundle), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other.close


def _full(bundle: Bundle) -> Callable[[], object]:
    # By the limit that `_impatient` gives every connection; short results still fit.
    return lambda: None


def _stopped(database: Database) -> Callable[[], object]:
    database.server.stop()
    return database.server.start


def _without_the_right(database: Database) -> Callable[[], object]:
    database.execute("REVOKE INSERT ON ALL TABLES IN SCHEMA public FROM app")
    return lambda: database.execute("GRANT INSERT ON ALL TABLES IN SCHEMA public TO app")


def _read_only(database: Database) -> Callable[[], object]:
    # As a standby server is, which takes over from the one that the worker was connected to.
    def set_to(value: str) -> None:
        database.server.execute(f"ALTER DATABASE {database.name} SET default_transaction_read_only = {value}")
        database.server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}'"
        )

    set_to("on")
    return lambda: set_to("off")


def _impatient(bundle: Bundle) -> None:
    """Let the copy give up sooner, and have room for less."""
    bundle.switch_off("results/patience.py", "STORE_PATIENCE: Final = 30", "STORE_PATIENCE: Final = 1")
    bundle.switch_off(
        "results/database.py", "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 1"
    )
    bundle.switch_off("results/patience.py", "\nPATIENCE: Final = 2", "\nPATIENCE: Final = 0.5")
    tuned = 'connection.execute("PRAGMA synchronous = NORMAL")'
    bundle.switch_off(
        "results/database.py", tuned, f'{tuned}; connection.execute("PRAGMA max_page_count = 50")'
    )


#: A task whose result has the length that it is given.
_LETTERS = """
    @app.task(name="proj.tasks.letters")
    def letters(count: int) -> str:
        log.info("Writing %d", count)
        return "x" * count
"""


def _impatient_worker(bundle: Bundle, *options: str) -> Worker:
    _impatient(bundle)
    bundle.add_task(_LETTERS)
    return _worker(bundle, *options)


def _strike(bundle: Bundle, worker: Worker, fault: Fault, target: Any, said: str) -> str:
    """Let a task end while the store fails, in a worker that has used it before; prove that it failed.

    Returns the id of the message.
    """
    task_id = f"struck-{fault.__name__.strip('_')}"
    done = bundle.proj("enqueue", "add", "1", "2", "--wait")
    assert done.stdout == "3\n", done.stderr
    before, dead = len(worker.text()), bundle.depth("proj.dead")
    mend = fault(target)
    try:
        count = str(TOO_MANY if fault in (_full, _disk_full) else 1)
        bundle.enqueue("task", "proj.tasks.letters", count, "--id", task_id)
        eventually(f"the worker says {said!r}", lambda: said in worker.text()[before:], seen=worker.text)
        eventually(
            "the message is answered",
            lambda: bundle.depth("proj.dead") == dead + 1 or f"[{task_id}] succeeded" in worker.text(),
            seen=worker.text,
        )
    finally:
        mend()
    return task_id


def _is_kept(bundle: Bundle, worker: Worker, task_id: str) -> None:
    """The task was executed once, is a dead letter, and the worker goes on with the next."""
    dead = [message["properties"]["headers"]["id"] for message in bundle.peek("proj.dead")]
    assert dead.count(task_id) == 1
    assert [line.id for line in worker.lines("Writing")].count(task_id) == 1
    assert f"[{task_id}] succeeded" not in worker.text()
    done = bundle.proj("enqueue", "add", "2", "3", "--wait")
    assert (done.returncode, done.stdout) == (0, "5\n"), done.stderr
    assert (bundle.depth("proj.tasks"), bundle.depth("proj.dead")) == (0, len(dead))


@pytest.fixture(scope="module")
def impatient(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Worker]]:
    """A worker whose store, SQLite, is made to fail again and again."""
    with Bundle(node, vhost="results-impatient", folder=tmp_path_factory.mktemp("impatient")) as bundle:
        yield bundle, _impatient_worker(bundle)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (stores.folder_in_its_place, "unable to open database file"),
        (stores.garbage, "file is not a database"),
        (_locked, "database is locked"),
        (_full, "database or disk is full"),
    ],
)
def test_sqlite_that_fails(impatient: tuple[Bundle, Worker], fault: Fault, said: str) -> None:
    """A task whose result SQLite does not take is executed once, and its message kept in proj.dead."""
    bundle, worker = impatient

    task_id = _strike(bundle, worker, fault, bundle, said)

    _is_kept(bundle, worker, task_id)
    if fault is _full:  # what says so is short, and still fits
        assert _outcome(bundle, task_id)["error"].endswith("the result cannot be stored: " + said)


def _disk_full(bundle: Bundle) -> Callable[[], object]:
    # Too small for a large result; short ones still fit.
    return lambda: None


@pytest.mark.usefixtures("small_disk")
def test_disk_that_is_full(bundle: Bundle) -> None:
    """A task whose result the file system has no room for is executed once, and its message kept."""
    worker = _impatient_worker(bundle)

    task_id = _strike(bundle, worker, _disk_full, bundle, "database or disk is full")

    _is_kept(bundle, worker, task_id)


@pytest.mark.parametrize(
    ("pool", "faults"),
    [
        ("threads", {_stopped: "Connection refused"}),
        ("solo", {_stopped: "Connection refused"}),
        (
            "prefork",
            {
                _without_the_right: "permission denied for table celery_taskmeta",
                _read_only: "read-only transaction",
            },
        ),
    ],
)
def test_postgresql_that_fails(
    bundle: Bundle, database: Database, pool: str, faults: dict[Fault, str]
) -> None:
    """A task whose result PostgreSQL does not take is executed once, and its message kept in proj.dead."""
    worker = _impatient_worker(bundle, f"--pool={pool}")

    for fault, said in faults.items():
        task_id = _strike(bundle, worker, fault, database, said)

        _is_kept(bundle, worker, task_id)


# upstream: not reported; remove when SQLAlchemy has events for each ping and each close
@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_postgresql_that_hangs(bundle: Bundle, database: Database, protected: bool) -> None:
    """A connection that does not answer is given up for another; the control waits as long as it hangs."""
    bundle.switch_off("results/database.py", "ANSWER_TIMEOUT: Final = 10", "ANSWER_TIMEOUT: Final = 1")
    if not protected:
        bundle.switch_off("deadline.py", "timer.start()", "pass")
    worker = _worker(bundle)
    first = bundle.proj("enqueue", "add", "1", "2", "--wait")
    assert first.stdout == "3\n", first.stderr

    with database.server.frozen(database.name):
        timeout = "90" if protected else "3"
        done = bundle.proj("enqueue", "add", "2", "3", "--wait", "--timeout", timeout)
        assert (done.returncode, done.stdout) == ((0, "5\n") if protected else (75, "")), done.stderr
        eventually("it is executed", lambda: len(worker.lines("Result of")) == 2)

    eventually("its result is stored", lambda: worker.text().count(" succeeded in ") == 2)
    assert len(worker.lines("Result of")) == 2
    assert (bundle.depth("proj.tasks"), bundle.depth("proj.dead")) == (0, 0)


def test_success_that_is_lost(bundle: Bundle) -> None:
    """The control for stores that fail: with the error not raised, the task is done, and has no result."""
    bundle.switch_off("results/patience.py", "if state in _NEEDED:", "if False:")
    worker = _impatient_worker(bundle)

    task_id = _strike(bundle, worker, stores.folder_in_its_place, bundle, "unable to open database file")

    assert f"[{task_id}] succeeded" in worker.text()
    assert (bundle.depth("proj.tasks"), bundle.depth("proj.dead")) == (0, 0)
    assert _outcome(bundle, task_id)["state"] == "PENDING"


def test_worker_waits_for_its_store(bundle: Bundle, database: Database) -> None:
    """With its database down a worker starts, keeps the one result it has, and stores it later."""
    bundle.switch_off("results/patience.py", "STORE_PATIENCE: Final = 30", "STORE_PATIENCE: Final = 300")
    database.server.stop()
    try:
        worker = _worker(bundle)
        for n in "12":
            bundle.enqueue("add", n, "1", "--id", n)
        # Before that it looks for a stored success, since the ids are the caller's, and finds no store.
        eventually("a task is executed", lambda: worker.lines("Result of"))
        worker.says("The result store failed, retrying: ")
        assert [line.id for line in worker.lines("Result of")] == ["1"], "it took more work"
        active = bundle.celery("inspect", "active", f"--destination={worker.name}", "--json")
        (held,) = json.loads(active.stdout)[worker.name]
        assert (held["id"], held["acknowledged"]) == ("1", False)
    finally:
        database.server.start()

    worker.says("[2] succeeded")
    assert [_outcome(bundle, n)["result"] for n in "12"] == [2, 3]
    assert [line.id for line in worker.lines("Result of")] == ["1", "2"]
    assert bundle.depth("proj.dead") == 0


# --- Progress while the store fails


#: Reports progress of three kinds and then ends.
_TASK_WITH_PROGRESS = """
    @app.task(bind=True, name="proj.tasks.stepwise", track_started=True)
    def stepwise(self):
        for n in range(STEPS):
            self.update_state(state="PROGRESS", meta={"step": n})
            self.update_state(state="OWN", meta={"step": n})
        log.info("Reported")
        return "done"
"""

#: What the worker says of each attempt but the first.
_AGAIN = "The result store failed, retrying: "


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_progress_is_dropped_while_sqlite_fails(bundle: Bundle, protected: bool) -> None:
    """A task that reports its progress is not held, and its end is stored; the control holds it."""
    bundle.switch_off("results/patience.py", "STORE_PATIENCE: Final = 30", "STORE_PATIENCE: Final = 1")
    bundle.add_task(_TASK_WITH_PROGRESS.replace("STEPS", "50" if protected else "1"))
    if not protected:
        bundle.switch_off("results/patience.py", "if state not in _KEPT:", "if False:")
    worker = _worker(bundle)
    bundle.enqueue("add", "1", "2")
    worker.says(" succeeded in ")

    mend = stores.garbage(bundle)
    try:
        # With an id of ours, the worker would look for a stored success before it executes the task.
        task_id = bundle.proj("enqueue", "task", "proj.tasks.stepwise").stdout.strip()
        worker.says("Reported")
    finally:
        mend()

    assert (_AGAIN not in worker.text().partition("Reported")[0]) == protected
    eventually(
        "the message is answered", lambda: bundle.depth("proj.dead") or f"[{task_id}] succ" in worker.text()
    )
    said = f"Task proj.tasks.stepwise[{task_id}] dropped its state STARTED: file is not a database (no"
    assert worker.text().count(" dropped its state ") == worker.text().count(said) == protected


def test_progress_is_dropped_while_postgresql_is_stopped(bundle: Bundle, database: Database) -> None:
    """The task goes on to its end at once; its worker waits for the store with the end, and stores that."""
    bundle.switch_off("results/patience.py", "STORE_PATIENCE: Final = 30", "STORE_PATIENCE: Final = 300")
    bundle.env["PROJ_LOG_FORMAT"] = "json"
    bundle.add_task(_TASK_WITH_PROGRESS.replace("STEPS", "50"))
    worker = _worker(bundle)
    bundle.enqueue("add", "1", "2")
    worker.says('"event": "succeeded"')

    mend = _stopped(database)
    try:
        # With an id of ours, the worker would look for a stored success before it executes the task.
        task_id = bundle.proj("enqueue", "task", "proj.tasks.stepwise").stdout.strip()
        worker.says(_AGAIN)
    finally:
        mend()

    assert "Reported" in worker.text().partition(_AGAIN)[0]
    eventually("its end is stored", lambda: _outcome(bundle, task_id)["result"] == "done")
    lines = [json.loads(line) for line in worker.text().splitlines()]
    (dropped,) = [line for line in lines if line["event"] == "progress_dropped"]
    assert (dropped["level"], dropped["task_id"]) == ("WARNING", task_id)


def test_progress_is_stored_while_the_store_works(bundle: Bundle) -> None:
    """What a task reports can be read before it ends, and again once the store is back."""
    bundle.switch_off("results/patience.py", "PROGRESS_PAUSE: Final = 10", "PROGRESS_PAUSE: Final = 0")
    bundle.add_task("""
        @app.task(bind=True, name="proj.tasks.stepwise")
        def stepwise(self, gate):
            from pathlib import Path
            self.update_state(state="PROGRESS", meta=0)
            while not Path(gate).exists():
                time.sleep(0.05)
                self.update_state(state="PROGRESS", meta=1)
    """)
    worker = _worker(bundle)
    gate = bundle.folder / "gate"
    bundle.enqueue("task", "proj.tasks.stepwise", json.dumps(str(gate)), "--id", "it")
    eventually("it is stored", lambda: _outcome(bundle, "it")["state"] == "PROGRESS")

    mend = stores.garbage(bundle)
    try:
        worker.says("[it] dropped its state PROGRESS: ")
    finally:
        mend()

    eventually("it is stored anew", lambda: _outcome(bundle, "it")["result"] == 1)
    gate.touch()
    worker.says("[it] succeeded")
