"""Dead letters for tests: made in milliseconds, without a worker, and seen as users and brokers see them."""

import json
import subprocess
from datetime import datetime
from struct import pack
from typing import Any

import amqp
import amqp.abstract_channel
import pytest

from proj import queues
from proj.rabbitmq import topology
from tests.lib.bundle import Bundle
from tests.lib.waiting import PATIENCE, eventually

#: The queue of a program that is not ours, whose messages die into our dead-letter queue.
OTHER = "other"

#: What the broker takes and Python does not read: Latin-1 where AMQP wants UTF-8, and milliseconds where it
#: wants seconds; each with what it stands in place of.
UNREADABLE = {
    "text": (b"place", b"caf\xe9s"),
    "key": (b"0.proj.tasks", b"\xe9.proj.tasks"),
    "time": (b"T" + pack(">Q", 1_577_836_800), b"T" + pack(">Q", 1_577_836_800_000)),
}


def publish(
    bundle: Bundle, body: object, queue: str = "proj.tasks", count: int = 1, **properties: Any
) -> None:
    with bundle.channel() as channel:
        topology.declare(channel, queues.Topology())
        if queue == OTHER:
            arguments = {"x-dead-letter-exchange": "proj.dead"}
            channel.queue_declare(OTHER, durable=True, auto_delete=False, arguments=arguments)
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        send(channel, [amqp.Message(text, **properties) for _ in range(count)], queue)


def publish_task(
    bundle: Bundle, task_id: str, *args: object, queue: str = "proj.tasks", **properties: Any
) -> None:
    """Publish what Celery publishes, without the checks that `proj enqueue` makes."""
    with bundle.channel() as channel:
        topology.declare(channel, queues.Topology())
        send(channel, [task_message(task_id, *args, **properties)], queue)


def send(channel: Any, messages: list[amqp.Message], queue: str) -> None:
    """Publish, and return when all are confirmed: a quorum queue that is new loses what is not waited for."""
    waiting = set(range(1, len(messages) + 1))

    def confirmed(tag: int, multiple: bool) -> None:
        waiting.difference_update(range(1, tag + 1) if multiple else [tag])

    channel.confirm_select()
    channel.events["basic_ack"].add(confirmed)
    for message in messages:
        channel.basic_publish(message, routing_key=queue)
    while waiting:
        channel.connection.drain_events(timeout=PATIENCE)


def task_message(
    task_id: str, *args: object, task: str = "proj.tasks.add", headers: Any = (), **properties: Any
) -> amqp.Message:
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return amqp.Message(
        json.dumps([args, {}, embedded]).encode(),
        content_type="application/json",
        content_encoding="utf-8",
        correlation_id=task_id,
        application_headers={"id": task_id, "task": task, "lang": "py", "retries": 0, **dict(headers)},
        **properties,
    )


def expire(bundle: Bundle, count: int) -> list[str]:
    """Dead letters that no worker was needed for; their ids, oldest first."""
    ids = [f"id-{number}" for number in range(count)]
    before = depth(bundle)
    with bundle.channel() as channel:
        send(channel, [task_message(task_id, 1, 2, expiration="0") for task_id in ids], "proj.tasks")
    await_count(bundle, before + count)
    return ids


def expire_many(bundle: Bundle, count: int) -> None:
    publish(bundle, [[], {}, {}], count=count, expiration="0")
    await_count(bundle, count)


def depth(bundle: Bundle) -> int:
    """How many there are, also when nothing is declared yet."""
    with bundle.channel() as channel:
        topology.declare(channel, queues.Topology())
    return bundle.depth("proj.dead")


def await_count(bundle: Bundle, count: int) -> None:
    eventually(f"{count} dead letters", lambda: bundle.depth("proj.dead") == count)


def take(bundle: Bundle, queue: str) -> list[amqp.Message]:
    """All messages of the queue as the broker hands them out; they go back when this returns."""
    with bundle.channel() as channel:
        channel.auto_decode = False
        messages = []
        while message := channel.basic_get(queue):
            messages.append(message)
        return messages


def rows(bundle: Bundle, *options: str) -> list[dict[str, Any]]:
    done = bundle.proj("dead", "list", "--json", *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ids(bundle: Bundle, *options: str) -> list[str]:
    return [row["id"] for row in rows(bundle, *options)]


def await_letter(bundle: Bundle, task_id: str, redrives: int = 0) -> None:
    """Wait until it is one: a worker logs and stores the end before it rejects the message."""
    row = {"id": task_id, "redrives": redrives}
    eventually(
        f"{task_id} is a dead letter", lambda: any(row.items() <= each.items() for each in rows(bundle))
    )


def show(bundle: Bundle, task_id: str) -> dict[str, Any]:
    done = bundle.proj("dead", "show", task_id, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def killed_at(
    bundle: Bundle, method: str, call: str, owner: str = "reader._Reader"
) -> subprocess.CompletedProcess[str]:
    """A program that is killed, as by SIGKILL from outside, exactly when it gets to `method`."""
    code = f"""
import os, signal
from proj import app, dead_letters
from proj.dead_letters import publisher, reader
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
{owner}.{method} = die
{call}
"""
    return bundle.run_python(code)


def publish_unreadable(bundle: Bundle, what: str, queue: str, task_id: str = "it") -> None:
    """Publish `add(1, 2)` with one of `UNREADABLE` in what is not its body."""
    message = task_message(task_id, 1, 2, reply_to="place", headers={"at": datetime(2020, 1, 1)})
    old, new = UNREADABLE[what]
    with bundle.channel() as channel, pytest.MonkeyPatch.context() as patch:
        topology.declare(channel, queues.Topology())
        channel.queue_bind(queue, "amq.topic", "#.proj.tasks")
        channel.confirm_select()
        for module, writes in ((message, "_serialize_properties"), (amqp.abstract_channel, "dumps")):
            write = getattr(module, writes)
            patch.setattr(module, writes, lambda *args, write=write: write(*args).replace(old, new))
        channel.basic_publish_confirm(message, "amq.topic", "0.proj.tasks", mandatory=True)
