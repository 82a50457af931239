"""Publish a text to task_queue, or a sum to add, and wait for the broker's confirm.

Needs pika. Usage: python send.py First message.    or: python send.py --add 221 345
"""

import json
import os
import sys
import uuid

import pika

words = sys.argv[1:]
if words[:1] == ["--add"]:
    queue, body, kind = (
        "add",
        json.dumps({"Number1": int(words[1]), "Number2": int(words[2])}),
        "application/json",
    )
else:
    queue, body, kind = "task_queue", " ".join(words) or "Hello World!", "text/plain"

url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")
with pika.BlockingConnection(pika.URLParameters(url)) as connection:
    channel = connection.channel()
    channel.queue_declare(queue, durable=True)
    channel.confirm_delivery()  # from now on, basic_publish raises what the broker refuses
    properties = pika.BasicProperties(
        message_id=str(uuid.uuid4()),  # a second delivery is recognised by it
        content_type=kind,
        delivery_mode=pika.DeliveryMode.Persistent,
    )
    channel.basic_publish("", queue, body, properties, mandatory=True)
print(f"sent {body}")
