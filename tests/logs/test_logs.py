"""What is logged: a line an event, by which a message can be followed from its publisher to its end."""

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.logged import MOODY, PRINTS, Shared
from tests.lib.proxy import Proxy
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.watcher import watching

pytestmark = pytest.mark.used_vhost

JSON = {"PROJ_LOG_FORMAT": "json"}


@pytest.fixture(scope="module")
def json_worker(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with vhosts.lend(tmp_path_factory.mktemp("json")) as bundle:
        bundle.env |= JSON
        yield Shared(bundle)


@pytest.fixture(scope="module")
def text_worker(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with vhosts.lend(tmp_path_factory.mktemp("text")) as bundle:
        yield Shared(bundle)


def _objects(*texts: str) -> list[dict[str, Any]]:
    """What the programs logged, in the order of time; every line is an object of JSON."""
    found = [json.loads(line) for text in texts for line in text.splitlines()]
    return sorted(found, key=lambda line: line["time"])


def _way(lines: Iterable[dict[str, Any]], task_id: str) -> list[str]:
    return [line["event"] for line in lines if line.get("task_id") == task_id and line["event"] != "log"]


def test_one_id_shows_the_whole_way_of_a_message(json_worker: Shared) -> None:
    """From its publisher through a retry, death and redrive to its end, in the JSON of three programs."""
    log, bundle = json_worker.begin(), json_worker.bundle
    published = bundle.proj("enqueue", "task", "proj.tasks.moody", "--id", "it").stderr
    log.logs("dead_lettered", "it")
    dead.await_letter(bundle, "it")
    (bundle.folder / "mended").touch()
    redriven, counted = bundle.proj("dead", "redrive", "it").stderr.splitlines()
    log.logs("succeeded", "it")

    lines = _objects(published, log.text(), redriven)
    assert _way(lines, "it") == [
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


def test_text_has_a_line_an_event_with_id_and_name(text_worker: Shared) -> None:
    """The same way in text, where a traceback or a line break of the task does not begin a line."""
    log, worker = text_worker.begin(), text_worker.worker
    for name in ("moody", "chatty"):
        text_worker.bundle.enqueue("task", f"proj.tasks.{name}", "--id", name)

    log.says("Task proj.tasks.moody[moody] became a dead letter: failed")
    log.says("Task proj.tasks.chatty[chatty] succeeded in")

    words = [line.text.split()[0].strip(",:") for line in worker.lines() if line.id == "moody"]
    assert words == ["received", "published", "retry", "received", "raised", "became"]
    assert re.search(r"\[moody\] received, waited \d+\.\d+ s", log.text())
    assert {line.task for line in worker.lines() if line.id == "moody"} == {"proj.tasks.moody"}
    assert r"Task proj.tasks.moody[moody] raised unexpected: ValueError('no such\nthing')" in log.text()
    for said in ("from Celery's logger", "from a library", "from print", "with a traceback"):
        assert f"] proj.tasks.chatty[chatty]: {said}\n" in log.text()
    assert log.text().count("Traceback") == 1  # the one that the task asked for


def test_lines_of_a_task_carry_its_id(json_worker: Shared) -> None:
    """Whatever way a task writes, also what JSON cannot carry, the line has the task's id and name."""
    log = json_worker.begin()
    json_worker.bundle.enqueue("task", "proj.tasks.chatty", "--id", "chatty")
    log.logs("succeeded", "chatty")

    lines = [line for line in _objects(log.text()) if line["event"] == "log" and "task_id" in line]

    assert {(line["task_id"], line["task_name"]) for line in lines} == {("chatty", "proj.tasks.chatty")}
    library, celerys, printed, warned, failed = (
        next(line for line in lines if part in line["message"])
        for part in ("a library", "Celery's\nlogger", "from\nprint", "from warnings", "with a traceback")
    )
    assert (library["order"], library["share"], library["logger"]) == (4711, "nan", "any.library")
    assert celerys["logger"] == "proj.tasks"
    assert printed["logger"] == "celery.redirected"
    assert warned["logger"] == "py.warnings"
    assert failed["exception"] == "ZeroDivisionError('division by zero')"
    assert "1 / 0" in failed["traceback"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_what_is_printed_is_a_line_for_each_line(json_worker: Shared, bundle: Bundle, pool: str) -> None:
    """`print` writes its arguments one by one; what has no end yet is logged with the task that began it."""
    if pool == "prefork":
        bundle, text = json_worker.bundle, json_worker.begin().text
    else:
        bundle.env |= JSON
        bundle.add_task(PRINTS)
        text = bundle.worker("-P", pool).text
    for name in ("first", "second"):
        bundle.enqueue("task", "proj.tasks.prints", "--id", name)
    bundle.proj("enqueue", "add", "1", "2", "--wait")  # the one slot is done with the two before
    lines = [line for line in _objects(text()) if line["logger"] == "celery.redirected"]

    printed = ["several words 4711", "flushed", "on stderr too", "begun"]
    assert [(line["task_id"], line["message"]) for line in lines] == [
        (name, words) for name in ("first", "second") for words in printed
    ]


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

    lines = [line for line in _objects(log.text()) if line.get("task_id") in ENDS]
    assert {action: _way(lines, action) for action in ENDS} == ENDS
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
        return [line for line in _objects(log.text()) if line["event"] == "dead_lettered"]

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

    lines = _objects(worker.text())
    assert _way(lines, "long") == ["received", "given_back", "received", "given_back"]
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
    assert _way(_objects(log.text()), "twice") == ["received", "succeeded", "received", "duplicate"]


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
    assert _way(_objects(*lines), "it") == ["publish_repeated", "publish_unknown"]
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

    lines = _objects(log.text(), dropped)
    assert _way(lines, "no-more") == ["received", "revoked"]
    assert _way(lines, "wrong") == ["received", "failed", "dead_lettered", "dropped"]
    assert bundle.depth("proj.tasks") == 0


def test_log_file_and_level_are_celerys(bundle: Bundle) -> None:
    """`--logfile` gets the JSON, with `--loglevel=WARNING` only of what goes wrong; the rest is silent."""
    bundle.env |= JSON
    bundle.add_task(MOODY)
    worker = bundle.worker("--logfile=%n-%i.log", "--loglevel=WARNING", "-n", "w@here")
    bundle.enqueue("task", "proj.tasks.moody", "--id", "it")
    eventually("it is dead", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))
    worker.stop()

    texts = {path.name: path.read_text() for path in bundle.folder.glob("w-*.log")}

    assert _way(_objects(*texts.values()), "it") == ["failed", "dead_lettered"]
    assert sorted(texts) == ["w-0.log", "w-1.log"]
    assert {line["logger"] for line in _objects(worker.text())} <= {"py.warnings"}  # a warning about root


def test_publisher_in_python_decides_itself_what_it_logs(bundle: Bundle) -> None:
    """A program that configures no logging gets no line, not even of a failure; one that does gets all."""
    publish = "from proj.tasks import add; add.apply_async((1, 2), task_id='it', queue='nowhere')"
    silent = bundle.run_python(f"try:\n {publish}\nexcept Exception: pass")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")

    code = f"""
import logging
from proj import logs
handler = logging.StreamHandler()
handler.setFormatter(logs.JsonFormatter())
logging.basicConfig(level=logging.INFO, handlers=[handler])
from proj.tasks import add
add.apply_async((1, 2), task_id="it", countdown=60)
try:
    {publish}
except Exception: pass
"""
    lines = _objects(bundle.run_python(code).stderr)
    assert _way(lines, "it") == ["published", "publish_refused"]
    assert [line.get("delay") for line in lines if line.get("task_id") == "it"] == [60, None]


def test_no_line_holds_a_password(bundle: Bundle) -> None:
    """Neither that of a broker, of one that it fails over to, nor that of the result store.

    With DEBUG a task's start is told too.
    """
    node = f"amqp://guest:s3cret@127.0.0.1:1//;{bundle.url}"
    failing_over = bundle.worker(
        "--loglevel=DEBUG", env={"CELERY_BROKER_URL": node} | JSON, log="over.log"
    ).ready()
    failing_over.says("Cannot connect to amqp://guest:**@127.0.0.1:1//")
    bundle.enqueue("add", "1", "2", "--id", "well")
    failing_over.says('"event": "succeeded"')
    assert _way(_objects(failing_over.text()), "well") == ["received", "started", "succeeded"]
    failing_over.stop()  # or it would take the message
    store = "db+postgresql://user:s3cret@127.0.0.1:1/results"
    storing = bundle.worker("--loglevel=DEBUG", env={"CELERY_RESULT_BACKEND": store}, log="store.log")
    bundle.enqueue("add", "1", "2", "--id", "it")
    eventually("the result is not stored", lambda: storing.lines("The result store failed"))

    assert "s3cret" not in failing_over.text() + storing.text()
    assert {line.id for line in storing.lines("The result store failed")} == {"it"}


def test_root_logger_of_a_program_is_left_alone(bundle: Bundle) -> None:
    """To import the project, and to publish with it, adds no handler to it, and sets no level."""
    before, after = bundle.python("""
import json, logging
root = logging.getLogger()
before = len(root.handlers), root.level
from proj.tasks import add
add.delay(1, 2)
print(json.dumps([before, (len(root.handlers), root.level)]))
""")

    assert after == before


def test_traceback_steers_no_terminal() -> None:
    """The words of an exception may come from a message; in text they are shown as they are spelled."""
    from proj.logs.formats import TextFormatter

    record = logging.makeLogRecord({"msg": "caught"})
    try:
        raise ValueError("red\x1b[31m and\x07\rback\tön\nhere")
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *_, last, further = TextFormatter("%(message)s", use_color=False).format(record).split("\n")

    assert first == "caught"
    assert (last, further) == ("ValueError: red\\x1b[31m and\\x07\\rback\tön", "here")


@pytest.mark.parametrize("form", ["text", "json"])
def test_long_texts_are_shortened(request: pytest.FixtureRequest, form: str) -> None:
    """An exception that holds a whole file: in the log, in its event, and in the store, with its length."""
    shared: Shared = request.getfixturevalue(f"{form}_worker")
    log = shared.begin()
    shared.bundle.enqueue("task", "proj.tasks.verbose", str(2 * 2**20), "--id", form)
    log.says("became a dead letter", form)
    assert len(log.text()) < 100_000
    assert "(2,097,152 characters in all)" in log.text()
    assert f"ValueError('{'x' * 1000}" in log.text()
    assert log.text().count(" characters in all)") >= 3
    done = shared.bundle.proj("result", form, "--json")
    assert done.returncode == 1, done.stderr
    outcome = json.loads(done.stdout)
    for text in (outcome["error"], outcome["traceback"]):
        assert "ValueError: xxx" in text
        assert len(text) < 2**20 + 100
    assert "xxx… (2,097,152 characters in all) …xxx" in outcome["error"]
