"""A receiver of Celery's events, as Flower is one, that asks no worker for anything."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import kombu
from celery.events.event import get_exchange

from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually


class Watcher:
    def __init__(self, channel: Any) -> None:
        self._channel = channel
        get_exchange(channel.connection.client)(channel).declare()
        self._queue = channel.queue_declare("", exclusive=True).queue
        channel.queue_bind(self._queue, "celeryev", "#")
        self._seen: list[dict[str, Any]] = []

    def events(self, task_id: str) -> list[str]:
        """The types of the events about a task that came so far."""
        return [event["type"] for event in self.about(task_id)]

    def about(self, task_id: str) -> list[dict[str, Any]]:
        while message := self._channel.basic_get(self._queue, no_ack=True):
            found = json.loads(message.body)
            self._seen += found if isinstance(found, list) else [found]
        return [event for event in self._seen if event.get("uuid") == task_id]

    def sees_the_end_of(self, task_id: str) -> None:
        eventually(f"{task_id} has ended", lambda: "task-succeeded" in self.events(task_id))


@contextmanager
def watching(bundle: Bundle) -> Iterator[Watcher]:
    with kombu.Connection(bundle.url) as conn:
        yield Watcher(conn.channel())
