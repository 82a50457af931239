"""`proj dead redrive`: what is meant goes back, once, and the rest stays in order."""

import json
import signal
import time
from typing import Any

import pytest

from proj import dead_letters
from proj.dead_letters import publisher
from tests.lib import dead
from tests.lib.alarm import alarm
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: A time that is over.
LONG_AGO = "2020-01-01T00:00:00+00:00"


def test_redriven_message_waits_for_a_worker_as_it_was(bundle: Bundle) -> None:
    """Body, ids and headers stay; the broker's history, the expiration and an expiry that is over go."""
    headers = {"expires": LONG_AGO, "x-mine": [1, "two", {"three": None}], "CC": ["copies"]}
    dead.publish_task(bundle, "back", 1, 2, headers=headers, expiration="0", priority=3, reply_to="me")
    dead.await_count(bundle, 1)
    (before,) = dead.take(bundle, "proj.dead")
    with bundle.channel() as channel:
        channel.queue_declare("copies", durable=True, auto_delete=False)

    began = time.time()
    done = bundle.proj("dead", "redrive", "--all")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "1 redriven\n")
    assert bundle.depth("copies") == 0
    (after,) = dead.take(bundle, "proj.tasks")
    assert after.body == before.body
    assert after.properties["delivery_mode"] == 2
    assert "expiration" not in after.properties
    for name in ("content_type", "content_encoding", "correlation_id", "priority", "reply_to"):
        assert after.properties[name] == before.properties[name]
    old, new = (dict(message.properties["application_headers"]) for message in (before, after))
    first = new.pop("x-proj-first-death")
    assert first.endswith("Z")
    assert (new.pop("x-proj-redrives"), new.pop("x-proj-repeat")) == (1, True)
    assert began < new.pop("x-proj-redriven") < time.time()
    assert new.pop("expires") is None
    for count in ("x-delivery-count", "x-acquired-count"):
        new.pop(count, None)
    assert new == {name: old[name] for name in ("id", "task", "lang", "retries", "x-mine")}


def test_expiry_that_is_to_come_stays(bundle: Bundle) -> None:
    """Only an expiry that is over is cleared."""
    dead.publish_task(bundle, "later", 1, 2, headers={"expires": "2999-01-01T00:00:00"}, expiration="0")
    dead.await_count(bundle, 1)

    assert bundle.proj("dead", "redrive", "later").returncode == 0
    (message,) = dead.take(bundle, "proj.tasks")
    assert message.properties["application_headers"]["expires"] == "2999-01-01T00:00:00"


def test_retries_begin_anew(bundle: Bundle) -> None:
    """A message whose retries ran out has all of them again; its attempts are those since the redrive."""
    bundle.add_task("""
        @app.task(name="proj.tasks.down", max_retries=1, retry_backoff=False, default_retry_delay=0)
        def down():
            raise ConnectionError("down")
    """)
    worker = bundle.worker()
    bundle.enqueue("task", "proj.tasks.down", "--id", "it")
    dead.await_count(bundle, 1)

    assert bundle.proj("dead", "redrive", "it").returncode == 0

    eventually("it is executed twice again", lambda: len(worker.lines("received")) == 4)
    dead.await_count(bundle, 1)
    (row,) = dead.rows(bundle)
    assert (row["attempts"], row["redrives"]) == (2, 1)


def test_foreign_message_goes_back_byte_by_byte(bundle: Bundle) -> None:
    """What is no Celery message goes back to the queue it came from, whatever its body is."""
    body = b"\xff\x00 no text"
    dead.publish(bundle, body, dead.OTHER, expiration="0", content_encoding="utf-8")
    dead.await_count(bundle, 1)

    assert bundle.proj("dead", "redrive", "--all").returncode == 0
    (message,) = dead.take(bundle, dead.OTHER)
    assert message.body == body


def test_queue_that_is_gone_keeps_its_dead_letters(bundle: Bundle) -> None:
    """What has no queue to go back to stays, with one line and 69; the others go on."""
    dead.publish(bundle, b"text", dead.OTHER, count=2, expiration="0")
    dead.await_count(bundle, 2)
    dead.expire(bundle, 3)
    with bundle.channel() as channel:
        channel.queue_delete(dead.OTHER)

    done = bundle.proj("dead", "redrive", "--all")

    assert done.returncode == 69
    assert done.stderr == "3 redriven, 2 left: queue 'other' is gone (2)\n"
    assert bundle.depth("proj.tasks") == 3
    assert bundle.depth("proj.dead") == 2
    assert [row["arguments"] for row in dead.rows(bundle)] == ["text"] * 2


def test_queue_that_is_full_keeps_its_dead_letters(bundle: Bundle) -> None:
    """A message that the broker refuses to confirm stays."""
    dead.publish(bundle, b"text", dead.OTHER, expiration="0")
    dead.await_count(bundle, 1)
    with bundle.channel() as channel:
        channel.queue_delete(dead.OTHER)
        full = {"x-max-length": 0, "x-overflow": "reject-publish"}
        channel.queue_declare(dead.OTHER, durable=True, auto_delete=False, arguments=full)

    done = bundle.proj("dead", "redrive", "--all")

    assert done.returncode == 69
    assert done.stderr == "0 redriven, 1 left: queue 'other' refused it (1)\n"
    assert bundle.depth("proj.dead") == 1


def test_dry_run_foresees_a_queue_that_is_gone(bundle: Bundle) -> None:
    """It says the same as the redrive, and changes nothing."""
    dead.publish(bundle, b"text", dead.OTHER, count=2, expiration="0")
    dead.await_count(bundle, 2)
    dead.publish(bundle, b"text", "proj.dead")
    dead.expire(bundle, 3)
    with bundle.channel() as channel:
        channel.queue_delete(dead.OTHER)

    foreseen = bundle.proj("dead", "redrive", "--all", "--dry-run")
    assert bundle.depth("proj.dead") == 6
    done = bundle.proj("dead", "redrive", "--all")

    assert foreseen.returncode == done.returncode == 69
    assert foreseen.stderr == done.stderr.replace("redriven", "would be redriven")
    gone = "queue 'other' is gone (2)"
    assert done.stderr == f"3 redriven, 3 left: {publisher.NOWHERE} (1), {gone}\n"


def test_celery_message_put_there_by_hand_goes_to_the_work_queue(bundle: Bundle) -> None:
    """A Celery message with no history is redriven to the queue that workers consume."""
    dead.publish_task(bundle, "by-hand", 1, 2, queue="proj.dead")
    dead.await_count(bundle, 1)

    assert bundle.proj("dead", "redrive", "by-hand").returncode == 0
    assert [m.properties["correlation_id"] for m in dead.take(bundle, "proj.tasks")] == ["by-hand"]


def test_delayed_message_goes_to_the_work_queue_at_once(bundle: Bundle) -> None:
    """The history of a delayed message begins in the delay queues; it goes back to where it died."""
    assert bundle.proj("enqueue", "add", "1", "2", "--countdown", "1", "--id", "late").returncode == 0
    with bundle.channel() as channel:
        message = eventually("the delay is over", lambda: channel.basic_get("proj.tasks"))
        deaths = message.properties["application_headers"]["x-death"]
        assert deaths[0]["queue"].startswith("celery_delayed_")
        channel.basic_reject(message.delivery_tag, requeue=False)
    dead.await_count(bundle, 1)
    assert dead.show(bundle, "late")["queue"] == "proj.tasks"

    assert bundle.proj("dead", "redrive", "late").returncode == 0
    assert bundle.depth("proj.tasks") == 1


def test_choice_is_redriven_and_the_rest_stays_in_order(bundle: Bundle) -> None:
    """Ids, filters and `--limit` choose."""
    ids = dead.expire(bundle, 20)

    done = bundle.proj("dead", "redrive", *ids[1::2])

    assert (done.returncode, done.stderr) == (0, "10 redriven\n")
    assert dead.ids(bundle) == ids[0::2]
    assert [m.properties["correlation_id"] for m in dead.take(bundle, "proj.tasks")] == ids[1::2]
    assert bundle.proj("dead", "redrive", "--all", "--task", "nothing").stderr == "0 redriven\n"
    assert bundle.proj("dead", "redrive", "--all", "--limit", "4").stderr == "4 redriven\n"
    assert dead.ids(bundle) == ids[8::2]


def test_limit_counts_ids_too(bundle: Bundle) -> None:
    """What is beyond the limit is left, and not called unknown."""
    ids = dead.expire(bundle, 3)

    done = bundle.proj("dead", "redrive", *ids, "--limit", "1")

    assert (done.returncode, done.stderr) == (0, "1 redriven\n")
    assert dead.ids(bundle) == ids[1:]
    assert bundle.proj("dead", "drop", *ids[1:], "--limit", "1", "--yes").stderr == "1 dropped\n"


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
    dead.publish_task(bundle, "early", "hey", task="proj.tasks.shout")
    dead.await_count(bundle, 1)
    (row,) = eventually("the failure is stored", lambda: [r for r in dead.rows(bundle) if r["exception"]])
    assert row["exception"] == "NotExecuted: unknown task: 'proj.tasks.shout'"
    old.stop()
    with (bundle.copy_of_the_project() / "proj" / "tasks.py").open("a") as file:
        file.write("""

@app.task(name="proj.tasks.shout")
def shout(text: str) -> str:
    return text.upper()
""")
    bundle.worker(log="new.log")

    assert bundle.proj("dead", "redrive", "early").returncode == 0

    def outcome() -> Any:
        found = json.loads(bundle.proj("result", "early", "--json").stdout)
        return found if found["state"] == "SUCCESS" else None

    assert eventually("the task succeeds", outcome)["result"] == "HEY"
    assert dead.ids(bundle) == []


def test_message_that_fails_again_is_counted_and_redriven_once(bundle: Bundle) -> None:
    """With a worker that fails each at once, `--all` ends after those that were there, which come back."""
    worker = bundle.worker().ready()
    for number in range(20):
        dead.publish_task(bundle, f"wrong-{number}", "a", number)
    dead.await_count(bundle, 20)

    done = bundle.proj("dead", "redrive", "--all")

    assert (done.returncode, done.stderr) == (0, "20 redriven\n")
    dead.await_count(bundle, 20)
    assert bundle.depth("proj.tasks") == 0
    assert {row["redrives"] for row in dead.rows(bundle)} == {1}
    assert bundle.proj("dead", "redrive", "wrong-3").returncode == 0
    dead.await_count(bundle, 20)
    row = dead.show(bundle, "wrong-3")
    assert row["redrives"] == 2
    assert row["first"] <= row["last"]
    worker.stop()


def test_redrive_that_is_killed_before_its_acknowledgement_duplicates(bundle: Bundle) -> None:
    """Between confirm and acknowledgement the message is in both queues: twice, and never nowhere."""
    dead.expire(bundle, 1)

    killed = dead.killed_at(bundle, "settle", "dead_letters.redrive(app, dead_letters.Wanted())")

    assert killed.returncode == -signal.SIGKILL
    dead.await_count(bundle, 1)
    (copy,), (original,) = dead.take(bundle, "proj.tasks"), dead.take(bundle, "proj.dead")
    assert copy.body == original.body
    assert copy.properties["application_headers"]["id"] == "id-0"
    assert copy.properties["application_headers"]["x-proj-repeat"] is True


def test_redrive_that_is_killed_before_its_confirm_loses_nothing(bundle: Bundle) -> None:
    """A dead letter whose copy was not confirmed is still there."""
    dead.expire(bundle, 1)

    killed = dead.killed_at(
        bundle, "_on_ack", "dead_letters.redrive(app, dead_letters.Wanted())", "publisher.Window"
    )

    assert killed.returncode == -signal.SIGKILL
    dead.await_count(bundle, 1)


def test_redrive_that_is_not_confirmed_is_75(own: Bundle) -> None:
    """While the broker's memory alarm is on it confirms nothing: then nothing is lost, in bounded time."""
    dead.expire(own, 3)
    with alarm(own.node, "memory"):
        done = own.proj("dead", "redrive", "--all", env={"PROJ_PUBLISH_TIMEOUT": "5"})

    assert (done.returncode, done.stdout) == (75, "")
    assert "since its memory or disk alarm is on; no dead letter is lost" in done.stderr
    assert done.stderr.count("\n") == 1
    dead.await_count(own, 3)
    assert own.proj("dead", "redrive", "--all").stderr == "3 redriven\n"


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("redrive", "; no dead letter is lost (repeat"),
        ("drop", " (repeat the command; up to 100 more may be dropped)"),
    ],
)
def test_broker_that_goes_away_after_some_is_75(bundle: Bundle, work: str, said: str) -> None:
    """It is told how many are done, and not that the broker was never reached."""
    dead.expire(bundle, 250)

    line = bundle.python(f"""
import json
from proj import app, dead_letters, errors
from proj.dead_letters.reader import _Reader
from proj.rabbitmq import connection
settle = _Reader.settle
def settle_two(reader, letters, windows=iter([1, 2])):
    if not next(windows, None):
        connection._shut(reader.broker)
    settle(reader, letters)
_Reader.settle = settle_two
try:
    dead_letters.{work}(app, dead_letters.Wanted())
except errors.OutcomeUnknown as error:
    print(json.dumps(str(error)))
""")

    assert f"after 200 dead letters the broker did not answer{said}" in line
    dead.await_count(bundle, 50)
    assert bundle.depth("proj.tasks") == (250 if work == "redrive" else 0)


def test_redriving_many_needs_no_more_memory_than_a_few(bundle: Bundle) -> None:
    """They are streamed: of five times as many, no more are held at a time."""
    peaks = []
    for count in (dead_letters.CHUNK, 5 * dead_letters.CHUNK):
        body = [["x" * 2_000], {}, {}]
        headers = {"id": "many", "task": "proj.tasks.sleep_dots"}
        dead.publish(bundle, body, "proj.dead", count=count, application_headers=headers)
        dead.await_count(bundle, count)
        done, peak = bundle.python("""
import json, tracemalloc
from proj import app, dead_letters
app.connection_for_write().connect()  # what is imported is no matter
tracemalloc.start()
done = dead_letters.redrive(app, dead_letters.Wanted()).done
print(json.dumps([done, tracemalloc.get_traced_memory()[1]]))
""")
        assert done == count
        peaks.append(peak)

    assert bundle.depth("proj.tasks") == 6 * dead_letters.CHUNK
    assert peaks[0] > 2_000 * dead_letters.CHUNK
    assert peaks[1] < 2.5 * peaks[0]


def test_redrive_shows_a_progress_bar_on_a_terminal(bundle: Bundle) -> None:
    """The bar is drawn on a terminal's stderr, before the summary."""
    dead.expire(bundle, 3)
    done, drawn = bundle.proj_on_terminal("dead", "redrive", "--all")

    assert (done.returncode, done.stdout) == (0, b"")
    assert b"redriving" in drawn
    assert b"3 redriven" in drawn
