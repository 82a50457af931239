"""Trivial tasks: how many a worker of two slots executes a second, of those that wait when it starts."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import worker
from benchmarks.broker import Place, vhost_of
from benchmarks.program import PEERS, Process
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Runner, Stage
from benchmarks.worker import Kind

THREADS, SAME, STOCK, DRAMATIQ = "proj, -P threads", "Celery, same settings", "Celery, defaults", "dramatiq"

OFF = Row(
    key="tasks",
    title="trivial tasks, results off",
    unit="tasks/s",
    contenders=(OURS, SAME, STOCK, DRAMATIQ, THREADS),
    targets=(Target(SAME, 1, at_least=True), Target(DRAMATIQ, 0.5, at_least=True, goal=True)),
    more_is_better=True,
    note="Two slots; dramatiq has two processes with eight threads each, its default here. Celery's defaults"
    " acknowledge before a task is executed, and lose those of a worker that dies.",
)

#: Executed before the first mark, so that all slots are in use.
WARM_UP = 100


def measure(place: Place, kind: Kind, count: int, *options: str, ignore_result: bool = True) -> float:
    """Tasks a second: between the marks of a first and a last one, in the order of the queue."""
    file = place.folder / "marks"
    adding = [worker.message("bench.add", 2, 3, ignore_result=ignore_result) for _ in range(WARM_UP + count)]
    mark = [worker.message("bench.mark", str(file)) for _ in range(2)]
    worker.fill(place, kind, [*adding[:WARM_UP], mark[0], *adding[WARM_UP:], mark[1]])
    with worker.worker(place, kind, *options) as process:
        return between(worker.marks(file, 2, process), count)


def between(marks: list[list[float]], count: int) -> float:
    return count / (marks[1][0] - marks[0][0])


def celery(name: str, vhost: str, kind: Kind, *options: str) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place(vhost) as place:
            yield Sample(OFF.key, name, measure(place, kind, stage.size(5000, 200), *options))

    return run


def dramatiq(stage: Stage) -> Iterator[Sample]:
    count = stage.size(5000, 200)
    with stage.broker.place(vhost_of(DRAMATIQ)) as place:
        file = place.folder / "marks"
        settings = {"BENCH_MARKS": str(file), "BENCH_WARM_UP": str(WARM_UP)}
        with place.peer("dramatiq_app", **settings) as client:
            client.go(count)
        command: list[str | Path] = [
            PEERS,
            "-m",
            "dramatiq",
            "benchmarks.peers.dramatiq_app",
            "--processes=2",
            "--threads=8",
        ]
        with Process(command, place.folder, {"BENCH_URL": place.url}) as process:
            yield Sample(OFF.key, DRAMATIQ, between(worker.marks(file, 2, process), count))


BENCH = Bench(
    "tasks",
    (OFF,),
    (
        celery(OURS, "proj", worker.OURS),
        celery(SAME, vhost_of(SAME), worker.SAME),
        celery(STOCK, vhost_of(STOCK), worker.STOCK),
        dramatiq,
        celery(THREADS, "proj", worker.OURS, "-P", "threads"),
    ),
)
