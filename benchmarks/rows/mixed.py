"""A mixed load: many short tasks and some long ones, on two workers of two slots each."""

import heapq
import random
from collections.abc import Iterator, Sequence

from benchmarks import worker
from benchmarks.broker import vhost_of
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Runner, Stage
from benchmarks.worker import Kind

OPTIMUM, SAME, STOCK = "optimum", "Celery, same settings", "Celery, defaults"

ROW = Row(
    key="mixed",
    title="mixed load",
    unit="s",
    contenders=(OURS, OPTIMUM, SAME, STOCK),
    targets=(Target(OPTIMUM, 1.03),),
    note="From the first start to the last end of tasks that sleep. The optimum gives each free slot the"
    " next task of the queue, in no time. Celery's defaults fetch four messages a slot in advance.",
)

#: Workers, and slots of each.
WORKERS, SLOTS = 2, 2


def durations(count: int) -> list[float]:
    """Seconds of the tasks: each eighth is long, in an order by chance, which is always the same."""
    chance = random.Random(1)
    return [
        chance.uniform(0.8, 1.6) if chance.random() < 1 / 8 else chance.uniform(0.02, 0.2)
        for _ in range(count)
    ]


def optimum(seconds: Sequence[float], slots: int) -> float:
    """Seconds until all tasks have ended if each slot that is free gets the next one: list scheduling."""
    free = [0.0] * slots
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def celery(name: str, vhost: str, kind: Kind) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        seconds = durations(stage.size(150, 24))
        with (
            stage.broker.place(vhost) as place,
            worker.worker(place, kind, f"--concurrency={SLOTS}", number=1) as process,
            worker.worker(place, kind, f"--concurrency={SLOTS}", number=2),
        ):
            worker.await_consumers(place, kind, WORKERS)
            file = place.folder / "marks"
            worker.fill(place, kind, [worker.message("bench.sleep", str(file), each) for each in seconds])
            marks = worker.marks(file, len(seconds), process)
            yield Sample(ROW.key, name, max(end for end, _, _ in marks) - min(start for _, _, start in marks))
        if name == OURS:
            yield Sample(ROW.key, OPTIMUM, optimum(seconds, WORKERS * SLOTS))

    return run


BENCH = Bench(
    "mixed",
    (ROW,),
    (
        celery(OURS, "proj", worker.OURS),
        celery(SAME, vhost_of(SAME), worker.SAME),
        celery(STOCK, vhost_of(STOCK), worker.STOCK),
    ),
)
