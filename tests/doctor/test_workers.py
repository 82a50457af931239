"""Workers that are missing, frozen, idle, old or elsewhere are found."""

import os
import re
import signal

import pytest

from tests.lib.bundle import Bundle
from tests.lib.findings import (
    LIMIT,
    SLACK,
    Findings,
    about,
    control,
    doctor,
    examine_after,
    finds,
    hurry,
)
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost

#: Acts once, when workers are about to be asked for a heartbeat over a connection that stands.
BEFORE_HEARTBEATS = """
import amqp
acts = [act]
def before(publish):
    def publish_after(channel, message, *args, **options):
        if '"heartbeat"' in str(message.body) and acts:
            acts.pop()()
        return publish(channel, message, *args, **options)
    return publish_after
for name in ("basic_publish", "basic_publish_confirm"):
    setattr(amqp.Channel, name, before(getattr(amqp.Channel, name)))
"""


def test_workers(declared: Bundle) -> None:
    """One on another machine, with another clock, with older code, or idle is told; so is a frozen one."""
    # What a worker on a machine whose clock is a minute behind would say.
    declared.add_task(
        "import celery.events.event as e\ne.Event.__defaults__ = (None, dict, lambda: time.time() - 60)"
    )
    worker = declared.worker("--hostname=w@elsewhere").ready()
    declared.add_task('@app.task(name="proj.tasks.new")\ndef new() -> None: ...')

    worker_warned, clock_warned = ("warning", "present_workers"), ("warning", "worker_clocks")
    found = finds(declared, worker_warned, worker_warned, clock_warned)
    about(found, "present_workers", "w@elsewhere does not know proj.tasks.new")
    about(found, "present_workers", "other machines (elsewhere)", "SQLite")
    told = about(found, "worker_clocks", "w@elsewhere", "s behind this machine's")["what"]
    assert 59 <= int(re.findall(r"(\d+) s behind", told)[0]) <= 90  # the event is on its way, too

    control(declared, "control", "cancel_consumer", "proj.tasks")
    found = finds(declared, worker_warned, worker_warned, worker_warned, clock_warned)
    idle = about(found, "present_workers", "queue proj.tasks has no message and no consumer")
    assert "celery -A proj worker -Q proj.tasks" in idle["fix"]
    control(declared, "control", "add_consumer", "proj.tasks")
    finds(declared, worker_warned, worker_warned, clock_warned)

    os.kill(worker.process.pid, signal.SIGSTOP)
    about(doctor(declared), "present_workers", "1 workers consume, but none answers")


def test_broker_that_freezes_while_the_clocks_are_compared(own: Bundle) -> None:
    """The question to the workers is bounded in time, as all else is."""
    own.worker().ready()
    hurry(own)
    freeze = f"""
import os, signal, threading
def act():
    os.kill({own.node.pid}, signal.SIGSTOP)
    thaw = threading.Timer({LIMIT + SLACK}, os.kill, ({own.node.pid}, signal.SIGCONT))
    thaw.daemon = True
    thaw.start()
"""

    def compared() -> tuple[Findings, float] | None:
        try:
            found, seconds = examine_after(own, freeze + BEFORE_HEARTBEATS)
        finally:
            os.kill(own.node.pid, signal.SIGCONT)
        # Who stalls for a second before is not asked for its clock, and nothing freezes.
        return (found, seconds) if "worker_clocks" in {each["check"] for each in found} else None

    found, seconds = eventually("the clocks are compared", compared) or ([], 0)
    assert about(found, "worker_clocks")["level"] == "skipped"
    assert seconds < LIMIT + SLACK


def test_heartbeat_of_another_application(declared: Bundle) -> None:
    """In the same virtual host, it is not taken for that of the worker that is waited for."""
    declared.worker().ready()
    foreign = """
def act():
    beat = {"type": "worker-heartbeat", "hostname": "celery@other", "timestamp": time.time() - 3600}
    with app.connection_for_write() as connection:
        connection.Producer().publish(beat, exchange="celeryev", routing_key="worker.heartbeat")
"""

    def levels() -> list[str]:
        found, _ = examine_after(declared, foreign + BEFORE_HEARTBEATS)
        return [each["level"] for each in found if each["check"] == "worker_clocks"]

    eventually("its own clock is right", lambda: levels() == ["ok"])
