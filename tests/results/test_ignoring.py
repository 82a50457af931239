"""Tasks that raise Celery's `Ignore`, and tasks that ignore their results: who waits is answered."""

import json
from typing import Any

import pytest

from tests.lib.bundle import Bundle
from tests.lib.refusal import refuses

pytestmark = pytest.mark.used_vhost

TASKS = """
    from celery.exceptions import Ignore

    @app.task(name="proj.tasks.idle")
    def idle(words: str = ""):
        raise Ignore(words) if words else Ignore()

    class Called(app.Task):
        def __call__(self, *args, **kwargs):
            return self.run(*args, **kwargs)

    class Begun(app.Task):
        def before_start(self, *_):
            raise Ignore()

    @app.task(name="proj.tasks.called", base=Called)
    def called():
        raise Ignore()

    @app.task(name="proj.tasks.begun", base=Begun)
    def begun():
        pass

    @app.task(bind=True, name="proj.tasks.own_end")
    def own_end(self, state: str):
        exc = {"exc_type": "ValueError", "exc_message": ["of its own"], "exc_module": "builtins"}
        self.update_state(state=state, meta=exc if state == "FAILURE" else "of its own")
        raise Ignore()

    @app.task(name="proj.tasks.silent", ignore_result=True)
    def silent() -> int:
        return 5
"""


def _outcome(bundle: Bundle, task_id: str) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(bundle.proj("result", task_id, "--json").stdout)
    return outcome


@pytest.mark.celery_docs("Tasks: Ignore")
def test_who_waits_for_a_task_that_is_ignored_is_answered(bundle: Bundle) -> None:
    """It says so, with 1: the waiting command, the result, and Celery's own `.get()`; and a repeat runs."""
    bundle.add_task(TASKS)
    worker = bundle.worker("--without-gossip").ready()

    wait = ("--wait", "--timeout", "60")
    done = bundle.proj("enqueue", "task", "proj.tasks.idle", '"no need"', "--id", "it", *wait)
    said = "Ignored: the task raised Ignore: no need"
    assert (done.returncode, done.stderr) == (1, f"Error: proj.tasks.idle[it] was ignored: {said}\n")
    result = bundle.proj("result", "it")
    assert result.returncode == 1
    assert said in result.stdout
    raised = bundle.python("""
import json
from proj.tasks import add, begun, called, idle
chain = (idle.s() | add.s(1)).delay()
def end(result):
    try:
        result.get(timeout=60)
    except Exception as error:
        return repr(error)
print(json.dumps([end(result) for result in (chain.parent, chain, called.delay(), begun.delay())]))
""")
    assert raised == ["Ignored('the task raised Ignore')"] * 4

    again = bundle.proj("enqueue", "task", "proj.tasks.idle", '"still"', "--id", "it", *wait)
    assert again.stderr.endswith("was ignored: Ignored: the task raised Ignore: still\n")
    assert worker.text().count("proj.tasks.idle[it] received") == 2


def test_end_that_a_task_has_stored_itself_stands(bundle: Bundle) -> None:
    """A task may store how it ended, and raise `Ignore`, so that nothing replaces that."""
    bundle.add_task(TASKS)
    bundle.worker("--without-gossip")
    wait = ("--wait", "--timeout", "60")

    done = bundle.proj("enqueue", "task", "proj.tasks.own_end", '"SUCCESS"', *wait)
    assert (done.returncode, done.stdout) == (0, '"of its own"\n')
    done = bundle.proj("enqueue", "task", "proj.tasks.own_end", '"FAILURE"', "--id", "it", *wait)
    assert done.returncode == 1
    assert done.stderr == "Error: proj.tasks.own_end[it] failed: ValueError: of its own\n"
    for _ in range(2):  # a meta that is no exception keeps no repeat from being executed
        done = bundle.proj("enqueue", "task", "proj.tasks.own_end", '"REVOKED"', "--id", "other", *wait)
        assert done.stderr == "Error: proj.tasks.own_end[other] was revoked: Exception: of its own\n"
    done = bundle.proj("enqueue", "task", "proj.tasks.own_end", '"PROGRESS"', *wait)
    assert "was ignored" in done.stderr


def test_waiting_for_what_has_no_result_is_refused(bundle: Bundle) -> None:
    """At once and with the reason; nothing is published."""
    bundle.add_task(TASKS)

    refuses(
        bundle,
        2,
        "proj.tasks.silent ignores its results",
        command=("enqueue", "task", "proj.tasks.silent", "--wait"),
    )
    assert not bundle.has("proj.tasks") or bundle.depth("proj.tasks") == 0


def test_repeat_of_a_task_that_ignores_its_result_is_suppressed(bundle: Bundle) -> None:
    """The bare success is kept where an id was given, and only there."""
    bundle.add_task(TASKS)
    worker = bundle.worker("--concurrency=1", "--without-gossip")

    other = bundle.proj("enqueue", "task", "proj.tasks.silent").stdout.strip()
    for _ in range(2):
        bundle.enqueue("task", "proj.tasks.silent", "--id", "it")

    worker.says("proj.tasks.silent[it] is a duplicate")
    assert worker.text().count("proj.tasks.silent[it] succeeded") == 1
    outcome = _outcome(bundle, "it")
    assert (outcome["state"], outcome["result"]) == ("SUCCESS", None)
    assert _outcome(bundle, other)["state"] == "PENDING"
