"""Progress that a task reports, and its end, while the result store fails."""

import json

import pytest

from tests.lib import stores
from tests.lib.bundle import Bundle
from tests.lib.stores import Database
from tests.lib.waiting import PATIENCE, eventually

pytestmark = pytest.mark.used_vhost

#: Reports progress of three kinds and then ends.
_TASK_WITH_PROGRESS = """
    @app.task(bind=True, name="proj.tasks.stepwise", track_started=True)
    def stepwise(self):
        for n in range(STEPS):
            self.update_state(state="PROGRESS", meta={"step": n})
            self.update_state(state="OWN", meta={"step": n})
        log.info("Reported")
        return "done"
"""

#: What the worker says of each attempt but the first.
_AGAIN = "The result store failed, retrying: "


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_progress_is_dropped_while_sqlite_fails(bundle: Bundle, protected: bool) -> None:
    """A task that reports its progress is not held, and its end is stored; the control holds it."""
    bundle.switch_off("results/patience.py", "STORE_PATIENCE: Final = 30", "STORE_PATIENCE: Final = 1")
    bundle.add_task(_TASK_WITH_PROGRESS.replace("STEPS", "50" if protected else "1"))
    if not protected:
        bundle.switch_off("results/patience.py", "if state not in _KEPT:", "if False:")
    worker = stores.worker(bundle)
    bundle.enqueue("add", "1", "2")
    worker.says(" succeeded in ")

    mend = stores.garbage(bundle)
    try:
        # With an id of ours, the worker would look for a stored success before it executes the task.
        task_id = bundle.proj("enqueue", "task", "proj.tasks.stepwise").stdout.strip()
        worker.says("Reported")
    finally:
        mend()

    assert (_AGAIN not in worker.text().partition("Reported")[0]) == protected
    eventually(
        "the message is answered", lambda: bundle.depth("proj.dead") or f"[{task_id}] succ" in worker.text()
    )
    said = f"Task proj.tasks.stepwise[{task_id}] dropped its state STARTED: file is not a database (no"
    assert worker.text().count(" dropped its state ") == worker.text().count(said) == protected


def test_worker_waits_for_its_store(bundle: Bundle, database: Database) -> None:
    """While its database is down a worker starts, drops progress, and keeps the one end that it has."""
    bundle.switch_off("results/patience.py", "STORE_PATIENCE: Final = 30", "STORE_PATIENCE: Final = 300")
    bundle.env["PROJ_LOG_FORMAT"] = "json"
    bundle.add_task(_TASK_WITH_PROGRESS.replace("STEPS", "50"))

    mend = stores.stopped(database)
    try:
        worker = stores.worker(bundle, "--hostname=w@waiting")
        # With an id of ours, the worker would look for a stored success before it executes the task.
        task_id = bundle.proj("enqueue", "task", "proj.tasks.stepwise").stdout.strip()
        bundle.enqueue("add", "2", "1", "--id", "next")
        worker.says(_AGAIN)
        assert "Reported" in worker.text().partition(_AGAIN)[0]
        assert "Result of" not in worker.text(), "it took more work"
        wait = f"--timeout={PATIENCE}"
        active = bundle.celery("inspect", "active", "--destination=w@waiting", wait, "--json")
        (held,) = json.loads(active.stdout)["w@waiting"]
        assert (held["id"], held["acknowledged"]) == (task_id, False)
    finally:
        mend()

    eventually("all is stored", lambda: stores.outcome(bundle, "next")["result"] == 3)
    assert stores.outcome(bundle, task_id)["result"] == "done"
    lines = [json.loads(line) for line in worker.text().splitlines()]
    (dropped,) = [line for line in lines if line["event"] == "progress_dropped"]
    assert (dropped["level"], dropped["task_id"]) == ("WARNING", task_id)
    assert worker.text().count("Result of") == 1
    assert worker.text().count("Reported") == 1
    assert bundle.depth("proj.dead") == 0


def test_progress_is_stored_while_the_store_works(bundle: Bundle) -> None:
    """What a task reports can be read before it ends, and again once the store is back."""
    bundle.switch_off("results/patience.py", "PROGRESS_PAUSE: Final = 10", "PROGRESS_PAUSE: Final = 0")
    bundle.add_task("""
        @app.task(bind=True, name="proj.tasks.stepwise")
        def stepwise(self, gate):
            from pathlib import Path
            self.update_state(state="PROGRESS", meta=0)
            while not Path(gate).exists():
                time.sleep(0.05)
                self.update_state(state="PROGRESS", meta=1)
    """)
    worker = stores.worker(bundle)
    gate = bundle.folder / "gate"
    bundle.enqueue("task", "proj.tasks.stepwise", json.dumps(str(gate)), "--id", "it")
    eventually("it is stored", lambda: stores.outcome(bundle, "it")["state"] == "PROGRESS")

    mend = stores.garbage(bundle)
    try:
        worker.says("[it] dropped its state PROGRESS: ")
    finally:
        mend()

    eventually("it is stored anew", lambda: stores.outcome(bundle, "it")["result"] == 1)
    gate.touch()
    worker.says("[it] succeeded")
