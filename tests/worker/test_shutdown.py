"""Deploys: a worker that is told to end finishes what it has, in its time, and gives back the rest."""

import collections
import json
import os
import signal
from functools import partial

import pytest

from proj import queues
from tests.lib.bundle import GATED_TASK, MANAGEMENT_OFF, Bundle
from tests.lib.snapshots import number
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

pytestmark = pytest.mark.used_vhost

#: A task of a fraction of a second, which leaves its number in a file each time it is executed; none ends
#: while the file `held` is there.
NAP = """
    @app.task(name="proj.tasks.nap", pydantic=True)
    def nap(number: int) -> int:
        from pathlib import Path
        time.sleep(0.6)
        while Path("held").exists():
            time.sleep(0.05)
        with open("naps", "a") as file:
            file.write(f"{number} ")
        return number
"""


@pytest.mark.celery_docs("Workers: TERM")
def test_sigterm_lets_the_running_task_end_and_takes_no_new_one(bundle: Bundle) -> None:
    """The running task is finished and acknowledged; what waits stays in the queue for others."""
    bundle.add_task(GATED_TASK)
    gate = bundle.folder / "gate"
    for task_id in ("first", "second", "third"):
        bundle.enqueue("task", "proj.tasks.gated", json.dumps(str(gate)), "--id", task_id)
    worker = bundle.worker()
    worker.started("first")

    worker.process.terminate()
    worker.says("Warm shutdown")
    gate.touch()

    assert worker.ends() == 0
    assert [line.id for line in worker.lines("Done after")] == ["first"]
    eventually("the others are back", lambda: bundle.depth("proj.tasks") == 2)
    assert [message["properties"]["headers"]["id"] for message in bundle.peek("proj.tasks")] == [
        "second",
        "third",
    ]
    assert json.loads(bundle.proj("result", "first", "--json").stdout)["state"] == "SUCCESS"


def _held(bundle: Bundle) -> int | None:
    held: int | None = number(bundle, "proj.tasks", "unacknowledged", env=MANAGEMENT_OFF)
    return held


def test_task_that_comes_with_the_signal_is_executed_once(bundle: Bundle) -> None:
    """A process has it already when the loop ends, and has not reported its start; or none has it, then."""
    bundle.add_task(NAP)
    worker = bundle.worker()
    bundle.enqueue("task", "proj.tasks.nap", "1", "--id", "before")
    worker.says("[before] succeeded")  # so its process is up
    eventually("it has nothing to do", lambda: _held(bundle) == 0)
    worker.process.send_signal(signal.SIGSTOP)
    bundle.enqueue("task", "proj.tasks.nap", "2", "--id", "last")
    worker.process.terminate()
    worker.process.send_signal(signal.SIGCONT)

    assert worker.ends() == 0

    assert worker.text().index("Warm shutdown") < worker.text().index("[last] received")
    executed = (bundle.folder / "naps").read_text().split()
    assert ("[last] succeeded" in worker.text()) == (executed == ["1", "2"])
    assert len(executed) + bundle.kept("proj.tasks") == 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_message_that_is_being_delayed_has_no_second_copy(bundle: Bundle, pool: str) -> None:
    """The signal comes when the copy is in its delay queue, and its confirm has not been read."""
    bundle.add_task("""
        from proj.enqueue import publish

        send = publish.send

        def send_slowly(*args: object, **options: object) -> None:
            send(*args, **options)
            if options.get("delayed"):
                print("The copy is there")
                time.sleep(2)

        publish.send = send_slowly

        @app.task(name="proj.tasks.calm", rate_limit="0.5/h")
        def calm() -> None: ...
    """)
    worker = bundle.worker("--pool", pool)
    bundle.enqueue("task", "proj.tasks.calm", "--id", "first")
    worker.says("[first] succeeded")
    bundle.enqueue("task", "proj.tasks.calm", "--id", "second")
    worker.says("The copy is there")

    assert worker.terminate() == 0

    assert bundle.kept("proj.tasks") == 0
    assert sum(map(bundle.depth, queues.DELAY_QUEUES)) == 1


@pytest.mark.celery_docs("Workers: QUIT, pools prefork, threads, solo")
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_is_not_done_when_the_grace_is_over_is_given_back(bundle: Bundle, pool: str) -> None:
    """Another worker executes a task that is too long; the first leaves no file that says that it runs."""
    # A worker that is slow, and does not hang, is not ended by force.
    bundle.switch_off("worker/ending.py", "_WORKER_PATIENCE: Final = 3", "_WORKER_PATIENCE: Final = 60")
    worker = bundle.worker("--pool", pool, "--pidfile=pid", env={"PROJ_SHUTDOWN_GRACE": "1"}).ready()
    heartbeats = bundle.folder / "state" / "workers"
    assert os.listdir(heartbeats)
    assert (bundle.folder / "pid").exists()
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    worker.started("long")

    assert worker.terminate() == 0

    eventually("the message is back", lambda: bundle.depth("proj.tasks") == 1)
    assert bundle.depth("proj.dead") == 0
    assert "Traceback" not in worker.text()
    assert os.listdir(heartbeats) == []
    assert not (bundle.folder / "pid").exists()
    assert json.loads(bundle.proj("result", "long", "--json").stdout)["state"] != "FAILURE"
    bundle.worker(log="next.log").started("long")


def test_task_that_catches_the_signal_is_killed(bundle: Bundle) -> None:
    """A shutdown is bounded, also with code that catches everything; the message goes to another worker."""
    bundle.add_task("""
        @app.task(name="proj.tasks.stubborn")
        def stubborn() -> None:
            log.info("Received it")
            while True:
                try:
                    time.sleep(600)
                except BaseException as error:
                    log.info("Caught %r", error)
    """)
    bundle.switch_off("worker/ending.py", "_PROCESS_PATIENCE: Final = 10", "_PROCESS_PATIENCE: Final = 5")
    bundle.switch_off("worker/ending.py", "_WORKER_PATIENCE: Final = 3", "_WORKER_PATIENCE: Final = 60")
    worker = bundle.worker("--concurrency=2", env={"PROJ_SHUTDOWN_GRACE": "0.2"})
    bundle.enqueue("task", "proj.tasks.stubborn", "--id", "it")
    worker.started("it")

    assert worker.terminate() == 0

    assert worker.lines("Caught SystemExit")
    assert bundle.kept("proj.tasks") == 1
    assert bundle.depth("proj.dead") == 0
    assert "Traceback" not in worker.text()


def test_shutdown_that_hangs_is_ended_by_force(bundle: Bundle) -> None:
    """As in Celery's own deadlocks: its message goes to another worker, and no file says that it runs."""
    bundle.add_task("""
        from celery.signals import worker_shutting_down

        @worker_shutting_down.connect
        def hang(how: str, **_: object) -> None:
            if how == "Cold":
                time.sleep(600)
    """)
    bundle.switch_off("worker/ending.py", "_PROCESS_PATIENCE: Final = 10", "_PROCESS_PATIENCE: Final = 1")
    bundle.switch_off("worker/ending.py", "_WORKER_PATIENCE: Final = 3", "_WORKER_PATIENCE: Final = 0")
    bundle.switch_off("worker/ending.py", "_EXIT_PATIENCE: Final = 1", "_EXIT_PATIENCE: Final = 60")
    worker = bundle.worker("--pidfile=pid", env={"PROJ_SHUTDOWN_GRACE": "0.2"})
    bundle.enqueue("sleep-dots", "600", "--id", "long")
    worker.started("long")

    assert worker.terminate() == 1

    assert "the shutdown hung, and was ended by force" in worker.text()
    assert bundle.kept("proj.tasks") == 1
    assert os.listdir(bundle.folder / "state" / "workers") == []
    assert not (bundle.folder / "pid").exists()


def test_program_that_ran_a_worker_goes_on(bundle: Bundle) -> None:
    """The end of the grace period concerns it no more, once the worker has ended."""
    bundle.env["PROJ_SHUTDOWN_GRACE"] = "60"
    timers, quits = bundle.python("""
import os, signal, sys, threading
from celery.signals import worker_ready
from proj import app

@worker_ready.connect
def end(**_):
    os.kill(os.getpid(), signal.SIGTERM)

try:
    app.Worker(concurrency=1, without_mingle=True).start()
except SystemExit:
    pass
quits = []
signal.signal(signal.SIGQUIT, lambda number, _: quits.append(number))
timers = [each for each in threading.enumerate() if isinstance(each, threading.Timer)]
for timer in timers:
    timer.cancel()
    timer.function()
print([len(timers), quits], file=sys.__stdout__)
""")
    assert timers == 1
    assert quits == []


@pytest.mark.long
def test_rolling_restart_under_load_loses_nothing_and_repeats_nothing(bundle: Bundle) -> None:
    """Two workers are replaced one after the other while tasks wait: each task is executed exactly once."""
    bundle.add_task(NAP)
    workers = [bundle.worker(log=f"old{n}.log").ready() for n in range(2)]
    new: list[Worker] = []
    total, part = 30, 15
    naps, held = bundle.folder / "naps", bundle.folder / "held"

    for n, worker in enumerate(workers):
        held.touch()
        bundle.python(f"""
from proj.tasks import nap
for number in range({n * part}, {(n + 1) * part}): nap.delay(number)
print(0)
""")
        eventually("it is at work", partial(worker.lines, "received"))
        assert bundle.depth("proj.tasks"), "no task waits"
        worker.process.terminate()
        worker.says("Warm shutdown")
        held.unlink()
        assert worker.ends() == 0
        new.append(bundle.worker(log=f"new{n}.log").ready())

    def executed() -> collections.Counter[str]:
        return collections.Counter(naps.read_text().split())

    eventually("all are executed", lambda: len(executed()) == total)
    assert set(executed().values()) == {1}
    assert [worker.terminate() for worker in new] == [0, 0]
    assert bundle.kept("proj.tasks") == 0
    assert bundle.depth("proj.dead") == 0


def test_task_that_may_take_longer_than_the_broker_waits_is_refused_at_the_start(bundle: Bundle) -> None:
    """The broker would end the worker's channel in the middle of it; the line says which two settings."""
    bundle.add_task("""
        @app.task(name="proj.tasks.long", time_limit=1800)
        def long() -> None: ...
    """)

    worker = bundle.worker()

    assert worker.ends() == 2
    for part in ("time_limit of proj.tasks.long", "consumer_timeout", "1800", "PROJ_CONSUMER_TIMEOUT"):
        assert part in worker.text()
    assert "Traceback" not in worker.text()
