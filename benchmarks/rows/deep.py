"""A million messages that wait: what publishing and consuming cost then, and the broker."""

from collections.abc import Iterator
from itertools import repeat

import psutil

from benchmarks import worker
from benchmarks.rounds import Row, Sample
from benchmarks.rows.tasks import WARM_UP, between
from benchmarks.stage import Bench, Stage

DEEP, EMPTY = "a million waiting", "none waiting"

CONSUMING, PUBLISHING = (
    Row(key=key, title=title, unit=unit, contenders=(DEEP, EMPTY), more_is_better=True, note=note)
    for key, title, unit, note in (
        ("deep-tasks", "trivial tasks, deep queue", "tasks/s", "Two slots, results off."),
        ("deep-delay", "`.delay()`, deep queue", "messages/s", ""),
    )
)
MEMORY = Row(
    key="deep-memory",
    title="memory of RabbitMQ, deep queue",
    unit="MB",
    contenders=(DEEP, EMPTY),
    note="Of its process, as the system counts it. The messages themselves are on the disk.",
)


def run(stage: Stage) -> Iterator[Sample]:
    kind, count = worker.OURS, stage.size(3000, 100)
    rabbitmq = psutil.Process(stage.broker.node.pid)
    for name, waiting in ((EMPTY, 0), (DEEP, stage.size(1_000_000, 5000))):
        with stage.broker.place("proj") as place:
            file = place.folder / "marks"
            ballast, mark = worker.message("bench.add", 2, 3), worker.message("bench.mark", str(file))
            measured = [*repeat(ballast, WARM_UP), mark, *repeat(ballast, count), mark]
            worker.fill(place, kind, measured)
            worker.fill(place, kind, repeat(ballast, waiting))
            yield Sample(MEMORY.key, name, rabbitmq.memory_info().rss / 1e6)
            with place.ours("client", "delay") as client:
                yield Sample(PUBLISHING.key, name, client.go(count))
            with worker.worker(place, kind) as process:
                yield Sample(CONSUMING.key, name, between(worker.marks(file, 2, process), count))


BENCH = Bench("deep", (PUBLISHING, CONSUMING, MEMORY), (run,), most_rounds=1)
