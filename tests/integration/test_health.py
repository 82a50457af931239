"""`proj health`: what a supervisor is told of real workers, and of a broker that is down."""

import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from proj.health import heartbeat
from proj.private_node.node import BrokerNode
from tests.bundle import BIN, GATED_TASK, Bundle, eventually
from tests.refusal import refuses

POOLS = ["prefork", "threads", "solo"]

#: A worker whose broker is given a second for each answer promises its beats earlier.
QUICK = {"PROJ_PUBLISH_TIMEOUT": "1"}

#: Lines for `proj/tasks.py` of a copy: the loop of a worker that is ready is made to stand still.
BLOCK = """
    from celery.signals import worker_ready

    def block():
        log.info("The loop stands still")
        time.sleep(600)

    @worker_ready.connect
    def block_soon(sender, **_):
        sender.hub.call_later(0.5, block)
"""


def _promise_soon(bundle: Bundle) -> None:
    """Let the workers promise their beats within seconds, so that no test waits for long."""
    bundle.declare()
    bundle.switch_off("worker/heartbeat.py", "TURN: Final = 10.0", "TURN: Final = 6.0")
    bundle.switch_off("worker/heartbeat.py", "CONNECT: Final = 80.0", "CONNECT: Final = 6.0")


def _health(bundle: Bundle, *options: str) -> tuple[int, str]:
    done = bundle.proj("health", *options)
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.returncode, done.stdout.rstrip("\n")


def _is(bundle: Bundle, what: str, *options: str) -> bool:
    """Whether the workers are that, now; the exit code and the line agree."""
    code, line = _health(bundle, f"--{what}", *options)
    assert (code, line.startswith("not ")) in {(0, False), (69, True)}
    return code == 0


def _workers(bundle: Bundle) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_health(bundle, "--live", "--json")[1])["workers"]
    return found


def _not_live(bundle: Bundle, *options: str) -> None:
    eventually("the worker is not live", lambda: not _is(bundle, "live", *options))


@pytest.mark.parametrize("pool", POOLS)
def test_worker_from_its_start_to_its_end(bundle: Bundle, pool: str) -> None:
    """Ready while it works; live and not ready while it finishes its task after SIGTERM; then not there."""
    assert _health(bundle, "--live") == (
        69,
        f"not live: no worker runs with the state folder {bundle.folder}/state",
    )
    bundle.add_task(GATED_TASK)
    worker = bundle.worker("-P", pool).ready()
    eventually("the worker is ready", lambda: _is(bundle, "ready"))
    (first,) = _workers(bundle)
    eventually("it beats again", lambda: _workers(bundle)[0]["beat"] > first["beat"])
    bundle.enqueue("task", "proj.tasks.gated", '"a gate"', "--id", "last")
    worker.started("last")
    assert _is(bundle, "ready")

    worker.process.send_signal(signal.SIGTERM)

    eventually("the worker is not ready", lambda: not _is(bundle, "ready"))
    code, line = _health(bundle, "--live")
    assert worker.lines("Done after") == []
    assert code == 0, line
    (bundle.folder / "a gate").touch()
    assert worker.ends() == 0
    assert [line.id for line in worker.lines("Done after")] == ["last"]
    assert not _is(bundle, "live")
    assert os.listdir(bundle.folder / "state" / heartbeat.FOLDER) == []


def test_worker_that_is_told_to_end_by_a_message_is_stopping(bundle: Bundle) -> None:
    """As by `celery control shutdown`, for which there is no signal of the system."""
    worker = bundle.worker("-P", "threads").ready()
    bundle.enqueue("sleep-dots", "600", "--id", "last")
    worker.started("last")

    bundle.python("from proj import app; app.control.shutdown(); print(0)")

    eventually("the worker stops", lambda: _health(bundle, "--ready")[1].endswith(" is stopping"))
    assert _is(bundle, "live")


def test_frozen_worker_is_not_live_until_it_goes_on(bundle: Bundle) -> None:
    """SIGSTOP is found out when the next beat is overdue; a worker that goes on is live again."""
    _promise_soon(bundle)
    worker = bundle.worker(env=QUICK).ready()
    assert _is(bundle, "live")

    worker.process.send_signal(signal.SIGSTOP)

    _not_live(bundle)
    assert not _is(bundle, "ready")
    worker.process.send_signal(signal.SIGCONT)
    eventually("the worker is ready", lambda: _is(bundle, "ready"))


def test_killed_worker_is_not_live_at_once(bundle: Bundle) -> None:
    """Nobody waits for its promise; the worker that comes in its place is judged by itself."""
    worker = bundle.worker().ready()
    assert _is(bundle, "live")

    worker.kill()

    code, line = _health(bundle, "--live")
    assert (code, line.endswith(f"is gone, its process {worker.process.pid} ended without a word")) == (
        69,
        True,
    )
    bundle.worker(log="next.log").ready()
    assert _is(bundle, "live")
    assert len(_workers(bundle)) == 1


def test_frozen_worker_beside_a_healthy_one(bundle: Bundle) -> None:
    """Together they are not live; asked for by name, each is what it is."""
    _promise_soon(bundle)
    frozen = bundle.worker("-n", "one@%h", env=QUICK, log="one.log").ready()
    bundle.worker("-n", "two@%h", env=QUICK, log="two.log").ready()
    eventually("both are ready", lambda: _is(bundle, "ready"))
    assert _health(bundle, "--live")[1].startswith("live: 2 workers, the oldest beat ")

    frozen.process.send_signal(signal.SIGSTOP)

    _not_live(bundle)
    assert _health(bundle, "--live")[1].startswith("not live: worker one@")
    assert _health(bundle, "--live")[1].endswith(" (1 of 2 workers)")
    assert not _is(bundle, "live", "--worker", "one")
    assert _is(bundle, "ready", "--worker", "two")
    frozen.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_blocked_loop_is_not_live(bundle: Bundle, pool: str) -> None:
    """The process runs, and so do its other threads; its loop takes no message any more."""
    _promise_soon(bundle)
    bundle.add_task(BLOCK)
    bundle.worker("-P", pool, env=QUICK).says("The loop stands still")

    _not_live(bundle)


def test_beat_of_a_thread_would_be_a_lie(bundle: Bundle) -> None:
    """The control for the test above: a thread goes on beating for a loop that stands still."""
    _promise_soon(bundle)
    bundle.add_task(BLOCK)
    bundle.switch_off("worker/heartbeat.py", "if threading.get_ident() != self._thread:", "if False:")
    bundle.switch_off(
        "worker/heartbeat.py",
        "hub.call_repeatedly(INTERVAL, self._turned, c)",
        "from celery.utils.timer2 import Timer; Timer().call_repeatedly(INTERVAL, self._turned, (c,))",
    )
    bundle.worker(env=QUICK).says("The loop stands still")
    (first,) = _workers(bundle)

    def promise_is_over() -> bool:
        assert _is(bundle, "live")
        return bool(_workers(bundle)[0]["beat"] > first["due"])

    eventually("the promise of the last turn of the loop is over", promise_is_over)


def _own_node(bundle: Bundle, folder: Path) -> BrokerNode:
    """A node that the test may kill, and that the bundle's programs are told of."""
    node = BrokerNode(folder)
    node.start()
    bundle.env["CELERY_BROKER_URL"] = node.url
    return node


def test_broker_that_is_down_makes_no_worker_dead(bundle: Bundle, tmp_path: Path) -> None:
    """Live and not ready, for longer than any promise; ready when the broker is there again.

    A worker that is started meanwhile is live too.
    """
    _promise_soon(bundle)
    node = _own_node(bundle, tmp_path / "own")
    bundle.worker("-n", "early@%h", env=QUICK).ready()
    eventually("the worker is ready", lambda: _is(bundle, "ready"))

    node.kill()

    eventually("the worker is not ready", lambda: not _is(bundle, "ready"))
    bundle.worker("-n", "late@%h", env=QUICK, log="late.log").says("Trying again in ")
    first = _workers(bundle)
    assert {worker["state"] for worker in first} == {"connecting"}

    def promises_are_over() -> bool:
        assert _is(bundle, "live")
        assert not _is(bundle, "ready")
        overdue = min(worker["due"] for worker in first)
        return bool(min(worker["beat"] for worker in _workers(bundle)) > overdue)

    eventually("what both promised is over", promises_are_over)
    node.start()
    eventually("both are ready", lambda: _is(bundle, "ready"), 60)
    assert len(_workers(bundle)) == 2
    node.kill()


def test_without_beats_while_it_waits_a_worker_would_be_taken_for_dead(
    bundle: Bundle, tmp_path: Path
) -> None:
    """The control for the test above."""
    _promise_soon(bundle)
    bundle.switch_off("worker/heartbeat.py", "step.connecting()\n            callback()", "callback()")
    node = _own_node(bundle, tmp_path / "own")
    worker = bundle.worker(env=QUICK).ready()

    node.kill()

    worker.says("Trying again in ")
    _not_live(bundle)


def test_long_task_in_the_loop_is_waited_for(bundle: Bundle) -> None:
    """With `-P solo` a task keeps the loop: the worker promises a beat when the task's time limit is over."""
    worker = bundle.worker("-P", "solo", env={"PROJ_TASK_TIME_LIMIT": "1600"}).ready()
    eventually("the worker is ready", lambda: _is(bundle, "ready"))
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    worker.started("long")

    code, line = _health(bundle, "--ready")

    assert code == 0
    assert line.endswith(" s ago, then began proj.tasks.sleep_dots[long]")
    assert 1600 < _workers(bundle)[0]["due_in"] < 1700


def test_task_that_has_ended_is_not_waited_for(bundle: Bundle) -> None:
    """With `-P solo`, the loop turns again after a task, and promises so."""
    bundle.worker("-P", "solo").ready()
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"

    eventually("the loop turns", lambda: _workers(bundle)[0]["due_in"] < 60)
    assert _workers(bundle)[0]["task"] is None


def test_worker_that_consumes_no_queue_is_not_ready(bundle: Bundle) -> None:
    """As after `celery control cancel_consumer`."""
    bundle.worker().ready()
    eventually("the worker is ready", lambda: _is(bundle, "ready"))

    bundle.python("""
from proj import app
print(len(app.control.cancel_consumer("proj.tasks", reply=True)))
""")

    eventually("the worker is not ready", lambda: not _is(bundle, "ready"))
    assert _health(bundle, "--ready")[1].endswith("consumes no queue")
    assert _is(bundle, "live")


def test_worker_goes_on_when_its_heartbeat_cannot_be_written(bundle: Bundle) -> None:
    """It says so once, and executes tasks; the probe says what is in its way."""
    (bundle.folder / "state").mkdir()
    in_the_way = bundle.folder / "state" / heartbeat.FOLDER
    in_the_way.touch()
    worker = bundle.worker().ready()

    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"

    assert worker.text().count("No heartbeat") == 1
    assert _health(bundle, "--live") == (
        69,
        f"not live: the heartbeats in {in_the_way} cannot be read: Not a directory",
    )
    in_the_way.unlink()
    eventually("the worker is live", lambda: _is(bundle, "live"))


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_disk_that_is_full_makes_no_worker_dead(bundle: Bundle, small_disk: Path, protected: bool) -> None:
    """Its beats need no room; they would stop, if each were written to a file of its own."""
    _promise_soon(bundle)
    if not protected:
        bundle.switch_off("health/heartbeat.py", "        _write_over(path, data)\n", "        raise\n")
    worker = bundle.worker(env=QUICK).ready()
    eventually("it is ready", lambda: _is(bundle, "ready"))

    def is_full() -> bool:
        with (small_disk / "all else").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        return shutil.disk_usage(small_disk).free == 0

    eventually("the disk is full", is_full)
    (before,) = _workers(bundle)

    if protected:
        eventually("its promise is renewed", lambda: _workers(bundle)[0]["beat"] > before["due"])
        assert _is(bundle, "ready")
        assert "No heartbeat" not in worker.text()
    else:
        worker.says("No heartbeat")
        eventually("it is taken for dead", lambda: not _is(bundle, "live"))


def test_state_folder_that_is_taken_away_is_made_again(bundle: Bundle) -> None:
    """A worker that lives is found again, with its next beat."""
    bundle.worker().ready()
    folder = bundle.folder / "state" / heartbeat.FOLDER
    folder.rename(folder.with_name("away"))

    eventually("the worker is live", lambda: _is(bundle, "live"))


def test_probe_imports_nothing_that_takes_time(bundle: Bundle) -> None:
    """With modules in its way that cannot be imported, the probe works, on all of its own paths."""
    poison = bundle.folder / "poison"
    poison.mkdir()
    for name in ("celery", "kombu", "amqp", "pydantic", "pydantic_settings", "click", "rich", "dataclasses"):
        (poison / f"{name}.py").write_text("raise SystemExit('imported')")
    paths = [str(poison), *filter(None, [os.environ.get("PYTHONPATH")])]
    bundle.env["PYTHONPATH"] = os.pathsep.join(paths)
    assert bundle.run(BIN / "proj", "result", "any").stderr == "imported\n"
    (bundle.folder / ".env").write_text(f"PROJ_STATE_DIR={bundle.folder}/of-the-file\n")

    for words in (["--live"], ["--ready", "--json"], ["--live", "--worker", "w1"]):
        done = bundle.run(BIN / "proj", "health", *words)
        assert (done.returncode, done.stderr) == (69, "")
    del bundle.env["PROJ_STATE_DIR"]
    done = bundle.proj("health", "--live")
    assert done.stdout == f"not live: no worker runs with the state folder {bundle.folder}/of-the-file\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "Error: say what to look for: --live or --ready (see: proj health --help)\n"),
        (
            ["--live", "--ready"],
            2,
            "Error: say what to look for: --live or --ready (see: proj health --help)\n",
        ),
        (
            ["--alive"],
            2,
            "Error: No such option '--alive'. Did you mean '--live'? (see: proj health --help)\n",
        ),
    ],
)
def test_wrong_usage_is_2(bundle: Bundle, words: list[str], code: int, said: str) -> None:
    """In the words that all commands have for it."""
    done = bundle.proj("health", *words)

    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


def test_error_of_the_probe_is_told_as_everywhere(bundle: Bundle) -> None:
    """One line and an exit code; a traceback with `--debug`."""
    (bundle.folder / ".env").write_bytes(b"\xff")

    refuses(bundle, 2, "Error: the settings file ", command=("health", "--live"))
    assert "Traceback" in bundle.proj("--debug", "health", "--live").stderr


def test_slow_way_says_the_same(bundle: Bundle) -> None:
    """`--debug` goes through click, to the same answer."""
    worker = bundle.worker().ready()
    slow = bundle.proj("--debug", "health", "--live")
    assert (slow.returncode, slow.stdout.partition(" beat ")[0]) == (
        0,
        _health(bundle, "--live")[1].partition(" beat ")[0],
    )
    worker.kill()
    assert bundle.proj("--debug", "health", "--live").returncode == 69
