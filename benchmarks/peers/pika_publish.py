"""Pika's BlockingConnection with publisher confirms, and the message that its tutorial sends."""

import json
import os

import pika

from benchmarks.protocol import rate, serve

channel = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"])).channel()
channel.queue_declare("bench", durable=True, arguments={"x-queue-type": "quorum"})
channel.confirm_delivery()
PERSISTENT = pika.BasicProperties(delivery_mode=2, content_type="application/json")


def publish() -> None:
    channel.basic_publish("", "bench", json.dumps([2, 3]).encode(), PERSISTENT, mandatory=True)


if __name__ == "__main__":
    serve(rate(publish))
