"""Trivial tasks that wait in the queue: executed a second by two slots, or by twice eight threads."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import worker
from benchmarks.broker import Place, vhost_of
from benchmarks.program import PEERS, Process
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Runner, Stage
from benchmarks.worker import Kind

SAME, STOCK, DRAMATIQ = "Celery, same settings", "Celery, defaults", "dramatiq"

OFF = Row(
    key="tasks",
    title="trivial tasks, results off",
    unit="tasks/s",
    contenders=(OURS, SAME, STOCK),
    targets=(Target(SAME, 1, at_least=True),),
    more_is_better=True,
    note="Two processes. Celery's defaults acknowledge before a task is executed, and lose those of a worker"
    " that dies.",
)
THREADS = Row(
    key="tasks-threads",
    title="the same by two workers of eight threads",
    unit="tasks/s",
    contenders=(OURS, SAME, DRAMATIQ),
    targets=(Target(DRAMATIQ, 0.5, at_least=True, goal=True),),
    more_is_better=True,
    note="Two workers with `-P threads -c 8`. Dramatiq has two processes with eight threads each, its default"
    " on two cores, and a classic queue.",
)

#: The workers of `THREADS`, and the threads of each.
WORKERS, SLOTS = 2, 8

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


def threads(name: str, vhost: str, kind: Kind) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place(vhost) as place:
            yield Sample(THREADS.key, name, _by_threads(place, kind, stage.size(5000, 200)))

    return run


def _by_threads(place: Place, kind: Kind, count: int) -> float:
    """Tasks a second, once all slots of all workers are in use: each waits for a file first."""
    file, gates, gate = (place.folder / name for name in ("marks", "gates", "gate"))
    waiting = [worker.message("bench.wait", str(gates), str(gate)) for _ in range(WORKERS * SLOTS)]
    adding = [worker.message("bench.add", 2, 3) for _ in range(count)]
    mark = [worker.message("bench.mark", str(file)) for _ in range(2)]
    worker.fill(place, kind, [*waiting, mark[0], *adding, mark[1]])
    with ExitStack() as stack:
        options = ("-P", "threads", f"--concurrency={SLOTS}")
        numbers = range(1, WORKERS + 1)
        started = [stack.enter_context(worker.worker(place, kind, *options, number=each)) for each in numbers]
        worker.marks(gates, WORKERS * SLOTS, started[0])
        gate.touch()
        return between(worker.marks(file, 2, started[0]), count)


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
            yield Sample(THREADS.key, DRAMATIQ, between(worker.marks(file, 2, process), count))


BENCH = Bench(
    "tasks",
    (OFF, THREADS),
    (
        celery(OURS, "proj", worker.OURS),
        celery(SAME, vhost_of(SAME), worker.SAME),
        celery(STOCK, vhost_of(STOCK), worker.STOCK),
        threads(OURS, "proj", worker.OURS),
        threads(SAME, vhost_of(SAME), worker.SAME),
        dramatiq,
    ),
)
