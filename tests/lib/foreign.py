"""Programs that know nothing of Celery, and `proj ingest`, which serves them."""

import json
import re
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pika

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.waiting import PATIENCE, eventually


class Ingest:
    """A `proj ingest` that a test has started, and what it logs."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def says(self, words: str, times: int = 1) -> None:
        def said() -> bool:
            if self.text().count(words) >= times:
                return True
            assert self.process.poll() is None or self.text().count(words) >= times, self.text()
            return False

        eventually(f"ingest says {words!r}", said, seen=self.text)

    def consumes(self, *queues: str) -> "Ingest":
        for queue in queues or ("task_queue", "add"):
            self.says(f"consuming queue {queue}")
        return self

    def ends(self) -> int:
        return self.process.wait(PATIENCE)

    def terminate(self) -> int:
        self.process.terminate()
        return self.ends()

    def kill(self) -> None:
        self.process.kill()
        self.ends()

    def rows(self) -> list[tuple[str, str]]:
        """The tasks and ids of the lines about messages."""
        return re.findall(r"(?:Task ([\w.]+)|Message )\[([^\]]+)\]", self.text())


def publish(
    bundle: Bundle, bodies: Iterable[bytes | str], queue: str = "task_queue", **properties: Any
) -> None:
    """Publish as the classic programs do: declare the queue, one message after the other, with confirms."""
    with pika.BlockingConnection(pika.URLParameters(bundle.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish("", queue, body, pika.BasicProperties(**properties), mandatory=True)


def start(bundle: Bundle, log: str = "ingest.log", env: dict[str, str] | None = None) -> Ingest:
    """Start `proj ingest`, which is ended with the test."""
    return Ingest(bundle.start("ingest", env=env, log=log), bundle.folder / log)


def tasks(bundle: Bundle, queue: str = "proj.tasks") -> list[tuple[str, Any]]:
    """The id and the arguments of each message in a work queue; for each it counts as a delivery."""
    found = []
    for message in dead.take(bundle, queue):
        args, kwargs, _ = json.loads(message.body)
        found.append((message.properties["correlation_id"], kwargs or args[0]))
    return found


def settle(bundle: Bundle, *ingests: Ingest, queues: Iterable[str] = ("task_queue",)) -> None:
    """Wait until all is delivered, end the ingests, and see that they have settled it."""

    def seen() -> str:
        return "".join(ingest.text() for ingest in ingests)

    for queue in queues:
        depth = partial(bundle.depth, queue)
        eventually(f"{queue} is empty", lambda depth=depth: not depth(), seen=seen, progress=depth)  # type: ignore[misc]
    for ingest in ingests:
        assert ingest.terminate() == 0
    assert {queue: bundle.kept(queue) for queue in queues} == dict.fromkeys(queues, 0)
