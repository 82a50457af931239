"""A program that enqueues a batch, stops where a fault is to happen, and says how each request ended."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proj.rabbitmq import topology
from tests.lib.bundle import COMMAND_TIMEOUT, Bundle
from tests.lib.waiting import PATIENCE

#: A step of a batch: how many requests of one kind, or `PAUSE`.
Step = tuple[int, dict[str, Any]] | str

PAUSE = "pause"

#: Messages that are taken at once.
_PREFETCH = 100

_PROGRAM = """
import json, sys, time
from proj import app
from proj.enqueue import Batch, enqueue_many
steps, window, polling = json.loads(sys.stdin.readline())
def requests():
    for step in steps:
        if step == "pause":
            print("paused", flush=True)
            sys.stdin.readline()
            continue
        count, request = step
        task = request.get("task", "proj.tasks.sleep_dots")
        args = request.get("args") or ["." * request.get("size", 1)]
        for _ in range(count):
            yield app.signature(task, args).set(**request.get("options", {}))
def polled():
    with Batch(app, window=window) as batch:
        for request in requests():
            batch.put(request)
        while batch.open:
            yield from batch.poll()
            time.sleep(0.01)
        yield from batch.ended()
began = time.monotonic()
for ended in polled() if polling else enqueue_many(requests(), window=window):
    print(json.dumps([ended.status, ended.id, type(ended.error).__name__, str(ended.error or "")]))
print(json.dumps(time.monotonic() - began))
"""


@dataclass(frozen=True)
class Ended:
    """How one request ended: status, id of the message, and the error's class and line."""

    status: str
    id: str
    kind: str
    text: str


@dataclass(frozen=True)
class Batch:
    """How a whole batch ended, and in how many seconds."""

    outcomes: list[Ended]
    seconds: float

    @property
    def statuses(self) -> Counter[str]:
        return Counter(each.status for each in self.outcomes)

    def ids(self, status: str = "confirmed") -> list[str]:
        return [each.id for each in self.outcomes if each.status == status]


def enqueue(
    bundle: Bundle,
    *steps: Step,
    faults: tuple[Callable[[], object], ...] = (),
    window: int = 1000,
    polling: bool = False,
) -> Batch:
    """Enqueue in a program of its own; at each `PAUSE`, one of the faults is called.

    A program that is `polling` waits for no outcome.
    """
    process = bundle.start_python(_PROGRAM)
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps([steps, window, polling]) + "\n")
            process.stdin.flush()
            waiting = list(faults)
            lines = []
            for line in process.stdout:
                if line == "paused\n":
                    waiting.pop(0)()
                    process.stdin.write("\n")
                    process.stdin.flush()
                else:
                    lines.append(json.loads(line))
            process.wait(COMMAND_TIMEOUT)
        except BaseException:
            process.kill()
            raise
    assert not waiting, "a fault was not reached"
    assert lines, "the program died; its last words are above"
    assert isinstance(lines[-1], float), f"the program died after {len(lines)} outcomes"
    *outcomes, seconds = lines
    return Batch([Ended(*each) for each in outcomes], seconds)


def taken(bundle: Bundle, queue: str = "proj.tasks") -> Counter[str]:
    """Take all messages out of the queue; how often each id was there."""
    return Counter(header["id"] for header in taken_headers(bundle, queue))


def taken_headers(bundle: Bundle, queue: str = "proj.tasks") -> list[dict[str, Any]]:
    """Take all messages out of the queue; their headers, in their order."""
    headers: list[dict[str, Any]] = []
    with bundle.channel() as channel:
        count = topology.look(channel, queue).message_count

        def take(message: Any) -> None:
            if len(headers) < count:
                headers.append(message.properties["application_headers"])
                if len(headers) % (_PREFETCH // 2) == 0 or len(headers) == count:
                    channel.basic_ack(message.delivery_tag, multiple=True)

        channel.basic_qos(0, _PREFETCH, False)
        channel.basic_consume(queue, callback=take)
        while len(headers) < count:
            channel.connection.drain_events(timeout=PATIENCE)
    return headers
