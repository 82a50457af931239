"""Workers that are measured, the messages that wait for them, and the marks that their tasks leave."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import amqp
import celery
import kombu
import psutil
from amqp.exceptions import NotFound

from benchmarks import program
from benchmarks.broker import Place
from benchmarks.peers import pipeline
from benchmarks.program import PATIENCE, Process, ProgramFailed

#: Seconds between two looks at a file of marks.
_INTERVAL: Final = 0.005

_writer = celery.Celery("writer", set_as_current=False)


@dataclass(frozen=True)
class Kind:
    """A worker of Celery's command, and the queue that it consumes."""

    application: str
    queue: str
    arguments: dict[str, Any] | None
    python: Path = program.PEERS
    same: bool = False
    env: Mapping[str, str] = field(default_factory=dict)


OURS: Final = Kind("benchmarks.ours.tasks", "proj.tasks", None, program.OURS)
STOCK: Final = Kind("benchmarks.peers.celery_app", "celery", {})
SAME: Final = Kind("benchmarks.peers.celery_app", "celery", {"x-queue-type": "quorum"}, same=True)


def message(task: str, *args: Any, ignore_result: bool = True) -> amqp.Message:
    """What Celery sends for a call of the task, or close to it."""
    task_id = str(uuid.uuid4())
    made = _writer.amqp.as_task_v2(task_id, task, args, {}, ignore_result=ignore_result)
    content_type, encoding, body = kombu.serialization.dumps(made.body, "json")
    return amqp.Message(
        body,
        content_type=content_type,
        content_encoding=encoding,
        application_headers=made.headers,
        delivery_mode=2,
        **made.properties,
    )


def fill(place: Place, kind: Kind, messages: Iterable[amqp.Message]) -> None:
    """Publish the messages to the queue, and return when all are confirmed."""
    with kombu.Connection(place.url) as connection:
        channel = connection.channel()
        if kind.arguments is not None:
            channel.queue_declare(kind.queue, durable=True, auto_delete=False, arguments=kind.arguments)
        pipeline.publish(channel, kind.queue, messages)


@contextmanager
def worker(place: Place, kind: Kind, *options: str, number: int = 1) -> Iterator[Process]:
    """A worker of two slots, unless the options say otherwise; it is killed in the end."""
    command: list[str | Path] = [
        kind.python,
        "-m",
        "celery",
        "-A",
        kind.application,
        "worker",
        "--loglevel=WARNING",
    ]
    env = place.env
    if kind.python != program.OURS:
        env = {"BENCH_URL": place.url, "BENCH_BACKEND": env["CELERY_RESULT_BACKEND"]}
        env |= {"BENCH_SAME": "1"} if kind.same else {}
        env |= kind.env
    mine = ["--concurrency=2", "--without-mingle", f"--hostname=w{number}@%h", *options]
    with Process([*command, *mine], place.folder, env) as process:
        yield process


def marks(file: Path, count: int, process: Process) -> list[list[float]]:
    """The lines of the file once there are so many."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        text = file.read_text() if file.exists() else ""
        if text.count("\n") >= count:
            return [[float(word) for word in line.split()] for line in text.splitlines()]
        if process.popen.poll() is not None:
            raise process.failed("ended")
        time.sleep(_INTERVAL)
    raise process.failed(f"left no {count} marks in {PATIENCE} s")


def memory(process: Process) -> float:
    """Megabytes of a worker, its main process and those that execute tasks: what they share counts once."""
    main = psutil.Process(process.popen.pid)
    return sum(each.memory_full_info().pss for each in (main, *main.children(recursive=True))) / 1e6


def await_consumers(place: Place, kind: Kind, count: int) -> None:
    """Return when so many workers consume the queue."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with kombu.Connection(place.url) as connection, suppress(NotFound):
            if connection.channel().queue_declare(kind.queue, passive=True).consumer_count >= count:
                return
        time.sleep(0.1)
    raise ProgramFailed(f"{kind.application} did not consume {kind.queue} in {PATIENCE} s")
