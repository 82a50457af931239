"""`.delay()`: one message after the other."""

from collections.abc import Iterator

from benchmarks.broker import vhost_of
from benchmarks.program import Program
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Runner, Stage

#: Of our messages.
PREPARED = "a client that takes no time"

ROW = Row(
    key="delay",
    title="`.delay()`, confirmed",
    unit="messages/s",
    contenders=(OURS, "pika", PREPARED, "Celery, same settings", "Celery, defaults", "dramatiq"),
    targets=(
        Target("pika", 0.85, at_least=True),
        Target("Celery, same settings", 1.8, at_least=True),
    ),
    more_is_better=True,
    note="A loop in one thread. Pika sends the two numbers and no headers. A client that takes no time only"
    " writes the bytes of our message, made before. Celery's defaults wait for no confirm.",
)


def ours(name: str, module: str, *arguments: str) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place("proj") as place, place.ours(module, *arguments) as program:
            yield from _measured(stage, name, program)

    return run


def peer(name: str, module: str, *arguments: str, **env: str) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place(vhost_of(name)) as place, place.peer(module, *arguments, **env) as program:
            yield from _measured(stage, name, program)

    return run


def _measured(stage: Stage, name: str, program: Program) -> Iterator[Sample]:
    program.go(stage.size(200, 20))
    yield Sample(ROW.key, name, program.go(stage.size(3000, 100)))


BENCH = Bench(
    "delay",
    (ROW,),
    (
        ours(OURS, "client", "delay"),
        peer("pika", "pika_publish"),
        ours(PREPARED, "same_messages", "one-by-one"),
        peer("Celery, same settings", "celery_client", "delay", BENCH_SAME="1"),
        peer("Celery, defaults", "celery_client", "delay"),
        peer("dramatiq", "dramatiq_app"),
    ),
)
