"""`enqueue_many`: many messages, confirmed."""

from collections.abc import Iterator

from benchmarks.broker import vhost_of
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Runner, Stage

BARE, TASKIQ, SAME = "py-amqp, pipelined", "taskiq, gather", "Celery, same settings"

ROW = Row(
    key="bulk",
    title="`enqueue_many`, confirmed",
    unit="messages/s",
    contenders=(OURS, BARE, TASKIQ, SAME),
    targets=(
        Target(BARE, 0.9, at_least=True),
        Target(TASKIQ, 3, at_least=True),
        Target(SAME, 10, at_least=True),
    ),
    more_is_better=True,
    note="A thousand messages in flight. Bare py-amqp sends the two numbers and no headers, and does not know"
    " which message was refused. Celery has no fast way: a loop of `.delay()`.",
)


def ours(stage: Stage) -> Iterator[Sample]:
    with stage.broker.place("proj") as place, place.ours("bulk") as program:
        program.go(stage.size(1000, 100))
        yield Sample(ROW.key, OURS, program.go(stage.size(20_000, 1000)))


def peer(name: str, full: int, module: str, *arguments: str, **env: str) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place(vhost_of(name)) as place, place.peer(module, *arguments, **env) as program:
            program.go(stage.size(1000, 100))
            yield Sample(ROW.key, name, program.go(stage.size(full, 100)))

    return run


BENCH = Bench(
    "bulk",
    (ROW,),
    (
        ours,
        peer(BARE, 20_000, "amqp_pipelined"),
        peer(TASKIQ, 10_000, "taskiq_gather"),
        peer(SAME, 3000, "celery_client", "delay", BENCH_SAME="1"),
    ),
)
