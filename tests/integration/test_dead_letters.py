"""`proj dead`, through the installed console script, over dead letters of every kind."""

import json
import signal
import subprocess
import sys
from typing import Any

import amqp
import pytest

from proj import dead_letters, queues
from tests.bundle import Bundle, eventually

#: A time that is over.
LONG_AGO = "2020-01-01T00:00:00+00:00"

#: The queue of a program that is not ours, whose messages die into our dead-letter queue.
OTHER = "other"


def _publish(
    bundle: Bundle, body: object, queue: str = "proj.tasks", count: int = 1, **properties: Any
) -> None:
    with bundle.channel() as channel:
        queues.declare(channel)
        if queue == OTHER:
            arguments = {"x-dead-letter-exchange": "proj.dead"}
            channel.queue_declare(OTHER, durable=True, auto_delete=False, arguments=arguments)
        for _ in range(count):
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            channel.basic_publish(amqp.Message(text, **properties), routing_key=queue)


def _publish_task(
    bundle: Bundle, task_id: str, *args: object, task: str = "proj.tasks.add", **more: Any
) -> None:
    """Publish what Celery publishes, without the checks that `proj enqueue` makes."""
    headers = {"id": task_id, "task": task, "lang": "py", "retries": 0} | more.pop("headers", {})
    properties = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "correlation_id": task_id,
        "application_headers": headers,
    }
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    _publish(bundle, [args, {}, embedded], **properties, **more)


def _expire(bundle: Bundle, count: int, start: int = 0) -> list[str]:
    """Dead letters that no worker was needed for; their ids, oldest first."""
    ids = [f"id-{number}" for number in range(start, start + count)]
    before = _dead(bundle)
    for task_id in ids:
        _publish_task(bundle, task_id, 1, 2, expiration="0")
    _await_dead(bundle, before + count)
    return ids


def _expire_many(bundle: Bundle, count: int) -> None:
    _publish(bundle, [[], {}, {}], count=count, expiration="0")
    _await_dead(bundle, count)


def _dead(bundle: Bundle) -> int:
    with bundle.channel() as channel:
        queues.declare(channel)
    return bundle.depth("proj.dead")


def _await_dead(bundle: Bundle, count: int) -> None:
    eventually(f"{count} dead letters", lambda: bundle.depth("proj.dead") == count)


def _take(bundle: Bundle, queue: str) -> list[amqp.Message]:
    """All messages of the queue as the broker hands them out; they go back when this returns."""
    with bundle.channel() as channel:
        channel.auto_decode = False
        messages = []
        while message := channel.basic_get(queue):
            messages.append(message)
        return messages


def _rows(bundle: Bundle, *options: str) -> list[dict[str, Any]]:
    done = bundle.proj("dead", "list", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _ids(bundle: Bundle, *options: str) -> list[str]:
    return [row["id"] for row in _rows(bundle, *options)]


def _show(bundle: Bundle, task_id: str) -> dict[str, Any]:
    done = bundle.proj("dead", "show", task_id, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def _without_counts(message: dict[str, Any]) -> dict[str, Any]:
    """What `show` says, but for the broker's own count of how often it was handed out."""
    headers = {name: value for name, value in message["headers"].items() if name != "x-delivery-count"}
    return message | {"headers": headers}


# --- Looking


def test_no_dead_letters_are_an_empty_list(bundle: Bundle) -> None:
    """A broker that knows nothing of us gets the topology, and has no dead letters."""
    done = bundle.proj("dead", "list")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "No dead letters.\n")
    assert bundle.has("proj.dead")


def test_list_says_why_in_words(bundle: Bundle) -> None:
    """A line has the id, task, arguments, reason, attempts and times; `--json` has the same keys."""
    _expire(bundle, 1)

    lines = bundle.proj("dead", "list").stdout.splitlines()
    (row,) = _rows(bundle)
    assert lines[0].split() == list(row)
    assert (row["id"], row["task"], row["arguments"]) == ("id-0", "proj.tasks.add", "1, 2")
    assert row["reason"] == "expired: no worker took it in time"
    assert (row["attempts"], row["redrives"], row["exception"]) == (0, 0, None)
    assert row["first"] == row["last"]
    assert row["last"].endswith("Z")
    for value in ("id-0", "proj.tasks.add", "1, 2", row["reason"], row["last"]):
        assert value in lines[1]


def test_failed_task_has_its_exception(bundle: Bundle) -> None:
    """What a worker rejected is listed with its exception, and shown with its traceback."""
    bundle.worker()
    _publish_task(bundle, "wrong", "a", 2)
    _await_dead(bundle, 1)

    (row,) = eventually("the failure is stored", lambda: [r for r in _rows(bundle) if r["exception"]])
    assert row["reason"] == "rejected: a worker could not execute it"
    assert row["attempts"] == 1
    assert row["exception"].startswith("BadArguments: ")
    shown = bundle.proj("dead", "show", "wrong")
    assert "traceback   Traceback (most recent call last)" in shown.stdout
    assert "x-death" in shown.stdout


def test_message_that_kills_its_workers_is_told(bundle: Bundle) -> None:
    """The delivery limit is a reason of its own, with the number of deliveries."""
    _publish_task(bundle, "killer", 1, 2)
    deliveries = 0
    with bundle.channel() as channel:
        while _dead(bundle) == 0:
            if message := channel.basic_get("proj.tasks"):
                deliveries += 1
                channel.basic_reject(message.delivery_tag, requeue=True)

    (row,) = _rows(bundle)
    assert row["reason"] == f"delivery_limit: it killed its workers {deliveries} times"
    assert row["attempts"] == deliveries


@pytest.mark.parametrize(
    ("body", "properties", "listed_id"),
    [
        (b"\xff not JSON", {}, "-"),
        (b"", {"correlation_id": "mine"}, "mine"),
        (b"[1, 2]", {"application_headers": {"id": 5, "task": ["x"]}}, "-"),
        (b"{}", {"application_headers": {"id": "half", "task": "proj.tasks.add"}}, "half"),
        (b"[[], {}, {}]", {"application_headers": {"x-death": "none", "id": "odd"}}, "odd"),
        (b"x", {"application_headers": {"x-death": [{"queue": "q" * 300, "reason": 7}]}}, "-"),
        (b"[" * 100_000, {"content_type": "application/json", "correlation_id": "deep"}, "deep"),
    ],
    ids=["bytes", "empty", "headers", "body", "death", "long", "nested"],
)
def test_what_is_no_celery_message_is_listed(
    bundle: Bundle, body: bytes, properties: dict[str, Any], listed_id: str
) -> None:
    """Whatever someone puts into the dead-letter queue by hand is listed, shown, and never redriven."""
    _publish(bundle, body, "proj.dead", **properties)
    _await_dead(bundle, 1)

    (row,) = _rows(bundle)
    assert row["id"] == listed_id
    assert row["task"] == "no Celery message"
    assert row["reason"] == "unknown: put here by hand"
    assert bundle.proj("dead", "list").returncode == 0
    assert bundle.proj("dead", "show", listed_id).returncode == 0
    done = bundle.proj("dead", "redrive", "--all")
    assert done.returncode == 65
    assert done.stderr == "0 redriven, 1 left: not known where it came from, and no Celery message (1)\n"
    assert bundle.depth("proj.dead") == 1


def test_message_cannot_steer_the_terminal(bundle: Bundle) -> None:
    """Escape sequences in a message are printed as text."""
    _publish_task(bundle, "\x1b[2Jid", 1, task="\x1b]0;task\x07", queue="proj.dead")
    _await_dead(bundle, 1)

    for command in (["list"], ["show", "\x1b[2Jid"]):
        done = bundle.proj("dead", *command)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout


def test_looking_changes_nothing_however_often(bundle: Bundle) -> None:
    """After 20 looks of every kind each message is there, unchanged, in its place."""
    ids = _expire(bundle, 30)
    before = [_without_counts(_show(bundle, task_id)) for task_id in (ids[0], ids[-1])]

    for number in range(20):
        limit = str(1 + number * 7 % 40)
        assert _ids(bundle, "--limit", limit) == ids[: int(limit)]
        assert bundle.depth("proj.dead") == 30
    assert bundle.proj("dead", "redrive", "--all", "--dry-run").stderr == "30 would be redriven\n"
    assert bundle.proj("dead", "drop", "--all", "--dry-run").stderr == "30 would be dropped\n"
    assert bundle.proj("dead", "list", "--task", "nothing").returncode == 0

    assert _ids(bundle) == ids
    assert [_without_counts(_show(bundle, task_id)) for task_id in (ids[0], ids[-1])] == before


def test_looking_without_reading_on_turns_the_order(bundle: Bundle) -> None:
    """The control for the test above: the broker itself does not keep the order."""
    ids = _expire(bundle, 9)

    turned = bundle.python("""
import json
from proj import dead_letters
dead_letters._Reader._read_before = property(lambda self: False, lambda self, value: None)
looks = [[letter.id for letter in dead_letters.listing(dead_letters.Wanted(), 3)] for _ in range(2)]
dead_letters.listing(dead_letters.Wanted(), 2)
print(json.dumps([letter.id for letter in dead_letters.listing(dead_letters.Wanted(), 9)]))
""")

    assert sorted(turned) == ids
    assert turned != ids


def test_list_reads_no_more_than_it_shows(bundle: Bundle) -> None:
    """Of 2,000 dead letters a list of 50 takes 50, and a few more for each time that it is repeated."""
    _expire_many(bundle, 2_000)

    assert len(_rows(bundle)) == 50
    assert sum(bool(message.delivery_info["redelivered"]) for message in _take_all(bundle)) == 50


def test_repeated_lists_read_little_more(bundle: Bundle) -> None:
    """Ten lists of 50 take fewer than 70 of 2,000 dead letters."""
    _expire_many(bundle, 2_000)

    for _ in range(10):
        assert len(_rows(bundle)) == 50
    assert sum(bool(message.delivery_info["redelivered"]) for message in _take_all(bundle)) < 70


def _take_all(bundle: Bundle) -> list[amqp.Message]:
    messages = _take(bundle, "proj.dead")
    assert len(messages) == 2_000
    return messages


@pytest.mark.parametrize("command", [["list"], ["redrive", "--all"], ["drop", "--all", "--yes"]])
def test_one_program_at_a_time(bundle: Bundle, command: list[str]) -> None:
    """While one looks, another is told so and sees nothing, instead of half."""
    ids = _expire(bundle, 4)
    code = """
import sys
from proj import dead_letters
with dead_letters._reading() as reader:
    print(len(next(reader.chunks(2))), flush=True)
    sys.stdin.read()
"""
    looking = subprocess.Popen(
        [sys.executable, "-c", code], env=bundle.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with looking:
        assert looking.stdout is not None
        assert looking.stdout.readline() == b"2\n"
        done = bundle.proj("dead", *command)
        looking.communicate(timeout=30)

    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == (
        "Error: another program is looking at the dead letters (try again when it has ended)\n"
    )
    assert _ids(bundle) == ids


def test_foreign_consumer_is_told(bundle: Bundle) -> None:
    """A program of someone else that consumes the queue would take half of it, so nothing is read."""
    _expire(bundle, 4)
    with bundle.channel() as channel:
        channel.basic_qos(0, 1, False)
        channel.basic_consume("proj.dead")
        done = bundle.proj("dead", "list")

    assert done.returncode == 69
    assert "another program is looking" in done.stderr


def test_look_that_is_killed_loses_nothing(bundle: Bundle) -> None:
    """A program that is killed while it looks gives everything back."""
    ids = _expire(bundle, 4)

    killed = _killed_at(bundle, "give_back", "dead_letters.listing(dead_letters.Wanted(), 3)")

    assert killed.returncode == -signal.SIGKILL
    _await_dead(bundle, 4)
    assert sorted(_ids(bundle)) == ids


def _killed_at(
    bundle: Bundle, method: str, call: str, owner: str = "_Reader"
) -> subprocess.CompletedProcess[str]:
    """A program that is killed, as by SIGKILL from outside, exactly when it gets to `method`."""
    code = f"""
import os, signal
from proj import dead_letters
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
dead_letters.{owner}.{method} = die
{call}
"""
    return bundle.run(sys.executable, "-c", code)


def test_filters_choose(bundle: Bundle) -> None:
    """`--task` and `--reason` choose, in order, and `--limit` ends the list."""
    ids = _expire(bundle, 3)
    _publish_task(bundle, "tasks", "text", task="proj.tasks.sleep_dots", queue="proj.dead")
    _await_dead(bundle, 4)

    assert _ids(bundle, "--task", "proj.tasks.add") == ids
    assert _ids(bundle, "--task", "proj.tasks.add", "--limit", "2") == ids[:2]
    assert _ids(bundle, "--reason", "expired") == ids
    assert _ids(bundle, "--reason", "unknown") == ["tasks"]
    assert _ids(bundle, "--reason", "maxlen") == []
    assert bundle.proj("dead", "list", "--reason", "nonsense").returncode == 2


def test_result_store_that_is_down_does_not_hide_dead_letters(bundle: Bundle) -> None:
    """The list is complete but for the exceptions, and says so."""
    _publish_task(bundle, "failed", 1, 2)
    with bundle.channel() as channel:
        message = eventually("the message", lambda: channel.basic_get("proj.tasks"))
        channel.basic_reject(message.delivery_tag, requeue=False)
    _await_dead(bundle, 1)

    store = {"CELERY_RESULT_BACKEND": "db+sqlite:////proc/nowhere/results"}
    done = bundle.proj("dead", "list", "--json", env=store)

    assert done.returncode == 0
    assert json.loads(done.stdout)["reason"].startswith("rejected")
    assert done.stderr.startswith("Exceptions are missing: ")
    assert done.stderr.count("\n") == 1


def test_unknown_id_is_65(bundle: Bundle) -> None:
    """An id that no dead letter has is named, in one line."""
    _expire(bundle, 1)

    for command in (["show", "nobody"], ["redrive", "nobody"], ["drop", "nobody", "--yes"]):
        done = bundle.proj("dead", *command)
        assert (done.returncode, done.stdout) == (65, "")
        assert "there is no such dead letter: nobody" in done.stderr
    assert bundle.depth("proj.dead") == 1


def test_broker_that_is_down_is_69(bundle: Bundle) -> None:
    """Every command ends with one line when no broker answers."""
    down = {"CELERY_BROKER_URL": "amqp://guest:secret@127.0.0.1:1//"}
    for command in (["list"], ["show", "x"], ["redrive", "--all"], ["drop", "--all", "--yes"]):
        done = bundle.proj("dead", *command, env=down)
        assert (done.returncode, done.stdout) == (69, "")
        assert done.stderr.startswith("Error: no broker answers at 127.0.0.1:1 ")
        assert done.stderr.count("\n") == 1


# --- Redriving


def test_redriven_message_waits_for_a_worker_as_it_was(bundle: Bundle) -> None:
    """Body, ids and headers stay; the broker's history, the expiration and an expiry that is over go."""
    headers = {"expires": LONG_AGO, "x-mine": [1, "two", {"three": None}], "CC": ["copies"]}
    _publish_task(bundle, "back", 1, 2, headers=headers, expiration="0", priority=3, reply_to="me")
    _await_dead(bundle, 1)
    (before,) = _take(bundle, "proj.dead")
    with bundle.channel() as channel:
        channel.queue_declare("copies", durable=True, auto_delete=False)

    done = bundle.proj("dead", "redrive", "--all")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "1 redriven\n")
    assert bundle.depth("copies") == 0
    (after,) = _take(bundle, "proj.tasks")
    assert after.body == before.body
    assert after.properties["delivery_mode"] == 2
    assert "expiration" not in after.properties
    for name in ("content_type", "content_encoding", "correlation_id", "priority", "reply_to"):
        assert after.properties[name] == before.properties[name]
    old, new = (dict(message.properties["application_headers"]) for message in (before, after))
    first = new.pop("x-proj-first-death")
    assert first.endswith("Z")
    assert (new.pop("x-proj-redrives"), new.pop("x-proj-repeat")) == (1, True)
    assert new.pop("expires") is None
    new.pop("x-delivery-count", None)
    assert new == {name: old[name] for name in ("id", "task", "lang", "retries", "x-mine")}


def test_expiry_that_is_to_come_stays(bundle: Bundle) -> None:
    """Only an expiry that is over is cleared."""
    _publish_task(bundle, "later", 1, 2, headers={"expires": "2999-01-01T00:00:00"}, expiration="0")
    _await_dead(bundle, 1)

    assert bundle.proj("dead", "redrive", "later").returncode == 0
    (message,) = _take(bundle, "proj.tasks")
    assert message.properties["application_headers"]["expires"] == "2999-01-01T00:00:00"


def test_foreign_message_goes_back_byte_by_byte(bundle: Bundle) -> None:
    """What is no Celery message goes back to the queue it came from, whatever its body is."""
    body = b"\xff\x00 no text"
    _publish(bundle, body, OTHER, expiration="0", content_encoding="utf-8")
    _await_dead(bundle, 1)

    assert bundle.proj("dead", "redrive", "--all").returncode == 0
    (message,) = _take(bundle, OTHER)
    assert message.body == body


def test_queue_that_is_gone_keeps_its_dead_letters(bundle: Bundle) -> None:
    """What has no queue to go back to stays, with one line and 69; the others go on."""
    _publish(bundle, b"text", OTHER, count=2, expiration="0")
    _await_dead(bundle, 2)
    _expire(bundle, 3)
    with bundle.channel() as channel:
        channel.queue_delete(OTHER)

    done = bundle.proj("dead", "redrive", "--all")

    assert done.returncode == 69
    assert done.stderr == "3 redriven, 2 left: queue 'other' is gone (2)\n"
    assert bundle.depth("proj.tasks") == 3
    assert bundle.depth("proj.dead") == 2
    assert [row["arguments"] for row in _rows(bundle)] == ["text"] * 2


def test_queue_that_is_full_keeps_its_dead_letters(bundle: Bundle) -> None:
    """A message that the broker refuses to confirm stays."""
    _publish(bundle, b"text", OTHER, expiration="0")
    _await_dead(bundle, 1)
    with bundle.channel() as channel:
        channel.queue_delete(OTHER)
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        channel.queue_declare(OTHER, durable=True, auto_delete=False, arguments=full)

    done = bundle.proj("dead", "redrive", "--all")

    assert done.returncode == 69
    assert done.stderr == "0 redriven, 1 left: queue 'other' refused it (1)\n"
    assert bundle.depth("proj.dead") == 1


def test_celery_message_put_there_by_hand_goes_to_the_work_queue(bundle: Bundle) -> None:
    """A Celery message with no history is redriven to the queue that workers consume."""
    _publish_task(bundle, "by-hand", 1, 2, queue="proj.dead")
    _await_dead(bundle, 1)

    assert bundle.proj("dead", "redrive", "by-hand").returncode == 0
    assert [m.properties["correlation_id"] for m in _take(bundle, "proj.tasks")] == ["by-hand"]


def test_delayed_message_goes_to_the_work_queue_at_once(bundle: Bundle) -> None:
    """The history of a delayed message begins in the delay queues; it goes back to where it died."""
    assert bundle.proj("enqueue", "add", "1", "2", "--countdown", "1", "--id", "late").returncode == 0
    with bundle.channel() as channel:
        message = eventually("the delay is over", lambda: channel.basic_get("proj.tasks"))
        deaths = message.properties["application_headers"]["x-death"]
        assert deaths[0]["queue"].startswith("celery_delayed_")
        channel.basic_reject(message.delivery_tag, requeue=False)
    _await_dead(bundle, 1)
    assert _show(bundle, "late")["queue"] == "proj.tasks"

    assert bundle.proj("dead", "redrive", "late").returncode == 0
    assert bundle.depth("proj.tasks") == 1


def test_choice_is_redriven_and_the_rest_stays_in_order(bundle: Bundle) -> None:
    """Ids, filters and `--limit` choose; of 130 and more, which the broker stacks up, none comes back."""
    ids = _expire(bundle, 260)
    chosen = ids[1::2]

    done = bundle.proj("dead", "redrive", *chosen)

    assert (done.returncode, done.stderr) == (0, "130 redriven\n")
    assert _ids(bundle, "--limit", "1000") == ids[0::2]
    assert [m.properties["correlation_id"] for m in _take(bundle, "proj.tasks")] == chosen
    assert bundle.proj("dead", "redrive", "--all", "--task", "nothing").stderr == "0 redriven\n"
    assert bundle.proj("dead", "redrive", "--all", "--limit", "4").stderr == "4 redriven\n"
    assert _ids(bundle, "--limit", "1000") == ids[8::2]


@pytest.mark.parametrize("options", [[], ["--all", "some-id"]])
def test_redrive_and_drop_need_to_be_told_what(bundle: Bundle, options: list[str]) -> None:
    """Either ids or `--all`; never everything by a slip."""
    for command in ("redrive", "drop"):
        done = bundle.proj("dead", command, *options)
        assert done.returncode == 2
        assert "give either ids or --all" in done.stderr


def test_redriven_task_is_executed_when_its_cause_is_gone(bundle: Bundle) -> None:
    """A task that no worker knew is a dead letter; with a worker that knows it, it ends well."""
    old = bundle.worker(log="old.log")
    _publish_task(bundle, "early", "hey", task="proj.tasks.shout")
    _await_dead(bundle, 1)
    (row,) = eventually("the failure is stored", lambda: [r for r in _rows(bundle) if r["exception"]])
    assert "NotRegistered" in row["exception"]
    old.stop()
    with (bundle.copy_of_the_project() / "proj" / "tasks.py").open("a") as file:
        file.write("""

@app.task(name="proj.tasks.shout", pydantic=True)
def shout(text: str) -> str:
    return text.upper()
""")
    bundle.worker(log="new.log")

    assert bundle.proj("dead", "redrive", "early").returncode == 0

    def outcome() -> Any:
        found = json.loads(bundle.proj("result", "early", "--json").stdout)
        return found if found["state"] == "SUCCESS" else None

    assert eventually("the task succeeds", outcome)["result"] == "HEY"
    assert _ids(bundle) == []


def test_message_that_fails_again_is_counted_and_redriven_once(bundle: Bundle) -> None:
    """With a worker that fails each at once, `--all` ends after those that were there, which come back."""
    worker = bundle.worker().ready()
    for number in range(20):
        _publish_task(bundle, f"wrong-{number}", "a", number)
    _await_dead(bundle, 20)

    done = bundle.proj("dead", "redrive", "--all")

    assert (done.returncode, done.stderr) == (0, "20 redriven\n")
    _await_dead(bundle, 20)
    assert bundle.depth("proj.tasks") == 0
    assert {row["redrives"] for row in _rows(bundle)} == {1}
    assert bundle.proj("dead", "redrive", "wrong-3").returncode == 0
    _await_dead(bundle, 20)
    row = _show(bundle, "wrong-3")
    assert row["redrives"] == 2
    assert row["first"] <= row["last"]
    worker.stop()


def test_redrive_that_is_killed_before_its_acknowledgement_duplicates(bundle: Bundle) -> None:
    """Between confirm and acknowledgement the message is in both queues: twice, and never nowhere."""
    _expire(bundle, 1)

    killed = _killed_at(bundle, "settle", "dead_letters.redrive(dead_letters.Wanted())")

    assert killed.returncode == -signal.SIGKILL
    _await_dead(bundle, 1)
    (copy,), (original,) = _take(bundle, "proj.tasks"), _take(bundle, "proj.dead")
    assert copy.body == original.body
    assert copy.properties["application_headers"]["id"] == "id-0"
    assert copy.properties["application_headers"]["x-proj-repeat"] is True


def test_redrive_that_is_killed_before_its_confirm_loses_nothing(bundle: Bundle) -> None:
    """A dead letter whose copy was not confirmed is still there."""
    _expire(bundle, 1)

    killed = _killed_at(bundle, "_on_ack", "dead_letters.redrive(dead_letters.Wanted())", "_Publisher")

    assert killed.returncode == -signal.SIGKILL
    _await_dead(bundle, 1)


def test_redrive_that_is_not_confirmed_is_75(bundle: Bundle) -> None:
    """While the broker's memory alarm is on it confirms nothing: then nothing is lost, in bounded time."""
    _expire(bundle, 3)
    try:
        bundle.node.ctl("set_vm_memory_high_watermark", "0.0000001")
        eventually("the alarm is on", lambda: bundle.management("GET", "nodes")[0]["mem_alarm"])
        done = bundle.proj("dead", "redrive", "--all", env={"PROJ_PUBLISH_TIMEOUT": "1"})
    finally:
        bundle.node.ctl("set_vm_memory_high_watermark", "0.4")

    assert (done.returncode, done.stdout) == (75, "")
    assert "no dead letter is lost" in done.stderr
    assert done.stderr.count("\n") == 1
    _await_dead(bundle, 3)
    assert bundle.proj("dead", "redrive", "--all").stderr == "3 redriven\n"


def test_redrive_shows_a_progress_bar_on_a_terminal(bundle: Bundle) -> None:
    """The bar is drawn on a terminal's stderr, before the summary."""
    _expire(bundle, 3)
    done, drawn = bundle.proj_on_terminal("dead", "redrive", "--all")

    assert (done.returncode, done.stdout) == (0, b"")
    assert b"redriving" in drawn
    assert b"3 redriven" in drawn


# --- Dropping


def test_drop_needs_yes(bundle: Bundle) -> None:
    """Without `--yes` nothing is dropped, and the number is told."""
    _expire(bundle, 3)

    done = bundle.proj("dead", "drop", "--all")

    assert (done.returncode, done.stdout) == (2, "")
    assert "3 dead letters would be gone for good; say --yes" in done.stderr
    assert bundle.depth("proj.dead") == 3


def test_drop_deletes_what_is_chosen(bundle: Bundle) -> None:
    """Ids, filters and `--limit` choose what is dropped; the rest stays in order."""
    ids = _expire(bundle, 6)

    assert bundle.proj("dead", "drop", ids[1], "--yes").stderr == "1 dropped\n"
    assert _ids(bundle) == [ids[0], *ids[2:]]
    assert bundle.proj("dead", "drop", "--all", "--reason", "maxlen", "--yes").stderr == "0 dropped\n"
    assert bundle.proj("dead", "drop", "--all", "--limit", "2", "--yes").stderr == "2 dropped\n"
    assert _ids(bundle) == ids[3:]
    assert bundle.proj("dead", "drop", "--all", "--yes").stderr == "3 dropped\n"
    assert bundle.depth("proj.dead") == 0
    assert bundle.depth("proj.tasks") == 0


def test_dropping_many_leaves_none(bundle: Bundle) -> None:
    """More messages than a chunk, or than a window, are all acknowledged when the command ends."""
    count = 2 * dead_letters.CHUNK + dead_letters.WINDOW + 1
    _expire_many(bundle, count)

    done = bundle.proj("dead", "drop", "--all", "--yes")

    assert (done.returncode, done.stderr) == (0, f"{count} dropped\n")
    assert bundle.depth("proj.dead") == 0
    assert _take(bundle, "proj.dead") == []
