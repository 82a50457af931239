"""A bare pika consumer, which marks when it gets each message, and a steady publisher with confirms."""

import json
import os
import sys
import time
from pathlib import Path

import pika

from benchmarks.protocol import serve, steadily

connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"]))
channel = connection.channel()
channel.queue_declare("bench", durable=True, arguments={"x-queue-type": "quorum"})
channel.confirm_delivery()
PERSISTENT = pika.BasicProperties(delivery_mode=2, content_type="application/json")


def start(channel, method, properties, body) -> None:  # type: ignore[no-untyped-def]
    now = time.time()
    file, published = json.loads(body)
    with Path(file).open("a") as marks:
        marks.write(f"{now} {os.getpid()} {published}\n")
    channel.basic_ack(method.delivery_tag)


def publish() -> None:
    body = json.dumps([os.environ["BENCH_MARKS"], time.time()])
    channel.basic_publish("", "bench", body.encode(), PERSISTENT, mandatory=True)


if sys.argv[1] == "consumer":
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("bench", start)
    print("ready", flush=True)
    channel.start_consuming()
else:
    serve(steadily(publish, connection.process_data_events))
