"""Dramatiq with RabbitMQ, its defaults and confirms; its queues are classic, it knows no others."""

import os
import time
from pathlib import Path

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchmarks.protocol import rate, serve

dramatiq.set_broker(RabbitmqBroker(url=os.environ["BENCH_URL"], confirm_delivery=True))


@dramatiq.actor
def add(x: float, y: float) -> float:
    return x + y


@dramatiq.actor
def mark(file: str) -> None:
    now = time.time()
    with Path(file).open("a") as marks:
        marks.write(f"{now}\n")


def fill(count: int) -> None:
    """Enqueue some to warm up, then `count` between two marks."""
    for _ in range(int(os.environ["BENCH_WARM_UP"])):
        add.send(2, 3)
    mark.send(os.environ["BENCH_MARKS"])
    for _ in range(count):
        add.send(2, 3)
    mark.send(os.environ["BENCH_MARKS"])


if __name__ == "__main__":
    add.send(2, 3)
    serve(fill if "BENCH_MARKS" in os.environ else rate(lambda: add.send(2, 3)))
