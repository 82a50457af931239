"""`.delay().get()`: one request after the other, answered by a worker of one slot."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks import worker
from benchmarks.broker import vhost_of
from benchmarks.rounds import OURS, Row, Sample, Target
from benchmarks.stage import Bench, Stage

PIKA, RPC, STOCK = "pika, request and reply", "Celery, rpc://", "Celery, SQLite"

ROW = Row(
    key="get",
    title="`.delay().get()`",
    unit="ms",
    contenders=(OURS, PIKA, STOCK, RPC),
    targets=(Target(PIKA, 3),),
    note="From the call to the result. Ours and Celery's SQLite store the result; pika's and rpc:// lose it"
    " with the client.",
)


def ours(stage: Stage) -> Iterator[Sample]:
    with (
        stage.broker.place("proj") as place,
        worker.worker(place, worker.OURS, "--concurrency=1"),
        place.ours("client", "get") as client,
    ):
        client.go(stage.size(20, 2))
        yield Sample(ROW.key, OURS, client.go(stage.size(100, 10)))


def celery(stage: Stage, name: str, backend: dict[str, str], count: int) -> Iterator[Sample]:
    kind = replace(worker.SAME, env=backend)
    with (
        stage.broker.place(vhost_of(name)) as place,
        worker.worker(place, kind, "--concurrency=1"),
        place.peer("celery_client", "get", BENCH_SAME="1", **backend) as client,
    ):
        client.go(2)
        yield Sample(ROW.key, name, client.go(count))


def stock(stage: Stage) -> Iterator[Sample]:
    yield from celery(stage, STOCK, {}, stage.size(20, 2))


def rpc(stage: Stage) -> Iterator[Sample]:
    yield from celery(stage, RPC, {"BENCH_BACKEND": "rpc://"}, stage.size(100, 10))


def pika(stage: Stage) -> Iterator[Sample]:
    with (
        stage.broker.place(vhost_of(PIKA)) as place,
        place.peer("pika_reply", "server"),
        place.peer("pika_reply", "client") as client,
    ):
        client.go(stage.size(20, 2))
        yield Sample(ROW.key, PIKA, client.go(stage.size(100, 10)))


BENCH = Bench("get", (ROW,), (ours, pika, stock, rpc))
