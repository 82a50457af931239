"""The events of a message: one line each, by which it can be followed from its publisher to its end."""

import os
import re
import signal
from functools import partial
from typing import Any

import pytest

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.logged import JSON, Shared, objects, way
from tests.lib.proxy import Proxy
from tests.lib.waiting import eventually
from tests.lib.watcher import watching

pytestmark = pytest.mark.used_vhost


def test_one_id_shows_the_whole_way_of_a_message(json_worker: Shared) -> None:
    """From its publisher through a retry, death and redrive to its end, in the JSON of three programs."""
    log, bundle = json_worker.begin(), json_worker.bundle
    published = bundle.proj("enqueue", "task", "proj.tasks.moody", "--id", "it").stderr
    log.logs("dead_lettered", "it")
    dead.await_letter(bundle, "it")
    (bundle.folder / "mended").touch()
    redriven, counted = bundle.proj("dead", "redrive", "it").stderr.splitlines()
    log.logs("succeeded", "it")

    lines = objects(published, log.text(), redriven)
    assert way(lines, "it") == [
        *("published", "received"),
        *("published", "retried", "received"),
        *("failed", "dead_lettered", "redriven"),
        *("received", "succeeded"),
    ]
    of_it = [line for line in lines if line.get("task_id") == "it"]
    assert {line["task_name"] for line in of_it} == {"proj.tasks.moody"}
    assert [line.get("worker") for line in of_it] == [None, *["w@here"] * 6, None, *["w@here"] * 2]
    assert all(0 <= line["waited"] < 60 for line in of_it if line["event"] == "received")
    by_event = {line["event"]: line for line in of_it}
    assert by_event["retried"]["exception"] == "ConnectionError('the other side hung up')"
    assert by_event["retried"]["delay"] in (0, 1)
    assert by_event["failed"]["exception"] == r"ValueError('no such\nthing')"
    assert by_event["failed"]["traceback"].startswith("Traceback (most recent call last):\n")
    assert by_event["failed"]["level"] == "ERROR"
    assert by_event["dead_lettered"]["reason"] == "failed"
    assert by_event["redriven"]["queue"] == "proj.tasks"
    assert by_event["succeeded"]["result"] == "42"
    assert 0 <= by_event["succeeded"]["runtime"] < 60
    assert counted == "1 redriven"


#: What a task does in its first attempt, and the events that its message then has.
ENDS = {
    "os.kill(os.getpid(), 9)": ["received", "given_back", "received", "succeeded"],
    "sys.exit(3)": ["received", "given_back", "received", "succeeded"],
    "time.sleep(600)": ["received", "soft_time_limit", "failed", "dead_lettered"],
    "sleep_on()": ["received", "soft_time_limit", "failed", "dead_lettered"],
    "reject()": ["received", "rejected", "dead_lettered"],
    "ignore()": ["received", "ignored"],
}


def test_every_end_of_an_attempt_is_one_event(json_worker: Shared) -> None:
    """Each way in which an attempt can end, other than by itself, is told once, and of the right message."""
    log = json_worker.begin()
    json_worker.bundle.python(f"""
from proj.tasks import wild
for action in {list(ENDS)}:
    # A process that is killed is missed within seconds, and has its task's time limit until then. One that
    # goes on must by its soft limit have come to where it sleeps.
    soft, hard = (5, 6) if action == "sleep_on()" else (1, 60)
    limits = {{"soft_time_limit": soft, "time_limit": hard}} if "sleep" in action else {{}}
    wild.apply_async((action,), task_id=action, **limits)
print(0)
""")
    for action, events in ENDS.items():
        log.logs(events[-1], action)

    lines = [line for line in objects(log.text()) if line.get("task_id") in ENDS]
    assert {action: way(lines, action) for action in ENDS} == ENDS
    reasons = {line["task_id"]: line["reason"] for line in lines if "reason" in line}
    assert reasons == {
        "os.kill(os.getpid(), 9)": "worker_lost",
        "sys.exit(3)": "worker_lost",
        "time.sleep(600)": "failed",
        "sleep_on()": "time_limit",
        "reject()": "rejected",
    }
    assert {line["task_name"] for line in lines} == {"proj.tasks.wild"}


def test_what_is_never_executed_is_one_event(json_worker: Shared) -> None:
    """An expired message, an unknown task, and what is no request to execute a task: each with its reason.

    Who watches is told that the tasks among them have failed.
    """
    bodies = [
        (b"[[1, 2], {}, {}]", {"id": "late", "task": "proj.tasks.add", "expires": "2020-01-01T00:00:00Z"}),
        (b"[[1], {}, {}]", {"id": "nope", "task": "proj.tasks.nope"}),
        (b"[[1], {}, {}]", {"task": "proj.tasks.add"}),
        (b"\xff", {"id": "odd", "task": "proj.tasks.add"}),
        (b'{"no": "task"}', {}),
    ]
    log = json_worker.begin()

    def dead() -> list[dict[str, Any]]:
        return [line for line in objects(log.text()) if line["event"] == "dead_lettered"]

    with watching(json_worker.bundle) as watcher:
        for body, headers in bodies:
            json_worker.bundle.publish(
                body,
                exchange="proj",
                routing_key="proj.tasks",
                headers=headers,
                content_type="application/json",
                content_encoding="utf-8",
                correlation_id="by-property",
            )
        eventually("all are dead", lambda: len(dead()) == len(bodies), seen=log.text)
        ends = [
            eventually(f"the end of {task_id} is seen", partial(watcher.about, task_id))[-1]
            for task_id in ("late", "nope", "odd")
        ]
        assert {each["type"] for each in ends} == {"task-failed"}
        assert [re.split("[(:]", each["exception"])[1][1:] for each in ends] == [
            *("expired", "unknown task", "unreadable"),
        ]

    assert [(line["task_id"], line.get("task_name"), line["reason"]) for line in dead()] == [
        ("late", "proj.tasks.add", "expired"),
        ("nope", "proj.tasks.nope", "unknown_task"),
        ("by-property", "proj.tasks.add", "invalid"),
        ("odd", "proj.tasks.add", "unreadable"),
        ("by-property", None, "no_task"),
    ]
    for said in ("Received", "Can't decode", "Traceback"):  # Celery's own words, in many lines
        assert said not in log.text()


# upstream: celery#8101; remove when Celery logs what it prints on a signal
def test_message_that_is_given_back_is_told(bundle: Bundle) -> None:
    """As with a lost connection and a cold shutdown."""
    bundle.env |= JSON
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    with Proxy(bundle.node.info.port) as proxy:
        worker = bundle.worker(env={"CELERY_BROKER_URL": bundle.url_at(proxy.port)})
        worker.says("Received '600'")
        proxy.cut_for_programs()
        proxy.cut_for_broker()
        worker.says('"reason": "connection_lost"')
        eventually("it is started again", lambda: worker.text().count("Received '600'") == 2)
        for name in (signal.SIGTERM, signal.SIGQUIT):
            os.kill(worker.process.pid, name)
        worker.ends()

    lines = objects(worker.text())
    assert way(lines, "long") == ["received", "given_back", "received", "given_back"]
    of_it = [line for line in lines if line.get("task_id") == "long"]
    assert [line["reason"] for line in of_it if "reason" in line] == ["connection_lost", "shutdown"]
    assert [line.get("redelivered") for line in of_it if line["event"] == "received"] == [None, True]
    # What Celery says past all logging: without the project's doing it would be no JSON.
    assert "worker: Warm shutdown (MainProcess)" in [line["message"] for line in lines]
    assert bundle.kept("proj.tasks") == 1


def test_duplicate_is_told(json_worker: Shared) -> None:
    """A stored success is not executed again."""
    log = json_worker.begin()
    for _ in range(2):
        json_worker.bundle.enqueue("add", "1", "2", "--id", "twice")
    log.logs("duplicate", "twice")
    assert way(objects(log.text()), "twice") == ["received", "succeeded", "received", "duplicate"]


def test_publish_whose_confirm_is_lost_is_told(bundle: Bundle) -> None:
    """That it is published once more, and that its outcome is unknown; both with its id."""
    bundle.env |= JSON
    sent = "            return send(producer)\n"
    bundle.switch_off(
        "enqueue/publish.py", sent, sent.replace("return ", "") + "            raise ConnectionResetError\n"
    )

    done = bundle.proj("enqueue", "add", "1", "2", "--id", "it")

    *lines, error = done.stderr.splitlines()
    assert (done.returncode, error[:7]) == (75, "Error: ")
    assert way(objects(*lines), "it") == ["publish_repeated", "publish_unknown"]
    assert bundle.depth("proj.tasks") == 2


def test_what_people_take_away_is_told(json_worker: Shared) -> None:
    """A revoked message is acknowledged, a dead letter dropped."""
    log, bundle = json_worker.begin(), json_worker.bundle
    bundle.control(json_worker.worker, "revoke", "no-more")
    dead.publish_task(bundle, "wrong", 1)
    bundle.enqueue("add", "1", "2", "--id", "no-more")
    log.logs("revoked", "no-more")
    dead.await_letter(bundle, "wrong")
    dropped = bundle.proj("dead", "drop", "wrong", "--yes").stderr.splitlines()[0]

    lines = objects(log.text(), dropped)
    assert way(lines, "no-more") == ["received", "revoked"]
    assert way(lines, "wrong") == ["received", "failed", "dead_lettered", "dropped"]
    assert bundle.depth("proj.tasks") == 0
