"""A process keeps one engine for its database; what is forked from it opens connections of its own."""

from typing import Any

import pytest

from tests.lib.bundle import Bundle

pytestmark = pytest.mark.used_vhost


#: Counts the connections that are opened.
_COUNTED = """
import json, os, threading
from sqlalchemy import event, pool
from proj import app
opened = []
event.listen(pool.Pool, "connect", lambda *_: opened.append(os.getpid()))

def store(task_id, value=1):
    app.backend.store_result(task_id, value, "SUCCESS")

def read(task_id):
    return app.backend.get_task_meta(task_id, cache=False)["result"]
"""


def test_one_connection_serves_all(stored: Bundle) -> None:
    """A hundred results by ten threads that come one after the other, and what Celery does with its ORM."""
    found: Any = stored.python(
        _COUNTED
        + """
from celery.result import GroupResult
for n in range(10):
    thread = threading.Thread(target=lambda: [store(f"{n}-{m}", m) for m in range(10)])
    thread.start()
    thread.join()
group = GroupResult("group", [app.AsyncResult(f"3-{m}") for m in range(10)])
group.save()
restored = GroupResult.restore("group", app=app)
app.AsyncResult("0-0").forget()
print(json.dumps([restored.get(timeout=60), app.AsyncResult("0-0").state, len(opened)]))
"""
    )

    assert found == [list(range(10)), "PENDING", 1]


def test_forked_child_has_connections_of_its_own(stored: Bundle) -> None:
    """Both go on storing; the parent's connection outlives the child, or with SQLite is closed before."""
    found: Any = stored.python(
        _COUNTED
        + """
store("before")
child = os.fork()
if not child:
    store("child", read("before") + 1)
    raise SystemExit(0)  # in good order, with all that Python closes then
status = os.waitpid(child, 0)[1]
store("after", 3)
print(json.dumps([status, read("before"), read("child"), read("after"), len(opened)]))
"""
    )

    assert found == [0, 1, 2, 3, 1 if "CELERY_RESULT_BACKEND" in stored.env else 2]


def test_server_that_has_restarted_is_connected_to_anew(bundle: Bundle, database: object) -> None:
    """Progress too, which has one attempt, and without a word: nothing has failed."""
    found: Any = bundle.python(
        _COUNTED
        + """
import logging, psycopg
lines = []
handler = logging.Handler(0)
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger().addHandler(handler)
store("it")
with psycopg.connect(app.backend.url, autocommit=True) as other:
    other.execute("SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
        " WHERE usename = current_user AND pid <> pg_backend_pid()")
app.backend.store_result("other", 2, "PROGRESS")
print(json.dumps([read("it"), read("other"), len(opened), lines]))
"""
    )

    assert found == [1, 2, 2, []]
