"""Workers that are missing, frozen, idle, old or elsewhere are found."""

import os
import signal

from tests.bundle import BIN, Bundle, eventually
from tests.doctor.findings import about, bad, doctor, follow


def test_workers(declared: Bundle) -> None:
    """One on another machine, with another clock, with older code, or idle is told; so is a frozen one."""
    # What a worker on a machine whose clock is a minute behind would say.
    declared.add_task(
        "import celery.events.event as e\ne.Event.__defaults__ = (None, dict, lambda: time.time() - 60)"
    )
    worker = declared.worker("--hostname=w@elsewhere").ready()
    declared.add_task('@app.task(name="proj.tasks.new")\ndef new() -> None: ...')
    found = doctor(declared)

    assert bad(found) == [
        ("warning", "present_workers"),
        ("warning", "present_workers"),
        ("warning", "worker_clocks"),
    ]
    about(found, "present_workers", "w@elsewhere does not know proj.tasks.new")
    about(found, "present_workers", "other machines (elsewhere)", "SQLite")
    about(found, "worker_clocks", "w@elsewhere", "60 s behind this machine's")

    cancelled = declared.run(BIN / "celery", "-A", "proj", "control", "cancel_consumer", "proj.tasks")
    assert cancelled.returncode == 0, cancelled
    idle = about(doctor(declared), "present_workers", "none consumes queue proj.tasks")
    follow(declared, idle)
    eventually("it consumes again", lambda: len(bad(doctor(declared))) == 3)

    os.kill(worker.process.pid, signal.SIGSTOP)
    about(doctor(declared), "present_workers", "1 workers consume, and none answers")
