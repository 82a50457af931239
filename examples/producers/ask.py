"""Ask for a sum, and wait for the reply. Needs pika. Usage: python ask.py 221 345"""

import json
import os
import sys
import uuid

import pika

if len(sys.argv) != 3:
    sys.exit("Usage: python ask.py 221 345")
url = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")
question = str(uuid.uuid4())

with pika.BlockingConnection(pika.URLParameters(url)) as connection:
    channel = connection.channel()
    channel.queue_declare("add", durable=True)
    answers = channel.queue_declare("", exclusive=True).method.queue
    channel.confirm_delivery()
    properties = pika.BasicProperties(
        message_id=question, correlation_id=question, reply_to=answers, delivery_mode=2
    )
    numbers = {"Number1": int(sys.argv[1]), "Number2": int(sys.argv[2])}
    channel.basic_publish("", "add", json.dumps(numbers), properties, mandatory=True)
    replies = channel.consume(answers, auto_ack=True, inactivity_timeout=60)
    _, reply, answer = next(each for each in replies if each[1] is None or each[1].correlation_id == question)
if reply is None:
    sys.exit("no reply within a minute")
end = json.loads(answer)
if end["status"] != "SUCCESS":
    sys.exit(end["error"])
print(end["result"])
