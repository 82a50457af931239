"""`enqueue_many`, confirmed messages a second."""

import time

from benchmarks.protocol import serve
from proj.enqueue import Status, enqueue_many
from proj.tasks import add


def publish(count: int) -> float:
    start = time.perf_counter()
    for outcome in enqueue_many(add.s(2, 3) for _ in range(count)):
        assert outcome.status is Status.CONFIRMED, outcome
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    serve(publish)
