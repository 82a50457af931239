"""Bare py-amqp with pipelined confirms: nothing is matched, and a lost connection loses what is open."""

import json
import os
import time
from urllib.parse import urlsplit

import amqp

from benchmarks.peers import pipeline
from benchmarks.protocol import serve

url = urlsplit(os.environ["BENCH_URL"])
connection = amqp.Connection(f"{url.hostname}:{url.port}", virtual_host=url.path[1:])
connection.connect()


def publish(count: int) -> float:
    with connection.channel() as channel:
        channel.queue_declare("bench", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
        start = time.perf_counter()
        about = {"delivery_mode": 2, "content_type": "application/json"}
        messages = (amqp.Message(json.dumps([2, 3]), **about) for _ in range(count))
        return pipeline.publish(channel, "bench", messages) / (time.perf_counter() - start)


if __name__ == "__main__":
    serve(publish)
