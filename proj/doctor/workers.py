"""Checks of the workers: which answer, what they consume, and which tasks they know."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from amqp.exceptions import NotFound

from proj.doctor.broker import CLOCK_TOLERANCE, clock_warning
from proj.doctor.finding import Finding, ok, skipped, warning
from proj.doctor.subject import Subject
from proj.enqueue import own_tasks
from proj.logs.printable import counted
from proj.rabbitmq import topology
from proj.rabbitmq.remote_control import PATIENCE, RemoteControl

#: Seconds to wait for the requested heartbeats, which come at once.
_BEAT_PATIENCE: Final = 3.0

_START: Final = "start one with: celery -A proj worker --loglevel=INFO"


def present_workers(subject: Subject) -> Iterator[Finding]:
    """Check that workers run and consume all work queues."""
    found = {queue.name: _look(subject, queue.name) for queue in subject.topology.work_queues}
    consumers = {name: look.consumer_count if look else 0 for name, look in found.items()}
    answers = subject.workers
    yield from _unconsumed(found, running=bool(answers or any(consumers.values())))
    if not answers and not any(consumers.values()):
        yield warning("no worker is running", "messages wait in the queue until one runs", _START)
        return
    if not answers:
        yield warning(
            f"{sum(consumers.values())} workers consume, but none answers within {PATIENCE:g} s",
            "they are frozen or overloaded, or run with -P solo, or the broker's alarm is on",
            "read their logs, and try: celery -A proj inspect ping --timeout 10",
        )
        return
    slots = {
        name: stats.get("pool", {}).get("max-concurrency", "?") for name, stats in sorted(answers.items())
    }
    yield ok("workers running (slots): " + ", ".join(f"{name} ({count})" for name, count in slots.items()))
    yield from _missing_tasks(subject, list(answers))
    yield from _remote_workers(subject, list(answers))


def worker_clocks(subject: Subject) -> Iterator[Finding]:
    """Check the workers' clocks against this machine's."""
    ahead = _clocks(subject)
    wrong = {name: seconds for name, seconds in ahead.items() if abs(seconds) > CLOCK_TOLERANCE}
    for name, seconds in wrong.items():
        yield clock_warning(f"the clock of worker {name}", seconds)
    if ahead and not wrong:
        yield ok(f"the workers' clocks and this machine's agree, within {CLOCK_TOLERANCE} s")
    for name in subject.workers.keys() - ahead.keys():
        yield skipped(f"the clock of worker {name}: not checked", "it sent no heartbeat in time")


def _look(subject: Subject, queue: str) -> Any | None:
    """The queue on the broker; None when it is missing."""
    with subject.channel() as channel:
        try:
            return topology.look(channel, queue)
        except NotFound:
            return None


def _unconsumed(found: dict[str, Any | None], *, running: bool) -> Iterator[Finding]:
    """Warn of queues that have messages or running workers, but no consumer."""
    for name, look in found.items():
        count = look.message_count if look else 0
        if (look and look.consumer_count) or not (count or running):
            continue
        messages = counted(count, "message") if count else "no message"
        yield warning(
            f"queue {name} has {messages} and no consumer",
            "its messages wait until a worker consumes it",
            f"start one with: celery -A proj worker -Q {name} --loglevel=INFO",
        )


def _missing_tasks(subject: Subject, names: list[str]) -> Iterator[Finding]:
    """Warn of workers that lack a task that is registered here."""
    with subject.channel():
        known = RemoteControl(subject.app, subject.broker).ask("registered", names)
    mine = own_tasks(subject.app).keys()
    for worker, theirs in sorted(known.items()):
        lacking = mine - {name.partition(" ")[0] for name in theirs}
        if lacking:
            yield warning(
                f"worker {worker} does not know {', '.join(sorted(lacking))}",
                "it runs older code or has another PROJ_TASKS, so that their messages become dead letters",
                "restart it with this program's PROJ_TASKS: celery -A proj worker --loglevel=INFO",
            )


def _remote_workers(subject: Subject, names: list[str]) -> Iterator[Finding]:
    """Warn of workers on other machines when the result store is an SQLite file."""
    if not subject.settings.result_backend.startswith("db+sqlite"):
        return
    hosts = {name.partition("@")[2] for name in names} - {socket.gethostname()}
    if hosts:
        yield warning(
            f"workers run on other machines ({', '.join(sorted(hosts))}), but the result store is SQLite",
            "each machine keeps its own results: repeats go unnoticed, and results are not found",
            "set CELERY_RESULT_BACKEND to PostgreSQL everywhere: db+postgresql://user:password@host/database",
        )


def _clocks(subject: Subject) -> dict[str, float]:
    """Seconds by which each worker's clock is ahead of ours, from a heartbeat that is requested."""
    ahead: dict[str, float] = {}
    if not subject.workers:
        return ahead

    def beat(event: dict[str, Any], _message: Any) -> None:
        # Other applications in the virtual host send heartbeats too.
        if event.get("hostname") in subject.workers:
            ahead[event["hostname"]] = event["timestamp"] - time.time()

    with subject.channel() as channel:
        queue = subject.app.events.Receiver(channel, routing_key="worker.heartbeat").queue
        with channel.Consumer([queue], callbacks=[beat], no_ack=True, accept=["json"]):
            RemoteControl(subject.app, subject.broker).broadcast("heartbeat")
            deadline = time.monotonic() + _BEAT_PATIENCE
            with suppress(TimeoutError):
                while ahead.keys() < subject.workers.keys():
                    subject.broker.drain_events(timeout=max(0.01, deadline - time.monotonic()))
    return ahead
