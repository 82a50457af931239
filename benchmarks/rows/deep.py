"""A million messages that wait: what publishing and consuming cost then, and the broker and a worker."""

import time
from collections.abc import Iterator
from itertools import repeat

import psutil

from benchmarks import worker
from benchmarks.rounds import Row, Sample
from benchmarks.rows.tasks import WARM_UP, between
from benchmarks.stage import Bench, Stage

DEEP, EMPTY = "a million waiting", "none waiting"

PUBLISHING, BULK, CONSUMING = (
    Row(key=key, title=title, unit=unit, contenders=(DEEP, EMPTY), more_is_better=True, note=note)
    for key, title, unit, note in (
        ("deep-delay", "`.delay()`, deep queue", "messages/s", ""),
        ("deep-bulk", "`enqueue_many`, deep queue", "messages/s", ""),
        ("deep-tasks", "trivial tasks, deep queue", "tasks/s", "Two slots, results off."),
    )
)
START, MEMORY, WORKER = (
    Row(key=key, title=title, unit=unit, contenders=(DEEP, EMPTY), note=note)
    for key, title, unit, note in (
        ("deep-start", "from the start of a worker to that of a task, deep queue", "s", ""),
        (
            "deep-memory",
            "memory of RabbitMQ, deep queue",
            "MB",
            "Of its process, as the system counts it. The messages themselves are on the disk.",
        ),
        ("deep-worker", "memory of a worker with two processes, deep queue", "MB", ""),
    )
)


def run(stage: Stage) -> Iterator[Sample]:
    kind, count = worker.OURS, stage.size(3000, 100)
    rabbitmq = psutil.Process(stage.broker.node.pid)
    for name, waiting in ((EMPTY, 0), (DEEP, stage.size(1_000_000, 5000))):
        with stage.broker.place("proj") as place:
            file = place.folder / "marks"
            ballast, mark = worker.message("bench.add", 2, 3), worker.message("bench.mark", str(file))
            measured = [mark, *repeat(ballast, WARM_UP), mark, *repeat(ballast, count), mark]
            worker.fill(place, kind, measured)
            worker.fill(place, kind, repeat(ballast, waiting))
            yield Sample(MEMORY.key, name, rabbitmq.memory_info().rss / 1e6)
            with place.ours("client", "delay") as client:
                yield Sample(PUBLISHING.key, name, client.go(count))
            with place.ours("bulk") as client:
                yield Sample(BULK.key, name, client.go(stage.size(20_000, 100)))
            began = time.time()
            with worker.worker(place, kind) as process:
                first, *others = worker.marks(file, 3, process)
                yield Sample(START.key, name, first[0] - began)
                yield Sample(CONSUMING.key, name, between(others, count))
                yield Sample(WORKER.key, name, worker.memory(process))


BENCH = Bench("deep", (PUBLISHING, BULK, CONSUMING, START, MEMORY, WORKER), (run,), most_rounds=1)
