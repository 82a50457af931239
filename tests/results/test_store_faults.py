"""A result store that fails loses no task: SQLite and PostgreSQL, each with its faults."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lib import stores
from tests.lib.bundle import Bundle
from tests.lib.stores import Database, Fault
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

pytestmark = pytest.mark.used_vhost

#: A result of so many letters does not fit into the store of `_impatient`.
TOO_MANY = 1_000_000


def _locked(bundle: Bundle) -> Callable[[], object]:
    other = sqlite3.connect(stores.file(bundle), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other.close


def _full(bundle: Bundle) -> Callable[[], object]:
    # By the limit that `_impatient` gives every connection; short results still fit.
    return lambda: None


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
        "results/engines.py", "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 1"
    )
    bundle.switch_off("results/patience.py", "\nPATIENCE: Final = 2", "\nPATIENCE: Final = 0.5")
    tuned = 'connection.execute("PRAGMA synchronous = NORMAL")'
    bundle.switch_off(
        "results/engines.py", tuned, f'{tuned}; connection.execute("PRAGMA max_page_count = 50")'
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
    return stores.worker(bundle, *options)


def _executes_another(bundle: Bundle, worker: Worker, task_id: str) -> None:
    """The worker stores a result, for which it may have to make the file anew, and others can read it.

    Not before it is stored: a disk that is busy takes seconds to sync a new file, which is locked so long.
    """
    bundle.enqueue("add", "1", "2", "--id", task_id)
    worker.says(f"[{task_id}] succeeded")
    done = bundle.proj("result", task_id, "--json")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, 3), done.stderr


def _strike(bundle: Bundle, worker: Worker, fault: Fault, target: Any, said: str) -> str:
    """Let a task end while the store fails, in a worker that has used it before; prove that it failed.

    Returns the id of the message.
    """
    task_id = f"struck-{fault.__name__.strip('_')}"
    _executes_another(bundle, worker, f"before-{task_id}")
    before, dead = len(worker.text()), bundle.depth("proj.dead")
    mend = fault(target)
    try:
        count = str(TOO_MANY if fault in (_full, _disk_full) else 1)
        bundle.enqueue("task", "proj.tasks.letters", count, "--id", task_id)
        eventually(f"the worker says {said!r}", lambda: said in worker.text()[before:], seen=worker.text)
        eventually(
            "the message is answered",
            lambda: bundle.depth("proj.dead") == dead + 1 or f"[{task_id}] succeeded" in worker.text(),
            seen=lambda: f"{dead} were dead before, now {bundle.depth('proj.dead')}\n{worker.text()}",
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
    _executes_another(bundle, worker, f"after-{task_id}")
    assert (bundle.depth("proj.tasks"), bundle.depth("proj.dead")) == (0, len(dead))


@pytest.fixture(scope="module")
def impatient(
    vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Bundle, Worker]]:
    """A worker whose store, SQLite, is made to fail again and again."""
    with vhosts.lend(tmp_path_factory.mktemp("shared")) as bundle:
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
        assert stores.outcome(bundle, task_id)["error"].endswith("the result cannot be stored: " + said)


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
        ("threads", {stores.stopped: "Connection refused"}),
        ("solo", {stores.stopped: "Connection refused"}),
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


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_postgresql_that_hangs(bundle: Bundle, database: Database, protected: bool) -> None:
    """A connection that does not answer is given up for another; the control waits as long as it hangs."""
    bundle.switch_off("results/engines.py", "ANSWER_TIMEOUT: Final = 10", "ANSWER_TIMEOUT: Final = 1")
    if not protected:
        bundle.switch_off("results/engines.py", "if self._socket and", "if False and")
    worker = stores.worker(bundle)
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
    assert stores.outcome(bundle, task_id)["state"] == "PENDING"
