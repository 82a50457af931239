"""Ends that the broker made: a worker stores them, and whoever waits is answered."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proj import queues
from proj.dead_letters import foreign
from proj.private_node.node import BrokerNode
from tests.lib import dead, dead_reader, stores
from tests.lib.bundle import Bundle, vhost_of
from tests.lib.erlang import evaluate
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.watcher import watching


def _reach_delivery_limit(bundle: Bundle, task_id: str) -> None:
    """Make a dead letter of a message by giving it back, as workers do that are lost."""
    before = dead.depth(bundle)
    dead.publish_task(bundle, task_id, 1, 2)
    with bundle.channel() as channel:
        for _ in range(queues.DELIVERY_LIMIT + 1):
            message = eventually("it is delivered", lambda: channel.basic_get("proj.tasks"))
            channel.basic_reject(message.delivery_tag, requeue=True)
    dead.await_count(bundle, before + 1)


def _expire(bundle: Bundle, task_id: str) -> None:
    before = dead.depth(bundle)
    dead.publish_task(bundle, task_id, 1, 2, expiration="0")
    dead.await_count(bundle, before + 1)


def _store(bundle: Bundle, states: dict[str, str]) -> None:
    bundle.python(f"""
from proj import app
for task_id, state in {states}.items():
    value = Exception("of before") if state == "FAILURE" else None
    app.backend.store_result(task_id, value, state)
print(1)
""")


def _stored(bundle: Bundle, what: str, task_id: str) -> Any:
    """A column of the stored result, without a process for each look; None when there is none."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(stores.file(bundle))) as database:
        query = f"SELECT {what} FROM celery_taskmeta WHERE task_id = ?"
        found = database.execute(query, [task_id]).fetchone()
        return found and found[0]


def _outcome(bundle: Bundle, task_id: str) -> Any:
    return json.loads(bundle.proj("result", task_id, "--json").stdout)


def _ends(bundle: Bundle, task_id: str) -> Any:
    def ended() -> bool:
        return _stored(bundle, "status", task_id) in {"SUCCESS", "FAILURE", "REVOKED"}

    eventually(f"the end of {task_id} is stored", ended)
    return _outcome(bundle, task_id)


@pytest.mark.used_vhost
@pytest.mark.parametrize(("end", "reason"), [(_reach_delivery_limit, "delivery limit"), (_expire, "expired")])
def test_wait_ends_for_what_the_broker_made_a_dead_letter(
    bundle: Bundle, end: Callable[[Bundle, str], None], reason: str
) -> None:
    """With exit code 1, the reason, and the command that shows the dead letter; which stays as it is.

    And who watches sees the end, once.
    """
    end(bundle, "it")
    waiting = bundle.start("result", "it")
    assert waiting.wait(60) == 75  # nothing is stored yet
    with watching(bundle) as watcher:
        bundle.worker()

        outcome = _ends(bundle, "it")

        (event,) = eventually("the watcher sees it", lambda: watcher.about("it"))
    assert (event["type"], event["name"]) == ("task-failed", "proj.tasks.add")
    assert event["exception"] == f"DeadLettered('{reason} (see: proj dead show it)')"
    assert (outcome["state"], outcome["task"]) == ("FAILURE", "proj.tasks.add")
    assert outcome["error"] == f"DeadLettered: {reason} (see: proj dead show it)"
    (row,) = dead.rows(bundle)
    assert row["id"] == "it"
    assert row["reason"].startswith(reason.replace(" ", "_"))


@pytest.mark.celery_docs("Calling: expires")
@pytest.mark.used_vhost
def test_whoever_waits_is_answered(bundle: Bundle) -> None:
    """`proj enqueue --wait` on a message that expires in its queue, and `.get()` on the same one."""
    waiting = bundle.start("enqueue", "add", "1", "2", "--expires", "0.5", "--id", "it", "--wait")
    eventually("it is a dead letter", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))
    bundle.worker()

    out, err = waiting.communicate(timeout=120)

    assert (waiting.returncode, out) == (1, "")
    assert err == "Error: proj.tasks.add[it] failed: DeadLettered: expired (see: proj dead show it)\n"
    assert (
        bundle.python("""
from proj import app
from proj.errors import DeadLettered
try:
    app.AsyncResult("it").get(timeout=60)
except DeadLettered as error:
    import json
    print(json.dumps(str(error)))
""")
        == "expired (see: proj dead show it)"
    )


@pytest.mark.used_vhost
def test_stored_end_stands(bundle: Bundle) -> None:
    """A success or a revocation stays; a failure of before the message was sent again does not."""
    states = {"done": "SUCCESS", "revoked": "REVOKED", "failed": "FAILURE", "retried": "RETRY"}
    _store(bundle, states)
    eventually("a second has gone by", lambda: _is_past(bundle))
    for task_id in ("done", "revoked", "failed", "retried", "last"):
        _expire(bundle, task_id)
    order = dead.ids(bundle)
    bundle.worker()

    _ends(bundle, "last")

    assert _outcome(bundle, "done")["state"] == "SUCCESS"
    assert _outcome(bundle, "revoked")["state"] == "REVOKED"
    assert _outcome(bundle, "failed")["error"].startswith("DeadLettered: expired")
    assert _outcome(bundle, "retried")["error"].startswith("DeadLettered: expired")
    assert dead.ids(bundle) == order


def _is_past(bundle: Bundle) -> bool:
    """Whether the second of the stored failure is over: of a death, the broker tells no more than that."""
    finished = datetime.fromisoformat(_stored(bundle, "date_done", "failed")).replace(tzinfo=UTC)
    return (datetime.now(UTC) - finished).total_seconds() > 2


@pytest.mark.used_vhost
def test_end_is_stored_once(bundle: Bundle) -> None:
    """The broker records the second of a death. In it, a survey's end is new, and the task's is of before."""
    ours, theirs = "expired: it was late (see: proj dead show ours)", "of before"
    for task_id in ("ours", "theirs", "last"):
        _expire(bundle, task_id)
    deaths = {each["id"]: each["last"] for each in dead.rows(bundle)}
    bundle.python(f"""
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from proj import app
from proj.errors import DeadLettered
app.backend.mark_as_failure("ours", DeadLettered({ours!r}))
app.backend.mark_as_failure("theirs", ValueError({theirs!r}))
with closing(sqlite3.connect({str(stores.file(bundle))!r})) as database, database:
    for task_id, died in {deaths!r}.items():
        in_its_second = datetime.fromisoformat(died).replace(tzinfo=None) + timedelta(seconds=0.5)
        update = "UPDATE celery_taskmeta SET date_done = ? WHERE task_id = ?"
        database.execute(update, [str(in_its_second), task_id])
print(1)
""")
    bundle.worker()

    _ends(bundle, "last")

    assert _outcome(bundle, "ours")["error"] == f"DeadLettered: {ours}"
    assert _outcome(bundle, "theirs")["error"].startswith("DeadLettered: expired (see")


@pytest.mark.used_vhost
def test_errback_that_cannot_be_called(bundle: Bundle) -> None:
    """The ends of other messages are stored in the same survey."""
    body = [[1, 2], {}, {"errbacks": [{"not": "a signature"}]}]
    for task_id in ("it", "other"):
        headers = {"id": task_id, "task": "proj.tasks.add", "lang": "py", "retries": 0}
        dead.publish(bundle, body, application_headers=headers, expiration="0")
    worker = bundle.worker()

    for task_id in ("it", "other"):
        assert _ends(bundle, task_id)["error"] == f"DeadLettered: expired (see: proj dead show {task_id})"
        worker.says(f"errback of task {task_id} cannot be called")
    assert "Dead letters cannot be read" not in worker.text()


@pytest.mark.used_vhost
@pytest.mark.parametrize("died", [None, "yesterday", "2026-01-02T03:04:05", "0001-01-01T00:00:00+05:00"])
def test_letter_of_another_program_without_its_time(bundle: Bundle, died: str | None) -> None:
    """Its end is stored, once, and so are those of others."""
    headers = {foreign.ORIGIN: "q", foreign.REASON: "invalid", foreign.PROBLEM: "odd", foreign.ORIGINAL: {}}
    headers |= {foreign.DIED: died} if died else {}

    def die(letter_id: str) -> None:
        dead.publish(bundle, b"?", "proj.dead", message_id=letter_id, application_headers=headers)

    die("it")
    bundle.worker()
    assert _ends(bundle, "it")["error"] == "DeadLettered: invalid: odd (see: proj dead show it)"
    stored = _stored(bundle, "date_done", "it")

    die("next")

    _ends(bundle, "next")
    assert _stored(bundle, "date_done", "it") == stored


@pytest.mark.used_vhost
def test_nobody_reads_during_a_survey(bundle: Bundle) -> None:
    """What two workers find is stored by one, since it stores before the other reads."""
    dead.expire(bundle, 2)
    assert bundle.python("""
from proj import app, dead_letters
import json
read = []
def take(letter):
    read.append(letter.id)
with dead_letters.survey(app, 10, take):
    try:
        dead_letters.survey(app, 10, take).__enter__()
    except dead_letters.Busy:
        read.append("busy")
print(json.dumps(read))
""") == ["id-0", "id-1", "busy"]


def _surveys(bundle: Bundle, count: int) -> Any:
    """Whether each survey leaves no end for the next one, and the most bytes of memory that they take."""
    return bundle.python(f"""
import json, tracemalloc
from types import SimpleNamespace
from proj import app
from proj.worker import lookout
app.connection_for_write().connect()  # what is imported does not matter
app.backend.get_task_meta("another")
consumer = SimpleNamespace(call_soon=lambda *_: None)
surveying = lookout.Lookout(app, SimpleNamespace(consumer=consumer))
lookout.MAX_BYTES = 2**20
tracemalloc.start()
looks = [surveying._look() for _ in range({count})]
print(json.dumps([looks, tracemalloc.get_traced_memory()[1]]))
""")


@pytest.mark.used_vhost
def test_a_survey_keeps_no_bodies(bundle: Bundle) -> None:
    """Of large dead letters one is in memory at a time, while the ends of all are stored."""
    size, ids = 2 * 2**20, [f"large-{number}" for number in range(20)]
    for task_id in ids:
        dead.publish_task(bundle, task_id, "x" * size, expiration="0")
    dead.await_count(bundle, len(ids))

    looks, peak = _surveys(bundle, 2)

    assert looks == [False, True]
    assert [_stored(bundle, "status", task_id) for task_id in ids] == ["FAILURE"] * len(ids)
    assert size < peak < 7 * size
    assert bundle.depth("proj.dead") == len(ids)


@pytest.mark.used_vhost
def test_large_callbacks_are_left_for_the_next_survey(bundle: Bundle) -> None:
    """They are in memory until the end is stored, so that a survey stores one of these at a time."""
    embedded = {"callbacks": [{"args": ["x" * 2**20]}], "errbacks": None, "chain": None, "chord": None}
    for task_id in ("first", "second"):
        headers = {"id": task_id, "task": "proj.tasks.add", "lang": "py", "retries": 0}
        properties: dict[str, Any] = {"application_headers": headers, "expiration": "0"}
        dead.publish(bundle, [[1, 2], {}, embedded], content_type="application/json", **properties)
    dead.await_count(bundle, 2)

    assert _surveys(bundle, 4)[0] == [False, False, False, True]
    assert [_stored(bundle, "status", task_id) for task_id in ("first", "second")] == ["FAILURE"] * 2
    assert _surveys(bundle, 1)[0] == [False]  # the second one is not looked at


@pytest.mark.used_vhost
def test_redriven_message_ends_again(bundle: Bundle) -> None:
    """The end that was stored for the dead letter gives way to that of the next attempt."""
    _expire(bundle, "it")
    bundle.worker()
    _ends(bundle, "it")

    assert bundle.proj("dead", "redrive", "it").returncode == 0

    eventually("it succeeds", lambda: _stored(bundle, "status", "it") == "SUCCESS")
    assert _outcome(bundle, "it")["result"] == 3


@pytest.fixture
def soon(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    """A new virtual host, whose queues try their dead letters again after one second, not ten."""
    setting = "rabbit, dead_letter_worker_publisher_confirm_timeout"
    usual = evaluate(own_node, f"{{ok, T}} = application:get_env({setting}), T")
    evaluate(own_node, f"application:set_env({setting}, 1000)")
    with Bundle(own_node, vhost=vhost_of(request), folder=tmp_path) as bundle:
        yield bundle
    evaluate(own_node, f"application:set_env({setting}, {usual})")


@pytest.mark.parametrize("gone", ["unbound", "deleted"])
def test_dead_letters_stay_in_their_queue_without_the_dead_letter_queue(soon: Bundle, gone: str) -> None:
    """The control for a second queue on the exchange: the broker would be content with that one."""
    dead.depth(soon)  # declares
    bindings = soon.of_vhost("bindings")
    bound = [each["destination"] for each in bindings if each["source"] == "proj.dead"]
    assert bound == ["proj.dead"]
    with soon.channel() as channel:
        if gone == "unbound":
            channel.queue_unbind("proj.dead", "proj.dead", "#")
        else:
            channel.queue_delete("proj.dead")
    with soon.channel() as channel:
        message = dead.task_message("it", 1, 2, expiration="0")
        dead.send(channel, [message], "proj.tasks")

        def expired() -> bool:
            return bool(channel.queue_declare("proj.tasks", passive=True).message_count == 0)

        eventually("it is no task any more", expired)

    with soon.channel() as channel:
        queues.dead_queue(channel).declare()

    dead.await_count(soon, 1)
    assert dead.ids(soon) == ["it"]


def _connections(bundle: Bundle) -> Any:
    return bundle.management("GET", f"vhosts/{bundle.vhost}/connections")


@pytest.mark.used_vhost
def test_people_wait_for_a_worker_that_looks(bundle: Bundle) -> None:
    """A look that is under way holds `proj dead list` up, and does not end it."""
    bundle.switch_off(  # the management API may tell of a connection later
        "dead_letters/reader.py", "_READER_INTERVAL = 5.0, 0.25", f"_READER_INTERVAL = {PATIENCE}, 0.25"
    )
    _expire(bundle, "it")
    with bundle.channel() as channel:
        dead_reader.take(channel)
        listing = bundle.start("dead", "list", "--json")
        eventually("it asks", lambda: len(_connections(bundle)) >= 2)

    out, err = listing.communicate(timeout=PATIENCE)

    assert (listing.returncode, err) == (0, "")
    assert '"it"' in out


@pytest.mark.used_vhost
def test_worker_without_the_right_says_so_once(bundle: Bundle) -> None:
    """And works."""
    user = f"narrow-{bundle.vhost}"
    bundle.declare()
    bundle.management("PUT", f"users/{user}", {"password": "x", "tags": ""})
    own = r"pidbox$|^celeryev|^proj\.tasks$"
    rights = {"configure": own, "write": ".*", "read": rf"{own}|^proj$"}
    bundle.management("PUT", f"permissions/{bundle.vhost}/{user}", rights)
    _expire(bundle, "it")
    worker = bundle.worker(env={"CELERY_BROKER_URL": bundle.url.replace("guest:guest", f"{user}:x")})

    worker.says("Dead letters cannot be read")

    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
    assert worker.text().count("Dead letters cannot be read") == 1
