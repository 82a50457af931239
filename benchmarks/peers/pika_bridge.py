"""Bare pika that consumes a foreign queue, and publishes each body to the work queue."""

import os

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"]))
channel = connection.channel()
channel.basic_qos(prefetch_count=200)
PERSISTENT = pika.BasicProperties(delivery_mode=2, content_type="text/plain")


def forward(channel, method, properties, body) -> None:  # type: ignore[no-untyped-def]
    channel.basic_publish("proj", "proj.tasks", body, PERSISTENT)
    channel.basic_ack(method.delivery_tag)


channel.basic_consume("task_queue", forward)
print("ready", flush=True)
channel.start_consuming()
