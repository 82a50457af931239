"""A hundred processes that wait with `.get()` for tasks that do not end."""

from collections.abc import Iterator

from benchmarks.broker import vhost_of
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Stage

SAME = "Celery, same settings"

ROW = Row(
    key="waiting",
    title="CPU of a hundred clients that wait with `.get()`",
    unit="% of a core",
    contenders=(OURS, SAME),
    targets=(Target(SAME, 1),),
    note="All hundred together, in their first 20 seconds; results in SQLite.",
)


def ours(stage: Stage) -> Iterator[Sample]:
    with stage.broker.place("proj") as place, place.ours("client", "wait") as client:
        yield Sample(ROW.key, OURS, client.go(stage.size(20, 2)))


def celery(stage: Stage) -> Iterator[Sample]:
    with (
        stage.broker.place(vhost_of(SAME)) as place,
        place.peer("celery_client", "wait", BENCH_SAME="1") as client,
    ):
        yield Sample(ROW.key, SAME, client.go(stage.size(20, 2)))


BENCH = Bench("waiting", (ROW,), (ours, celery), most_rounds=3)
