"""Request and reply as in pika's tutorial, with confirms: a `server`, or the milliseconds of a `client`."""

import json
import os
import sys
import uuid

import pika

from benchmarks.protocol import milliseconds, serve

connection = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"]))
channel = connection.channel()
channel.queue_declare("bench", durable=True, arguments={"x-queue-type": "quorum"})
channel.confirm_delivery()
replies: dict[str, bytes] = {}


def answer(channel, method, properties, body) -> None:  # type: ignore[no-untyped-def]
    about = pika.BasicProperties(correlation_id=properties.correlation_id)
    channel.basic_publish("", properties.reply_to, json.dumps(sum(json.loads(body))).encode(), about)
    channel.basic_ack(method.delivery_tag)


def ask() -> None:
    request = str(uuid.uuid4())
    about = pika.BasicProperties(delivery_mode=2, reply_to=own, correlation_id=request)
    channel.basic_publish("", "bench", json.dumps([2, 3]).encode(), about, mandatory=True)
    while request not in replies:
        connection.process_data_events(time_limit=60)
    assert json.loads(replies.pop(request)) == 5


if sys.argv[1] == "server":
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume("bench", answer)
    print("ready", flush=True)
    channel.start_consuming()
else:
    own = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_consume(
        own, lambda _, __, properties, body: replies.update({properties.correlation_id: body}), auto_ack=True
    )
    serve(milliseconds(ask))
