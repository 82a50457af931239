"""After SIGKILL: how soon another worker starts the killed one's task, or a new one a task that waits."""

import time
from collections.abc import Iterator

from benchmarks import worker
from benchmarks.broker import vhost_of
from benchmarks.rounds import OURS, Row, Sample
from benchmarks.stage import Bench, Runner, Stage
from benchmarks.worker import Kind

SAME = "Celery, same settings"

TAKEOVER = Row(
    key="takeover",
    title="from SIGKILL to the start of its task by another worker",
    unit="s",
    contenders=(OURS, SAME),
    note="The other worker has a free slot.",
)
RESTART = Row(
    key="restart",
    title="from the start of a worker to that of a waiting task",
    unit="s",
    contenders=(OURS, SAME),
)


def celery(name: str, vhost: str, kind: Kind) -> Runner:
    def run(stage: Stage) -> Iterator[Sample]:
        with stage.broker.place(vhost) as place:
            file = place.folder / "marks"
            worker.fill(place, kind, [worker.message("bench.hold", str(file))])
            began = time.time()
            with worker.worker(place, kind, "--concurrency=1", number=1) as victim:
                [[started, *_]] = worker.marks(file, 1, victim)
                yield Sample(RESTART.key, name, started - began)
                with worker.worker(place, kind, "--concurrency=1", number=2) as other:
                    worker.await_consumers(place, kind, 2)
                    killed = time.time()
                    victim.kill()
                    yield Sample(TAKEOVER.key, name, worker.marks(file, 2, other)[1][0] - killed)

    return run


BENCH = Bench(
    "takeover",
    (RESTART, TAKEOVER),
    (celery(OURS, "proj", worker.OURS), celery(SAME, vhost_of(SAME), worker.SAME)),
)
