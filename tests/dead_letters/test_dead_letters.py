"""Dead letters of every kind, as `proj dead list` and `show` tell of them."""

import json
import socket
import time
from typing import Any

import pytest

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.refusal import refuses
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: Seconds that a command may take besides waiting, on a machine that is busy, and slow.
STARTING = 40


def test_no_dead_letters_are_an_empty_list(bundle: Bundle) -> None:
    """A broker that knows nothing of us gets the topology, and has no dead letters."""
    done = bundle.proj("dead", "list")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "No dead letters.\n")
    assert bundle.has("proj.dead")


def test_list_says_why_in_words(bundle: Bundle) -> None:
    """A line has the id, task, arguments, reason, attempts and times; `--json` has the same keys."""
    dead.expire(bundle, 1)

    lines = bundle.proj("dead", "list").stdout.splitlines()
    (row,) = dead.rows(bundle)
    assert lines[0].split() == list(row)
    assert (row["id"], row["task"], row["arguments"]) == ("id-0", "proj.tasks.add", "1, 2")
    assert row["reason"] == "expired: no worker took it in time"
    assert (row["attempts"], row["redrives"], row["exception"]) == (0, 0, None)
    assert row["first"] == row["last"]
    assert row["last"].endswith("Z")
    for value in ("id-0", "proj.tasks.add", "1, 2", row["reason"], row["last"]):
        assert value in lines[1]


def test_list_that_may_go_on_says_so(bundle: Bundle) -> None:
    """With as many as were asked for, there may be more."""
    dead.expire(bundle, 2)

    assert bundle.proj("dead", "list", "--limit", "2").stderr.startswith("Only the first 2 are listed;")
    assert bundle.proj("dead", "list", "--limit", "3").stderr == ""


def test_list_is_cut_to_the_width_of_the_terminal(bundle: Bundle) -> None:
    """Arguments give way, and are there in full in the JSON."""
    dead.publish_task(bundle, "long", "x" * 500, 2, expiration="0")
    dead.await_count(bundle, 1)

    head, line = bundle.proj("dead", "list", env={"COLUMNS": "150"}).stdout.splitlines()
    assert max(len(head), len(line)) <= 150
    assert "xxxxxxxxxx…  expired" in line
    assert dead.rows(bundle)[0]["arguments"] == f'"{"x" * 500}", 2'


def test_failed_task_has_its_exception(bundle: Bundle) -> None:
    """What a worker rejected is listed with its exception, and shown with its traceback."""
    bundle.worker()
    dead.publish_task(bundle, "wrong", "a", 2)
    dead.await_count(bundle, 1)

    (row,) = eventually("the failure is stored", lambda: [r for r in dead.rows(bundle) if r["exception"]])
    assert row["reason"] == "rejected: the task failed, or a worker could not execute it"
    assert row["attempts"] == 0  # its arguments were refused
    assert row["exception"].startswith("BadArguments: ")
    shown = bundle.proj("dead", "show", "wrong")
    assert "traceback   Traceback (most recent call last)" in shown.stdout
    assert "x-death" in shown.stdout


def test_message_that_kills_its_workers_is_told(bundle: Bundle) -> None:
    """The delivery limit is a reason of its own, with the number of deliveries."""
    dead.publish_task(bundle, "killer", 1, 2)
    deliveries = 0
    with bundle.channel() as channel:
        while dead.depth(bundle) == 0:
            if message := channel.basic_get("proj.tasks"):
                deliveries += 1
                channel.basic_reject(message.delivery_tag, requeue=True)

    (row,) = dead.rows(bundle)
    assert row["reason"] == f"delivery_limit: requeued {deliveries} times; it may kill its workers"
    assert row["attempts"] == deliveries


def test_limit_of_a_foreign_queue_is_not_told(bundle: Bundle) -> None:
    """How often another queue gives a message back is not known, and no number is made up."""
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1, "x-dead-letter-exchange": "proj.dead"}
    with bundle.channel() as channel:
        channel.queue_declare("strict", durable=True, auto_delete=False, arguments=arguments)
        dead.publish_task(bundle, "killer", 1, queue="strict")
        while dead.depth(bundle) == 0:
            if message := channel.basic_get("strict"):
                channel.basic_reject(message.delivery_tag, requeue=True)

    (row,) = dead.rows(bundle)
    assert row["reason"] == "delivery_limit: requeued too often; it may kill its workers"
    assert row["attempts"] is None


#: Whatever someone may put into a queue by hand, and the id that it is listed with.
_NO_CELERY_MESSAGES: list[tuple[bytes, dict[str, Any], str]] = [
    (b"\xff not JSON", {}, "-"),
    (b"", {"correlation_id": "mine"}, "mine"),
    (b"[1, 2]", {"application_headers": {"id": 5, "task": ["x"]}}, "-"),
    (b"{}", {"application_headers": {"id": "half", "task": "proj.tasks.add"}}, "half"),
    (b"[[], {}, {}]", {"application_headers": {"x-death": "none", "id": "odd"}}, "odd"),
    (b"x", {"application_headers": {"x-death": [{"queue": "q" * 300, "reason": 7}]}}, "-"),
    (b"[" * 100_000, {"content_type": "application/json", "correlation_id": "deep"}, "deep"),
]


def test_what_is_no_celery_message_is_listed(bundle: Bundle) -> None:
    """Whatever someone puts into the dead-letter queue by hand is listed, shown, and never redriven."""
    count = len(_NO_CELERY_MESSAGES)
    for body, properties, _ in _NO_CELERY_MESSAGES:
        dead.publish(bundle, body, "proj.dead", **properties)
    dead.await_count(bundle, count)

    rows = dead.rows(bundle)
    assert [row["id"] for row in rows] == [listed_id for _, _, listed_id in _NO_CELERY_MESSAGES]
    assert {row["task"] for row in rows} == {"not a Celery message"}
    assert {row["reason"] for row in rows} == {"unknown: published to this queue by hand"}
    assert bundle.proj("dead", "list").returncode == 0
    for listed_id in dict.fromkeys(row["id"] for row in rows):
        assert bundle.proj("dead", "show", listed_id).returncode == 0, listed_id
    done = bundle.proj("dead", "redrive", "--all")
    assert done.returncode == 65
    assert done.stderr == (
        f"0 redriven, {count} left: its queue is unknown, and it is not a Celery message ({count})\n"
    )
    assert bundle.depth("proj.dead") == count


def test_id_of_any_length_leaves_the_list_readable(bundle: Bundle) -> None:
    """One that our publishers would take is whole; a longer one does not push the rest out of sight."""
    for task_id in ("x" * 100_000, "y" * 155):
        headers = {"id": task_id, "task": "proj.tasks.add"}
        dead.publish(bundle, [[1, 2], {}, {}], "proj.dead", application_headers=headers)
    dead.await_count(bundle, 2)

    lines = bundle.proj("dead", "list").stdout.splitlines()

    assert max(map(len, lines)) < 400
    assert "y" * 155 in lines[-1]


@pytest.mark.parametrize("what", dead.UNREADABLE)
def test_properties_that_python_does_not_read_hide_no_dead_letter(bundle: Bundle, what: str) -> None:
    """A text that is no UTF-8, or a time beyond the calendar, is shown, and does not hide the others."""
    dead.publish_unreadable(bundle, what, "proj.dead")
    dead.publish_task(bundle, "next", 1, 2, queue="proj.dead")
    dead.await_count(bundle, 2)

    assert dead.ids(bundle) == ["it", "next"]
    assert dead.show(bundle, "it")["arguments"] == "1, 2"
    assert bundle.proj("dead", "redrive", "it").returncode == 0

    (message,) = dead.take(bundle, "proj.tasks")
    assert message.properties["application_headers"]["id"] == "it"


def test_header_whose_name_is_no_text(bundle: Bundle) -> None:
    """A header's name in Latin-1 is shown, and goes back byte by byte."""
    dead.publish_task(bundle, "it", 1, queue="proj.dead", headers={b"caf\xe9": "au lait"})
    dead.await_count(bundle, 1)

    assert "au lait" in dead.show(bundle, "it")["headers"].values()
    assert bundle.proj("dead", "redrive", "it").returncode == 0

    (message,) = dead.take(bundle, "proj.tasks")
    assert message.properties["application_headers"][b"caf\xe9"] == "au lait"


def test_message_cannot_steer_the_terminal(bundle: Bundle) -> None:
    """Escape sequences in a message are printed as text."""
    dead.publish_task(bundle, "\x1b[2Jid", 1, task="\x1b]0;task\x07", queue="proj.dead")
    dead.await_count(bundle, 1)

    for command in (["list"], ["show", "\x1b[2Jid"]):
        done = bundle.proj("dead", *command)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
    assert "\x1b" not in bundle.proj("result", "\x1b[2Jid").stdout


def test_filters_choose(bundle: Bundle) -> None:
    """`--task` and `--reason` choose, in order, and `--limit` ends the list."""
    ids = dead.expire(bundle, 3)
    dead.publish_task(bundle, "tasks", "text", task="proj.tasks.sleep_dots", queue="proj.dead")
    dead.await_count(bundle, 4)

    assert dead.ids(bundle, "--task", "proj.tasks.add") == ids
    assert dead.ids(bundle, "--task", "proj.tasks.add", "--limit", "2") == ids[:2]
    assert dead.ids(bundle, "--reason", "expired") == ids
    assert dead.ids(bundle, "--reason", "unknown") == ["tasks"]
    assert dead.ids(bundle, "--reason", "maxlen") == []
    assert bundle.proj("dead", "list", "--reason", "nonsense").returncode == 2


def test_result_store_that_is_down_does_not_hide_dead_letters(bundle: Bundle) -> None:
    """The list is complete but for the exceptions, and says so."""
    dead.publish_task(bundle, "failed", 1, 2)
    with bundle.channel() as channel:
        message = eventually("the message", lambda: channel.basic_get("proj.tasks"))
        channel.basic_reject(message.delivery_tag, requeue=False)
    dead.await_count(bundle, 1)

    store = {"CELERY_RESULT_BACKEND": "db+sqlite:////proc/nowhere/results"}
    done = bundle.proj("dead", "list", "--json", env=store)

    assert done.returncode == 0
    assert json.loads(done.stdout)["reason"].startswith("rejected")
    assert done.stderr.startswith("Exceptions are missing: ")
    assert done.stderr.count("\n") == 1


def test_unknown_id_is_65(bundle: Bundle) -> None:
    """An id that no dead letter has is named, in one line."""
    dead.expire(bundle, 1)

    for command in (["show", "nobody"], ["redrive", "nobody"], ["drop", "nobody", "--yes"]):
        done = bundle.proj("dead", *command)
        assert (done.returncode, done.stdout) == (65, "")
        assert done.stderr.startswith("Error: no such dead letter: nobody ")
        assert done.stderr.count("\n") == 1
    assert bundle.depth("proj.dead") == 1


def test_node_that_is_down_or_mute_is_passed_over(bundle: Bundle) -> None:
    """Of several nodes the first that answers is asked, in bounded time."""
    ids = dead.expire(bundle, 2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        nodes = f"amqp://127.0.0.1:1//;amqp://127.0.0.1:{mute.getsockname()[1]}//"
        bundle.env["CELERY_BROKER_URL"] = f"{nodes};{bundle.url}"
        assert dead.ids(bundle) == ids

        began = time.monotonic()
        done = bundle.proj("dead", "list", env={"CELERY_BROKER_URL": nodes, "PROJ_PUBLISH_TIMEOUT": "2"})
        assert time.monotonic() - began < 2 + STARTING
        assert (done.returncode, done.stdout) == (69, "")
        assert "does not answer in time" in done.stderr


def test_broker_that_is_down_is_69(bundle: Bundle) -> None:
    """Every command ends with one line when no broker answers."""
    said, url = "Error: no broker answers at 127.0.0.1:1 ", "amqp://guest:s3cret@127.0.0.1:1//"
    for command in (["list"], ["show", "x"], ["redrive", "--all"], ["drop", "--all", "--yes"]):
        refuses(bundle, 69, said, command=("dead", *command), CELERY_BROKER_URL=url)
