"""A hundred threads of one process that call `.delay()`."""

from collections.abc import Iterator

from benchmarks.broker import vhost_of
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Runner, Stage

SAME, STOCK = "Celery, same settings", "Celery, defaults"

ROW = Row(
    key="threads",
    title="`.delay()` by a hundred threads of one process",
    unit="messages/s",
    contenders=(OURS, SAME, STOCK),
    targets=(Target(SAME, 1, at_least=True),),
    more_is_better=True,
    note="All hundred together. Celery's defaults wait for no confirm.",
)


def ours(stage: Stage) -> Iterator[Sample]:
    with stage.broker.place("proj") as place, place.ours("client", "threads") as client:
        client.go(100)
        yield Sample(ROW.key, OURS, client.go(stage.size(3000, 200)))


def celery(name: str, **env: str) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with (
            stage.broker.place(vhost_of(name)) as place,
            place.peer("celery_client", "threads", **env) as client,
        ):
            client.go(100)
            yield Sample(ROW.key, name, client.go(stage.size(3000, 200)))

    return run


BENCH = Bench("threads", (ROW,), (ours, celery(SAME, BENCH_SAME="1"), celery(STOCK)))
