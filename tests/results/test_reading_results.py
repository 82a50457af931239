"""Reading results from a store that fails, or is none: one line, in seconds, and no password in it."""

import sqlite3
import subprocess
import time
from contextlib import closing

import pytest
from sqlalchemy.exc import OperationalError

from proj.results import engines
from proj.results.engines import Kept
from tests.lib import stores
from tests.lib.bundle import Bundle
from tests.lib.postgres import PASSWORD
from tests.lib.refusal import refuses
from tests.lib.stores import Database, Fault, LoginOnly
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: Seconds that a command may take to tell that the store fails, on a machine that is very busy.
READING_TAKES = 40

_ENGINES = "results/engines.py"

#: Of a server that says nothing, one second is as good as ten.
_SHORT_ANSWER = _ENGINES, "ANSWER_TIMEOUT: Final = 10", "ANSWER_TIMEOUT: Final = 1"


def _refuses(bundle: Bundle, code: int, *parts: str, command: tuple[str, ...] = ("result", "any")) -> None:
    """A command ends with one line, in seconds, and no password in it."""
    begin = time.monotonic()
    refuses(bundle, code, *parts, command=command)
    assert time.monotonic() - begin < READING_TAKES


def test_task_that_is_under_way_is_looked_up_once(bundle: Bundle) -> None:
    """All that is told of it is of one moment."""
    looks = bundle.python("""
from proj import app, results
looks, read = [], app.backend.get_task_meta
def counted(*args, **options):
    looks.append(1)
    return read(*args, **options)
app.backend.get_task_meta = counted
assert results.outcome(app, "any").state == "PENDING"
print(len(looks))
""")

    assert looks == 1


def test_result_that_comes_by_message_is_ready(bundle: Bundle) -> None:
    """Whoever enqueued a task may ask later, and again and again, whether its result has come over `rpc://`.

    A batch is refused, since nobody would receive its results.
    """
    bundle.env["CELERY_RESULT_BACKEND"] = "rpc://"
    worker = bundle.worker("--without-gossip")

    seen = bundle.python(f"""
import json, time
from pathlib import Path
from proj.tasks import add
result = add.delay(1, 2)
while " succeeded in " not in Path({str(worker.log)!r}).read_text(): time.sleep(0.05)
while not result.ready(): time.sleep(0.05)
from proj.enqueue import enqueue_many
outcomes = [str(each.error) for each in enqueue_many([add.s(1, 2), add.s(1, 2).set(ignore_result=True)])]
print(json.dumps([result.ready(), result.state, result.get(timeout=90), outcomes]))
""")

    assert seen[:3] == [True, "SUCCESS", 3]
    refused, confirmed = seen[3]
    assert "have no results over rpc://" in refused
    assert confirmed == "None"


@pytest.mark.parametrize(
    ("fault", "said", "command"),
    [
        (stores.folder_in_its_place, "unable to open database file", ("result", "any")),
        (stores.garbage, "file is not a database", ("enqueue", "add", "1", "2", "--wait")),
    ],
)
def test_reading_from_sqlite_that_fails(
    bundle: Bundle, fault: Fault, said: str, command: tuple[str, ...]
) -> None:
    """A file that is none, or holds something else, is told in one line that names it."""
    stores.file(bundle).parent.mkdir()
    fault(bundle)

    _refuses(bundle, 69, "cannot be read: " + said, str(stores.file(bundle)), command=command)


def test_reading_from_sqlite_that_is_locked(bundle: Bundle) -> None:
    """A writer does not keep a reader waiting; whoever has the file for itself alone does, for seconds."""
    assert bundle.proj("result", "any").returncode == 75
    with closing(sqlite3.connect(stores.file(bundle), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert bundle.proj("result", "any").returncode == 75
        other.execute("ROLLBACK")
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("DELETE FROM celery_taskmeta")
        bundle.switch_off(_ENGINES, "SQLITE_BUSY_TIMEOUT: Final = 5", "SQLITE_BUSY_TIMEOUT: Final = 1")
        _refuses(bundle, 69, "database is locked")


def test_reading_from_sqlite_that_is_read_only(bundle: Bundle) -> None:
    """What needs no writing is read."""
    assert bundle.proj("result", "any").returncode == 75
    bundle.env["CELERY_RESULT_BACKEND"] = f"db+sqlite:///file:{stores.file(bundle)}?mode=ro&uri=true"

    assert bundle.proj("result", "any").returncode == 75


def test_reading_from_postgresql_that_fails(bundle: Bundle, database: Database) -> None:
    """A server that is down, or mute, or that refuses is told with its address."""
    server, url = database.server, bundle.env["CELERY_RESULT_BACKEND"]
    address = f"postgresql://app:**@127.0.0.1:{server.port}/{database.name}"
    bundle.switch_off(_ENGINES, "CONNECT_TIMEOUT: Final = 5", "CONNECT_TIMEOUT: Final = 2")

    with server.paused():
        _refuses(bundle, 69, "timeout expired", address)
    bundle.env["CELERY_RESULT_BACKEND"] = url.replace("app:", "nobody:")
    _refuses(bundle, 69, "password authentication failed", "nobody:**@")
    bundle.env["CELERY_RESULT_BACKEND"] = url
    server.stop()
    try:
        _refuses(bundle, 69, "Connection refused", address)
    finally:
        server.start()


def test_reading_from_postgresql_that_answers_no_question(bundle: Bundle) -> None:
    """A server that takes the login and says nothing after it is told with its address."""
    bundle.switch_off(*_SHORT_ANSWER)
    with LoginOnly() as server:
        bundle.env["CELERY_RESULT_BACKEND"] = "db+" + server.url

        _refuses(bundle, 69, "server closed the connection", f"app:**@{server.address}")

    assert server.asked


def test_postgresql_that_answers_no_question_is_waited_for(bundle: Bundle) -> None:
    """The control for the server that says nothing: with a new connection not bounded, it is waited for."""
    bundle.switch_off(*_SHORT_ANSWER)
    bundle.switch_off(_ENGINES, 'event.listen(engine, "connect", begin, insert=True)', "pass")
    with LoginOnly() as server:
        reader = bundle.start("result", "any", env={"CELERY_RESULT_BACKEND": "db+" + server.url})
        eventually("it is asked", lambda: server.asked)

        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(4)


def test_postgresql_that_refuses_the_first_question_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that fails while it is new is closed at once, and nobody waits to cut it."""
    monkeypatch.setattr(engines, "ANSWER_TIMEOUT", 1000)
    with LoginOnly(LoginOnly.REFUSAL) as server:
        kept = Kept(server.url, {})

        # The error is kept, and with it whatever its traceback keeps.
        with pytest.raises(OperationalError) as refused, kept.use():
            pass

        eventually("the connection is closed", lambda: server.left == 1)
        assert "no server today" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://app:{PASSWORD}@host/name", "begins with db+"),
        (f"db+postgres://app:{PASSWORD}@host/name", "no database 'postgres'"),
        (f"db+postgresql+psycopg3://app:{PASSWORD}@host/name", "no database 'postgresql+psycopg3'"),
        (f"db+postgresql+psycopg://app:{PASSWORD}/@host/name", "such as db+postgresql://"),
        (f"db+firebird://app:{PASSWORD}@host/name", "no database 'firebird'"),
    ],
)
def test_url_of_no_store(bundle: Bundle, url: str, said: str) -> None:
    """A URL that is nearly right is told in one line, with what is right."""
    bundle.env["CELERY_RESULT_BACKEND"] = url

    _refuses(bundle, 2, "CELERY_RESULT_BACKEND cannot be used: ", said)


def test_worker_ends_at_a_url_of_no_store(bundle: Bundle) -> None:
    """At its start, before it takes a message whose result it could not store."""
    worker = bundle.worker(env={"CELERY_RESULT_BACKEND": f"db+postgres://app:{PASSWORD}@host/name"})

    assert worker.ends() == 2
    assert "CELERY_RESULT_BACKEND cannot be used: " in worker.text()
    assert "no database 'postgres'" in worker.text()
    assert PASSWORD not in worker.text()
    assert "Traceback" not in worker.text()
