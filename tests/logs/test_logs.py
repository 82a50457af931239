"""The lines of a log: their form, who writes them and where, and what they do not hold."""

import json
import logging
import re
import sys

import pytest

from tests.lib.bundle import Bundle
from tests.lib.logged import JSON, MOODY, PRINTS, Shared, objects, way
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost


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

    lines = [line for line in objects(log.text()) if line["event"] == "log" and "task_id" in line]

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
    lines = [line for line in objects(text()) if line["logger"] == "celery.redirected"]

    printed = ["several words 4711", "flushed", "on stderr too", "begun"]
    assert [(line["task_id"], line["message"]) for line in lines] == [
        (name, words) for name in ("first", "second") for words in printed
    ]


def test_log_file_and_level_are_celerys(bundle: Bundle) -> None:
    """`--logfile` gets the JSON, with `--loglevel=WARNING` only of what goes wrong; the rest is silent."""
    bundle.env |= JSON
    bundle.add_task(MOODY)
    worker = bundle.worker("--logfile=%n-%i.log", "--loglevel=WARNING", "-n", "w@here")
    bundle.enqueue("task", "proj.tasks.moody", "--id", "it")
    eventually("it is dead", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))
    worker.stop()

    texts = {path.name: path.read_text() for path in bundle.folder.glob("w-*.log")}

    assert way(objects(*texts.values()), "it") == ["failed", "dead_lettered"]
    assert sorted(texts) == ["w-0.log", "w-1.log"]
    assert {line["logger"] for line in objects(worker.text())} <= {"py.warnings"}  # a warning about root


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
    lines = objects(bundle.run_python(code).stderr)
    assert way(lines, "it") == ["published", "publish_refused"]
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
    assert way(objects(failing_over.text()), "well") == ["received", "started", "succeeded"]
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
