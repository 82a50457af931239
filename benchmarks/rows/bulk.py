"""`enqueue_many`: many messages, confirmed."""

from collections.abc import Iterator

import psutil

from benchmarks.broker import vhost_of
from benchmarks.program import Program
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Runner, Stage

BARE, TASKIQ, SAME = "py-amqp, pipelined", "taskiq, gather", "Celery, same settings"
#: Of ours, not of their own.
MESSAGES, PREPARED = "py-amqp, the same messages", "a client that takes no time"
PATTERNS = "… through a topic exchange"

#: Messages of those that have a fast way: some seconds.
FULL = 60_000

ROW = Row(
    key="bulk",
    title="`enqueue_many`, confirmed",
    unit="messages/s",
    contenders=(OURS, BARE, MESSAGES, PREPARED, PATTERNS, TASKIQ, SAME),
    targets=(
        Target(BARE, 0.9, at_least=True),
        Target(MESSAGES, 0.9, at_least=True),
        Target(TASKIQ, 3, at_least=True),
        Target(SAME, 10, at_least=True),
    ),
    more_is_better=True,
    note="A thousand messages in flight. Bare py-amqp sends the two numbers and no headers, and does not know"
    " which message was refused. The same messages are those of ours, with one id, made before: a client that"
    " takes no time only writes their bytes. The topic exchange is `proj`, which delays need. Celery has no"
    " fast way: a loop of `.delay()`.",
)
BROKER = Row(
    key="bulk-broker",
    title="CPU of RabbitMQ for one message of many",
    unit="µs",
    contenders=ROW.contenders,
    note="In the same runs.",
)


def measured(stage: Stage, name: str, full: int, program: Program) -> Iterator[Sample]:
    program.go(stage.size(1000, 100))
    rabbitmq, count = psutil.Process(stage.broker.node.pid), stage.size(full, 100)
    before = sum(rabbitmq.cpu_times()[:2])
    yield Sample(ROW.key, name, program.go(count))
    used = round(sum(rabbitmq.cpu_times()[:2]) - before, 2)  # the system counts hundredths of a second
    yield Sample(BROKER.key, name, used / count * 1e6)


def ours(name: str, module: str, *arguments: str) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place("proj") as place, place.ours(module, *arguments) as program:
            yield from measured(stage, name, FULL, program)

    return run


def peer(name: str, full: int, module: str, *arguments: str, **env: str) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place(vhost_of(name)) as place, place.peer(module, *arguments, **env) as program:
            yield from measured(stage, name, full, program)

    return run


BENCH = Bench(
    "bulk",
    (ROW, BROKER),
    (
        ours(OURS, "bulk"),
        peer(BARE, FULL, "amqp_pipelined"),
        ours(MESSAGES, "same_messages", "py-amqp"),
        ours(PREPARED, "same_messages", "bytes"),
        ours(PATTERNS, "same_messages", "patterns"),
        peer(TASKIQ, 10_000, "taskiq_gather"),
        peer(SAME, 3000, "celery_client", "delay", BENCH_SAME="1"),
    ),
)
