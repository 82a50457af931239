"""A store of SQLite that fails and is repaired is free: no failure leaves a lock, or an open file, behind."""

import pytest

from tests.lib.bundle import Bundle

pytestmark = pytest.mark.used_vhost

#: What becomes of the file, each with its repair, and what is done with the store meanwhile. After each,
#: another program writes to the file without waiting for any lock, and this one stores.
_CODE = """
import json, os, sqlite3, subprocess, sys
from celery.result import GroupResult
from proj import app
from proj.results import ageing, engines
from proj.results import patience
from proj.results.patience import reason_of

# Nobody waits.
patience.PATIENCE = engines.SQLITE_BUSY_TIMEOUT = 0.2

app.backend.max_retries
store = app.backend
kept = store.kept()
path = kept.engine.url.database
folder = os.path.dirname(path)

def remove():
    for name in os.listdir(folder):
        if name.startswith(os.path.basename(path)):
            os.unlink(os.path.join(folder, name))

def directory():
    remove()
    os.mkdir(path)
    return lambda: os.rmdir(path)

def garbage():
    remove()
    open(path, "wb").write(os.urandom(8192))
    return lambda: os.unlink(path)

def no_tables():
    other = sqlite3.connect(path, isolation_level=None)
    for name in ("celery_taskmeta", "celery_tasksetmeta"):
        other.execute(f"DROP TABLE {name}")
    other.close()
    return lambda: None

def locked():
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other.close

def fails_halfway():
    other = sqlite3.connect(path, isolation_level=None)
    for event in ("INSERT", "UPDATE", "DELETE"):
        other.execute(f"CREATE TRIGGER no_{event} BEFORE {event} ON celery_taskmeta"
            " BEGIN SELECT RAISE(FAIL, 'no'); END")
    other.close()
    return remove

STATES = (directory, garbage, no_tables, locked, fails_halfway)
OPERATIONS = {
    "success": lambda: store.store_result("it", 1, "SUCCESS"),
    "failure": lambda: store.store_result("bad", ValueError("x"), "FAILURE"),
    "progress": lambda: store.store_result("it", 1, "PROGRESS"),
    "read": lambda: store.get_task_meta("it", cache=False),
    "group": lambda: GroupResult("group", [app.AsyncResult("it")]).save(),
    "restore": lambda: store.restore_group("group", cache=False),
    "forget": lambda: store.forget("it"),
    "ageing": lambda: ageing.Ageing(store, 1).turn(lambda: False, lambda: True),
}

#: A program that has nothing to do with this process, and waits for no lock.
OTHER = '''
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
other.execute("PRAGMA journal_mode = WAL")
other.execute("BEGIN EXCLUSIVE")
other.execute("CREATE TABLE IF NOT EXISTS others (x)")
other.execute("COMMIT")
'''

def open_files():
    numbers = os.listdir("/proc/self/fd")
    files = {number: os.path.realpath(f"/proc/self/fd/{number}") for number in numbers}
    return sorted(name for name in files.values() if name.startswith(path) and name.endswith("(deleted)"))

failed, left = {}, []
for state in STATES:
    for name, operation in OPERATIONS.items():
        store.store_result("it", 1, "SUCCESS")
        repair = state()
        store._progress_resumes = 0.0
        try:
            operation()
        except Exception as error:
            failed.setdefault(state.__name__, {})[name] = reason_of(error)
        leak()
        repair()
        done = subprocess.run([sys.executable, "-S", "-c", OTHER, path], capture_output=True, text=True)
        if done.returncode:
            left.append([state.__name__, name, done.stderr.splitlines()[-1]])
        try:
            store.store_result("after", 1, "SUCCESS")
        except Exception as error:
            left.append([state.__name__, name, "after", reason_of(error)])
        left += [[state.__name__, name, file] for file in open_files()]
print(json.dumps([failed, left]))
"""

_WRITES = {"success", "group", "forget", "ageing"}
_ALL = {*_WRITES, "read", "restore"}

#: The operations that raise: a failure that is not stored is logged, and progress is dropped.
_RAISE = {
    "directory": ("unable to open database file", _ALL),
    "garbage": ("file is not a database", _ALL),
    "no_tables": ("no such table: celery_taskmeta", {"ageing"}),
    "locked": ("database is locked", _WRITES),
    "fails_halfway": ("no", {"success", "forget"}),
}


def test_repaired_store_is_free(bundle: Bundle) -> None:
    """Each operation in each state; once the file is repaired, another program has it to itself at once."""
    failed, left = bundle.python("leak = lambda: None" + _CODE)

    assert failed == {state: dict.fromkeys(names, words) for state, (words, names) in _RAISE.items()}
    assert left == []


def test_store_with_a_transaction_left_open(bundle: Bundle) -> None:
    """The control: the other program finds it locked."""
    leak = """
def leak():
    connection = kept.engine.connect()
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    leaks.append(connection)

leaks = []
"""
    code = _CODE.replace("in STATES:", "in [no_tables]:").replace(
        "in OPERATIONS.items():", "in [('read', str)]:"
    )

    _, left = bundle.python(leak + code)

    assert ["no_tables", "read", "sqlite3.OperationalError: database is locked"] in left
