"""Our messages, made before: `py-amqp` sends many, or only the `bytes` of many are written, or of one by one.

Or these are written for the exchange `proj`, which takes delayed messages and finds queues by `patterns`.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import amqp
from amqp import serialization, spec
from amqp.method_framing import frame_writer
from kombu.utils.url import parse_url

from benchmarks.peers import pipeline
from benchmarks.protocol import rate, serve
from proj import queues
from proj.celery import app
from proj.enqueue.composing import Composer
from proj.tasks import add

#: Bytes that are written to the socket at once, as a batch does.
WRITE = 2**16

#: Bytes of the frame of a confirm.
CONFIRM = 21

url = parse_url(app.conf.broker_url)
connection = amqp.Connection(f"{url['hostname']}:{url['port']}", virtual_host=url["virtual_host"])
connection.connect()
composed = Composer(app).compose(add.s(2, 3))


def by_py_amqp(count: int) -> float:
    """All have the id of the first one, and properties that are encoded already."""
    messages = (composed.message.for_py_amqp() for _ in range(count))
    with connection.channel() as channel:
        start = time.perf_counter()
        sent = pipeline.publish(channel, composed.routing_key, messages, composed.exchange)
        return sent / (time.perf_counter() - start)


def framed(channel: amqp.Channel, exchange: str = composed.exchange) -> bytes:
    """The bytes of a message."""
    frames = bytearray()
    address = serialization.dumps("Bssbb", (0, exchange, composed.routing_key, True, False))
    write = frame_writer(connection, SimpleNamespace(write=frames.extend))
    write(1, channel.channel_id, spec.Basic.Publish, address, composed.message.for_py_amqp())
    return bytes(frames)


def as_bytes(count: int, exchange: str = composed.exchange) -> float:
    """As fast as RabbitMQ takes them: the client only writes the same bytes, and counts confirms."""
    confirmed = sent = 0

    def on_ack(tag: int, multiple: bool) -> None:
        nonlocal confirmed
        confirmed = max(confirmed, tag)

    with connection.channel() as channel:
        message = framed(channel, exchange)
        most = WRITE // len(message)
        channel.confirm_select()
        channel.events["basic_ack"].add(on_ack)
        start = time.perf_counter()
        while confirmed < count:
            next_ones = min(most, count - sent)
            if next_ones and sent + next_ones - confirmed <= pipeline.WINDOW:
                connection.transport.write(message * next_ones)
                sent += next_ones
            else:
                connection.drain_events()
        return count / (time.perf_counter() - start)


def one_by_one(count: int) -> float:
    """As fast as RabbitMQ confirms one message: the client reads no confirm, but waits for its bytes."""
    with connection.channel() as channel:
        message, sock = framed(channel), connection.sock
        channel.confirm_select()

        def publish() -> None:
            sock.sendall(message)
            left = CONFIRM
            while left:
                left -= len(sock.recv(left))

        return rate(publish)(count)


if __name__ == "__main__":
    ways: dict[str, Callable[[int], float]] = {
        "py-amqp": by_py_amqp,
        "bytes": as_bytes,
        "patterns": partial(as_bytes, exchange=queues.task_exchange.name),
        "one-by-one": one_by_one,
    }
    serve(ways[sys.argv[1]])
