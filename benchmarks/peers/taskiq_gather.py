"""Taskiq on aio-pika with its defaults, quorum queues and confirms: `gather` awaits a thousand at once."""

import asyncio
import os
import time

from taskiq_aio_pika import AioPikaBroker

from benchmarks.protocol import serve

broker = AioPikaBroker(os.environ["BENCH_URL"])

#: Messages in flight.
WINDOW = 1000


@broker.task
async def add(x: float, y: float) -> float:
    return x + y


async def publish(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count // WINDOW or 1):
        await asyncio.gather(*(add.kiq(2, 3) for _ in range(min(WINDOW, count))))
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        runner.run(broker.startup())
        serve(lambda count: runner.run(publish(count)))
