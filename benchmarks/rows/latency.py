"""Latency: from just before a publish to the start of its task, at 20 messages a second."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks import worker
from benchmarks.broker import vhost_of
from benchmarks.program import Process, Program
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Stage

PIKA, SAME = "pika", "Celery, same settings"

MEDIAN, P99 = (
    Row(
        key=key,
        title=f"latency from publish to start, {words}",
        unit="ms",
        contenders=(OURS, PIKA, SAME),
        targets=(Target(PIKA, 1.5),),
        note=note,
    )
    for key, words, note in (
        ("latency", "median", "20 messages a second, to an idle worker of one slot."),
        ("latency-p99", "99 %", ""),
    )
)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def measured(stage: Stage, name: str, file: Path, client: Program, consumer: Process) -> Iterator[Sample]:
    # The first ones connect.
    warm_up, count = 10, stage.size(200, 20)
    client.go(warm_up)
    client.go(count)
    marks = worker.marks(file, warm_up + count, consumer)[warm_up:]
    latencies = [1000 * (started - published) for started, _, published in marks]
    yield Sample(MEDIAN.key, name, median(latencies))
    yield Sample(P99.key, name, percentile(latencies, 0.99))


def ours(stage: Stage) -> Iterator[Sample]:
    with (
        stage.broker.place("proj") as place,
        worker.worker(place, worker.OURS, "--concurrency=1") as consumer,
    ):
        worker.await_consumers(place, worker.OURS, 1)
        file = place.folder / "marks"
        with place.ours("client", "steadily", BENCH_MARKS=str(file)) as client:
            yield from measured(stage, OURS, file, client, consumer)


def celery(stage: Stage) -> Iterator[Sample]:
    kind = worker.SAME
    with (
        stage.broker.place(vhost_of(SAME)) as place,
        worker.worker(place, kind, "--concurrency=1") as consumer,
    ):
        worker.await_consumers(place, kind, 1)
        file = place.folder / "marks"
        with place.peer("celery_client", "steadily", BENCH_SAME="1", BENCH_MARKS=str(file)) as client:
            yield from measured(stage, SAME, file, client, consumer)


def pika(stage: Stage) -> Iterator[Sample]:
    with stage.broker.place(vhost_of(PIKA)) as place, place.peer("pika_consume", "consumer") as consumer:
        file = place.folder / "marks"
        with place.peer("pika_consume", "publisher", BENCH_MARKS=str(file)) as client:
            yield from measured(stage, PIKA, file, client, consumer)


BENCH = Bench("latency", (MEDIAN, P99), (ours, pika, celery))
