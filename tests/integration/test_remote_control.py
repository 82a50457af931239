"""What workers do when they are told to: `celery control`, and what becomes of messages then."""

from tests.bundle import BIN, GATED_TASK, Bundle, eventually
from tests.integration import dead


def _control(bundle: Bundle, *command: str) -> str:
    done = bundle.run(BIN / "celery", "-A", "proj", "control", "--timeout=5", *command)
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    return done.stdout


def test_shutdown_ends_tasks_and_is_no_error(bundle: Bundle) -> None:
    """`control shutdown` is SIGTERM: the last task ends, the worker is live meanwhile, and it is no error."""
    bundle.add_task(GATED_TASK)
    worker = bundle.worker()
    gate = bundle.folder / "gate"
    bundle.enqueue("task", "proj.tasks.gated", f'"{gate}"', "--id", "last")
    eventually("the task starts", lambda: "[last]: Received" in worker.text(), seen=worker.text)

    assert "OK" in _control(bundle, "shutdown")
    eventually("the worker shuts down", lambda: "Got shutdown from remote" in worker.text())
    assert bundle.proj("health", "--live").returncode == 0
    gate.touch()
    assert worker.ends() == 0
    assert bundle.proj("result", "last").returncode == 0


def test_shutdown_is_bounded(bundle: Bundle) -> None:
    """A task that outlives the grace period is given back."""
    worker = bundle.worker(env={"PROJ_SHUTDOWN_GRACE": "1"})
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    worker.started("long")

    _control(bundle, "shutdown")
    worker.ends()
    assert bundle.kept("proj.tasks") == 1


def _delayed(bundle: Bundle, task_id: str) -> None:
    """A message that the broker holds for a moment, revoked meanwhile; then all workers are restarted."""
    worker = bundle.worker()
    worker.ready()
    bundle.enqueue("add", "1", "2", "--id", task_id, "--countdown", "8")
    _control(bundle, "revoke", task_id)
    assert worker.terminate() == 0


def test_revocation_of_a_delayed_message_outlives_workers(bundle: Bundle) -> None:
    """It is stored, and a worker that never heard of it acknowledges the message without executing it."""
    _delayed(bundle, "it")
    done = bundle.proj("result", "it", "--json")
    assert '"state": "REVOKED"' in done.stdout

    worker = bundle.worker(log="next.log")
    eventually("it is received", lambda: "[it] received" in worker.text(), seen=worker.text)
    eventually("it is dealt with", lambda: "[it] ignored" in worker.text(), seen=worker.text)
    assert worker.terminate() == 0
    assert bundle.kept("proj.tasks") == bundle.depth("proj.dead") == 0
    assert '"state": "REVOKED"' in bundle.proj("result", "it", "--json").stdout
    assert "[it] succeeded" not in worker.text()


def test_revocation_that_nobody_looks_for(bundle: Bundle) -> None:
    """Control: without the look, the message is executed."""
    bundle.switch_off("enqueue.py", "        revocation.check(self)\n", "")
    _delayed(bundle, "it")

    worker = bundle.worker(log="next.log")
    eventually("it is executed", lambda: "[it] succeeded" in worker.text(), seen=worker.text)


def test_redrive_overrides_a_revocation(bundle: Bundle) -> None:
    """A dead letter under whose id a revocation is stored is executed when it is redriven."""
    bundle.declare()
    dead.publish_task(bundle, "it", 1, 2, expiration="0")
    dead.await_count(bundle, 1)
    worker = bundle.worker()
    worker.ready()
    _control(bundle, "revoke", "it")
    worker.terminate()
    assert '"state": "REVOKED"' in bundle.proj("result", "it", "--json").stdout

    bundle.worker(log="next.log")
    assert bundle.proj("dead", "redrive", "it").returncode == 0
    eventually("it is executed", lambda: bundle.proj("result", "it").returncode == 0)


def test_revocation_replaces_no_end(bundle: Bundle) -> None:
    """What has ended stays as it ended."""
    bundle.worker()
    assert bundle.proj("enqueue", "add", "1", "2", "--id", "done", "--wait").stdout == "3\n"

    _control(bundle, "revoke", "done")
    assert bundle.proj("result", "done").returncode == 0


def test_revocation_that_cannot_be_stored_is_an_answer(bundle: Bundle) -> None:
    """Whoever revokes hears that it holds for as long as the workers run, and the worker goes on."""
    state = bundle.folder / "state"
    bundle.worker().ready()
    (state / "results.sqlite3").write_text("no database")

    done = bundle.run(BIN / "celery", "-A", "proj", "control", "--timeout=20", "revoke", "it")
    assert "revoked only until the workers end: the result store cannot be" in done.stdout + done.stderr


def test_what_would_lose_messages_is_refused(bundle: Bundle) -> None:
    """A time limit that the broker does not wait for, and a queue whose dead letters would go nowhere."""
    worker = bundle.worker().ready()

    assert "below the broker's consumer_timeout, got 1800 and 1800" in _control(
        bundle, "time_limit", "proj.tasks.add", "10", "1800"
    )
    assert "below the broker's consumer_timeout" in _control(bundle, "time_limit", "proj.tasks.add", "5000")
    assert "a number of seconds, got nan" in _control(bundle, "time_limit", "proj.tasks.add", "nan")
    assert "there is no queue 'other' (there is: proj.tasks)" in _control(bundle, "add_consumer", "other")
    assert not bundle.has("other")

    assert "OK" in _control(bundle, "time_limit", "proj.tasks.add", "10", "20")
    assert "OK" in _control(bundle, "cancel_consumer", "proj.tasks")
    assert "OK" in _control(bundle, "add_consumer", "proj.tasks")
    bundle.enqueue("add", "1", "2", "--wait", "--timeout", "60")
    assert worker.process.poll() is None
