"""The lock of those who read dead letters, for tests that count or read them while workers run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
from amqp.exceptions import ResourceLocked

from proj import queues
from tests.lib.waiting import eventually


def take(channel: Any) -> None:
    """Take the lock for the channel's connection. Raises `ResourceLocked` when another has it."""
    channel.queue_declare(queues.DEAD_READER, exclusive=True, durable=False, auto_delete=True)


@contextmanager
def undisturbed(url: str, queue: str) -> Iterator[Any]:
    """A channel; while it is open no worker looks at dead letters, if these are what `queue` holds.

    What a worker looks at is not ready, so that others would neither count nor get it.
    """
    with kombu.Connection(url) as connection:

        def taken() -> bool:
            try:
                take(connection.channel())
            except ResourceLocked:
                return False
            return True

        if queue == queues.dead_queue.name:
            eventually("nobody reads dead letters", taken)
        yield connection.channel()
