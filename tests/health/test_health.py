"""`proj health`: what a supervisor is told of real workers, and of a broker that is down."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from proj.health import heartbeat
from tests.lib.bundle import BIN, GATED_TASK, Bundle
from tests.lib.ports import free_port
from tests.lib.proxy import Proxy
from tests.lib.refusal import refuses
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

pytestmark = pytest.mark.used_vhost

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
    bundle.switch_off("worker/heartbeat.py", "INTERVAL: Final = 1.0", "INTERVAL: Final = 0.2")
    bundle.switch_off("worker/heartbeat.py", "TURN: Final = 10.0", "TURN: Final = 2.0")
    bundle.switch_off("worker/heartbeat.py", "CONNECT: Final = 80.0", "CONNECT: Final = 4.0")


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


def _beats(bundle: Bundle) -> list[heartbeat.Heartbeat]:
    """What `proj health` reads, without a process for each look."""
    return heartbeat.read_all(bundle.env["PROJ_STATE_DIR"])


def _becomes(bundle: Bundle, what: str) -> None:
    """Wait until the workers are `live`, `not live`, `ready` or `not ready`; the program agrees."""
    kind, expected = what.split()[-1], not what.startswith("not ")

    def judged() -> bool:
        verdict = heartbeat.judge(_beats(bundle), ready=kind == "ready", worker=None, state_dir="")
        return verdict.healthy == expected

    eventually(f"the worker is {what}", judged)
    assert _is(bundle, kind) == expected


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("shared")) as bundle:
        yield bundle


@pytest.fixture(scope="module")
def worker(shared: Bundle) -> Worker:
    """One worker for what leaves it as it was."""
    return shared.worker().ready()


@pytest.mark.parametrize("pool", POOLS)
def test_worker_from_its_start_to_its_end(bundle: Bundle, pool: str) -> None:
    """Ready while it works; live and not ready while it finishes its task after SIGTERM; then not there."""
    assert _health(bundle, "--live") == (
        69,
        f"not live: no worker runs with the state folder {bundle.folder}/state",
    )
    bundle.add_task(GATED_TASK)
    worker = bundle.worker("-P", pool).ready()
    _becomes(bundle, "ready")
    (first,) = _workers(bundle)
    eventually("it beats again", lambda: _beats(bundle)[0].beat > first["beat"])
    bundle.enqueue("task", "proj.tasks.gated", '"a gate"', "--id", "last")
    worker.started("last")
    assert _is(bundle, "ready")

    worker.process.send_signal(signal.SIGTERM)

    _becomes(bundle, "not ready")
    code, line = _health(bundle, "--live")
    assert worker.lines("Done after") == []
    assert code == 0, line
    (bundle.folder / "a gate").touch()
    assert worker.ends() == 0
    assert [line.id for line in worker.lines("Done after")] == ["last"]
    assert not _is(bundle, "live")
    assert os.listdir(bundle.folder / "state" / "workers") == []


def test_killed_worker_is_not_live_at_once(bundle: Bundle) -> None:
    """Nobody waits for its promise; the worker that comes in its place is judged by itself."""
    worker = bundle.worker().ready()
    assert _is(bundle, "live")

    worker.kill()

    code, line = _health(bundle, "--live")
    assert (code, line.endswith(f"was killed or crashed: its process {worker.process.pid} is gone")) == (
        69,
        True,
    )
    assert bundle.proj("--debug", "health", "--live").returncode == 69
    bundle.worker(log="next.log").ready()
    assert _is(bundle, "live")
    assert len(_workers(bundle)) == 1


def test_frozen_worker_is_not_live_until_it_goes_on(bundle: Bundle) -> None:
    """SIGSTOP is found out when the next beat is overdue; one that goes on is live again.

    Beside a healthy one, together they are not live; asked for by name, each is what it is.
    """
    _promise_soon(bundle)
    frozen = bundle.worker("-n", "one@%h", env=QUICK, log="one.log").ready()
    bundle.worker("-n", "two@%h", env=QUICK, log="two.log").ready()
    _becomes(bundle, "ready")
    assert _health(bundle, "--live")[1].startswith("live: 2 workers, the oldest beat ")

    frozen.process.send_signal(signal.SIGSTOP)

    _becomes(bundle, "not live")
    assert _health(bundle, "--live")[1].startswith("not live: worker one@")
    assert _health(bundle, "--live")[1].endswith(" (1 of 2 workers)")
    assert not _is(bundle, "ready")
    assert not _is(bundle, "live", "--worker", "one")
    assert _is(bundle, "ready", "--worker", "two")
    frozen.process.send_signal(signal.SIGCONT)
    _becomes(bundle, "ready")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_blocked_loop_is_not_live(bundle: Bundle, pool: str) -> None:
    """The process runs, and so do its other threads; its loop takes no message any more."""
    _promise_soon(bundle)
    bundle.add_task(BLOCK)
    bundle.worker("-P", pool, env=QUICK).says("The loop stands still")

    _becomes(bundle, "not live")


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
    (first,) = _beats(bundle)

    eventually("the promise of the last turn is over", lambda: _beats(bundle)[0].beat > first.due)
    assert _is(bundle, "live")


@contextmanager
def _broker(bundle: Bundle, port: int) -> Iterator[None]:
    """A broker at the port, which is down before and after."""
    bundle.env["CELERY_BROKER_URL"] = bundle.url_at(port)
    with Proxy(bundle.node.info.port, port):
        yield


@pytest.mark.long
def test_broker_that_is_down_makes_no_worker_dead(bundle: Bundle) -> None:
    """Live and not ready, for longer than any promise; ready when the broker is there again.

    A worker that is started meanwhile is live too.
    """
    _promise_soon(bundle)
    port = free_port()
    with _broker(bundle, port):
        bundle.worker("-n", "early@%h", env=QUICK).ready()
        _becomes(bundle, "ready")

    _becomes(bundle, "not ready")
    bundle.worker("-n", "late@%h", env=QUICK, log="late.log").says("Trying again in ")
    first = _beats(bundle)
    assert {beat.state for beat in first} == {heartbeat.CONNECTING}

    def promises_are_over() -> bool:
        beats = _beats(bundle)
        assert all(heartbeat.lives(beat, time.monotonic()) for beat in beats), beats
        return min(beat.beat for beat in beats) > min(beat.due for beat in first)

    eventually("what both promised is over", promises_are_over)
    assert _is(bundle, "live")
    assert not _is(bundle, "ready")
    with _broker(bundle, port):
        _becomes(bundle, "ready")
        assert len(_workers(bundle)) == 2


def test_without_beats_while_it_waits_a_worker_would_be_taken_for_dead(bundle: Bundle) -> None:
    """The control for the test above."""
    _promise_soon(bundle)
    bundle.switch_off(
        "worker/consumer.py",
        "            self.heartbeat.connecting()\n            maybe_shutdown()",
        "            maybe_shutdown()",
    )
    with _broker(bundle, free_port()):
        worker = bundle.worker(env=QUICK).ready()

    worker.says("Trying again in ")
    _becomes(bundle, "not live")


def test_task_in_the_loop_is_waited_for_until_its_end(bundle: Bundle) -> None:
    """With `-P solo` a task keeps the loop: the worker promises a beat when the task's time limit is over.

    When the task has ended, the loop turns again, and promises so.
    """
    worker = bundle.worker("-P", "solo", env={"PROJ_TASK_TIME_LIMIT": "1600"})
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
    eventually("the loop turns", lambda: _workers(bundle)[0]["due_in"] < 60)
    assert _workers(bundle)[0]["task"] is None
    _becomes(bundle, "ready")
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    worker.started("long")

    code, line = _health(bundle, "--ready")

    assert code == 0
    assert line.endswith(" s ago, then began proj.tasks.sleep_dots[long]")
    assert 1600 < _workers(bundle)[0]["due_in"] < 1700


def test_worker_that_consumes_no_queue_is_not_ready(shared: Bundle, worker: Worker) -> None:
    """As after `celery control cancel_consumer`."""
    _becomes(shared, "ready")

    shared.control(worker, "cancel_consumer", "proj.tasks")

    _becomes(shared, "not ready")
    assert _health(shared, "--ready")[1].endswith("consumes no queue")
    assert _is(shared, "live")
    shared.control(worker, "add_consumer", "proj.tasks")
    _becomes(shared, "ready")


def test_worker_goes_on_when_its_heartbeat_cannot_be_written(bundle: Bundle) -> None:
    """It says so once, and executes tasks; the probe says what is in its way."""
    (bundle.folder / "state").mkdir()
    in_the_way = bundle.folder / "state" / "workers"
    in_the_way.touch()
    worker = bundle.worker().ready()

    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"

    assert worker.text().count("The heartbeat cannot be written") == 1
    assert _health(bundle, "--live") == (
        69,
        f"not live: the heartbeats in {in_the_way} cannot be read: Not a directory",
    )
    in_the_way.unlink()
    _becomes(bundle, "live")


@pytest.mark.parametrize("protected", [True, False], ids=["", "control"])
def test_disk_that_is_full_makes_no_worker_dead(bundle: Bundle, small_disk: Path, protected: bool) -> None:
    """Its beats need no room; they would stop, if each were written to a file of its own."""
    _promise_soon(bundle)
    if not protected:
        bundle.switch_off("health/heartbeat.py", "        _write_over(path, data)\n", "        raise\n")
    worker = bundle.worker(env=QUICK).ready()
    _becomes(bundle, "ready")

    def is_full() -> bool:
        with (small_disk / "all else").open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        return shutil.disk_usage(small_disk).free == 0

    eventually("the disk is full", is_full)
    (before,) = _workers(bundle)

    if protected:
        eventually("its promise is renewed", lambda: _beats(bundle)[0].beat > before["due"])
        assert _is(bundle, "ready")
        assert "The heartbeat cannot be written" not in worker.text()
    else:
        worker.says("The heartbeat cannot be written")
        _becomes(bundle, "not live")


@pytest.mark.usefixtures("worker")
def test_state_folder_that_is_taken_away_is_made_again(shared: Bundle) -> None:
    """A worker that lives is found again, with its next beat."""
    folder = shared.folder / "state" / "workers"
    folder.rename(folder.with_name("away"))

    _becomes(shared, "live")


@pytest.mark.usefixtures("worker")
def test_slow_way_says_the_same(shared: Bundle) -> None:
    """`--debug` goes through click, to the same answer."""
    _becomes(shared, "live")
    slow = shared.proj("--debug", "health", "--live")
    assert (slow.returncode, slow.stdout.partition(" beat ")[0]) == (
        0,
        _health(shared, "--live")[1].partition(" beat ")[0],
    )


def test_probe_imports_nothing_that_takes_time(bundle: Bundle) -> None:
    """With modules in its way that cannot be imported, the probe works, on all of its own paths."""
    poison = bundle.folder / "poison"
    poison.mkdir()
    for name in ("celery", "kombu", "amqp", "pydantic", "rich"):
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
        ([], 2, "Error: give one of --live, --ready and --beat (see: proj health --help)\n"),
        (
            ["--live", "--ready"],
            2,
            "Error: give one of --live, --ready and --beat (see: proj health --help)\n",
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
