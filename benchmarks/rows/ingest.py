"""Foreign messages: how many `proj ingest` turns into tasks a second."""

import time
from collections.abc import Iterator

import amqp
import kombu

from benchmarks.broker import Place
from benchmarks.program import OURS as PYTHON
from benchmarks.program import Process
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Stage
from proj.rabbitmq import topology
from proj.rabbitmq.publishing import Window
from proj.rabbitmq.transport import PlainTransport

PIKA = "bare pika"

ROW = Row(
    key="ingest",
    title="foreign messages through one `proj ingest`",
    unit="messages/s",
    contenders=(OURS, PIKA),
    targets=(Target(PIKA, 0.5, at_least=True, goal=True),),
    more_is_better=True,
    note="Pika only consumes and publishes: it neither decodes nor checks nor waits for confirms.",
)

#: Bytes as the classic programs send them.
BODY = b"First message."

#: Unconfirmed messages while the queue is filled.
_IN_FLIGHT = 500


def fill(place: Place, count: int) -> None:
    with kombu.Connection(place.url, transport=PlainTransport) as broker, broker.channel() as channel:
        channel.queue_declare("task_queue", durable=True, auto_delete=False)
        window = Window(channel)
        for _ in range(count):
            window.send(amqp.Message(BODY, delivery_mode=2, content_type="text/plain"), "", "task_queue")
            window.wait(room=_IN_FLIGHT)
        window.wait()


def rate(place: Place, count: int, process: Process) -> float:
    """Messages a second in the work queue, from the first that is seen there to the last."""
    with kombu.Connection(place.url) as broker, broker.channel() as channel:
        began, first = 0.0, 0
        while True:
            there = topology.look(channel, "proj.tasks").message_count
            now = time.monotonic()
            if there and not began:
                began, first = now, there
            if there >= count:
                return (count - first) / (now - began)
            if process.popen.poll() is not None:
                raise process.failed("ended")
            time.sleep(0.01)


def ours(stage: Stage) -> Iterator[Sample]:
    count = stage.size(10_000, 500)
    with stage.broker.place("proj") as place:
        fill(place, count)
        with Process([PYTHON.parent / "proj", "ingest"], place.folder, place.env) as process:
            yield Sample(ROW.key, OURS, rate(place, count, process))


def pika(stage: Stage) -> Iterator[Sample]:
    count = stage.size(10_000, 500)
    with stage.broker.place("proj") as place:
        fill(place, count)
        with place.peer("pika_bridge") as process:
            measured = rate(place, count, process)
            process.kill()  # it does not end by itself
            yield Sample(ROW.key, PIKA, measured)


BENCH = Bench("ingest", (ROW,), (ours, pika))
