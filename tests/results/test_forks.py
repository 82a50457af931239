"""A process that has used SQLite and forks: parent, child and other programs go on with the same file."""

import pytest

from tests.lib.bundle import Bundle

pytestmark = pytest.mark.used_vhost

#: What `proj.results.forking` does.
PROTECTION = "register_at_fork(before=_before, "

_BEGIN = """
import json, os, sqlite3, subprocess, sys, threading
from proj import app
from proj.results.patience import reason_of
kept = app.backend.kept()

def store(task_id):
    try:
        app.backend.store_result(task_id, 1, "SUCCESS")
    except Exception as error:
        return reason_of(error)
    return "stored"

class Child:
    def __init__(self):
        self.theirs, self.orders = os.pipe()
        self.answers, self.ours = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            while task_id := os.read(self.theirs, 99):
                os.write(self.ours, store(task_id.decode()).encode())
                if task_id == b"last":
                    os._exit(0)

    def store(self, task_id):
        os.write(self.orders, task_id.encode())
        return os.read(self.answers, 999).decode()
"""


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_child_can_store_when_a_thread_was_storing(bundle: Bundle, protected: bool) -> None:
    """The fork waits for that thread; in the control the child finds the file locked for ever."""
    if not protected:
        bundle.switch_off("results/forking.py", PROTECTION, "register_at_fork(")
    bundle.switch_off(
        "results/engines.py", "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 1"
    )

    found = bundle.python(
        _BEGIN
        + f"""
assert store("before") == "stored"
writes, forked = threading.Event(), threading.Event()

def write():
    with kept.use() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        writes.set()
        forked.wait({0.1 if protected else 100})
        connection.exec_driver_sql("COMMIT")

writer = threading.Thread(target=write)
writer.start()
writes.wait()
child = Child()
forked.set()
writer.join()
print(json.dumps([child.store("first"), child.store("last"), store("after")]))
"""
    )

    theirs = "stored" if protected else "database is locked"
    assert found == [theirs, theirs, "stored"]


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_result_of_a_child_outlives_the_connections_of_others(bundle: Bundle, protected: bool) -> None:
    """In the control another program, which finds no lock, deletes the log that the child writes to."""
    if not protected:
        bundle.switch_off("results/forking.py", PROTECTION, "register_at_fork(")

    found = bundle.python(
        _BEGIN
        + """
assert store("before") == "stored"
child = Child()
stored = [child.store("first")]
kept.forget()  # as after an error
other = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM celery_taskmeta')"
subprocess.run([sys.executable, "-c", other, kept.engine.url.database], check=True)
stored.append(child.store("last"))
print(json.dumps([stored, [app.AsyncResult(task_id).state for task_id in ("first", "last")]]))
"""
    )

    last = "SUCCESS" if protected else "PENDING"
    assert found == [["stored", "stored"], ["SUCCESS", last]]
