"""Trivial tasks whose results are stored in SQLite, beside the same without."""

from collections.abc import Iterator

from benchmarks import worker
from benchmarks.broker import vhost_of
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.rows.tasks import measure
from benchmarks.stage import Bench, Runner, Stage
from benchmarks.worker import Kind

OFF, SAME = "proj, results off", "Celery, same settings"

PREFORK, THREADS = (
    Row(
        key=f"results-{pool}",
        title=f"trivial tasks, results on (SQLite), `-P {pool}`",
        unit="tasks/s",
        contenders=(OURS, OFF, SAME),
        targets=(Target(OFF, 0.6, at_least=True), Target(SAME, 1, at_least=True)),
        more_is_better=True,
        note=note,
    )
    for pool, note in (("prefork", "Two slots, the same messages."), ("threads", ""))
)


def celery(row: Row, name: str, vhost: str, kind: Kind, pool: str, *, off: bool = False) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place(vhost) as place:
            count = stage.size(3000 if kind is worker.OURS else 600, 100)
            yield Sample(row.key, name, measure(place, kind, count, "-P", pool, ignore_result=off))

    return run


BENCH = Bench(
    "results",
    (PREFORK, THREADS),
    tuple(
        runner
        for row, pool in ((PREFORK, "prefork"), (THREADS, "threads"))
        for runner in (
            celery(row, OURS, "proj", worker.OURS, pool),
            celery(row, OFF, "proj", worker.OURS, pool, off=True),
            celery(row, SAME, vhost_of(SAME), worker.SAME, pool),
        )
    ),
)
