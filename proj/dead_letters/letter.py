"""A dead letter: its fields, its filter, and the message that a redrive sends."""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import amqp
from celery import Celery

from proj import queues, results
from proj.dead_letters.foreign import COPY_HEADERS, FIRST_DEATH, Foreign
from proj.dead_letters.reasons import Reason
from proj.dead_letters.unpacking import NotUnpacked, unpack
from proj.enqueue import checks
from proj.rabbitmq.publishing import copy_of

#: Headers and prefixes of headers that a redrive removes: what the broker and the delays have added.
_DROPPED_HEADERS: Final = (
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    queues.TURN_HEADER,
    queues.DELIVERIES_HEADER,
)


class DeadLetter:
    """A message of the dead-letter queue. Its properties never raise, whatever the message holds."""

    def __init__(self, message: amqp.Message, work_queues: Collection[str] = (queues.DEFAULT_QUEUE,)) -> None:
        """`work_queues` are the names of ours, whose delivery limit is known."""
        self._work_queues = work_queues
        self.message = message
        self.properties: dict[str, Any] = message.properties
        self.headers: dict[str, Any] = self.properties.get("application_headers") or {}
        body = message.body
        self.body: bytes = body if isinstance(body, bytes) else str(body).encode()
        deaths = self.headers.get("x-death")
        #: The broker's `x-death` history, most recent first.
        self.deaths = [d for d in deaths if isinstance(d, dict)] if isinstance(deaths, list) else []
        death = self._latest_death()
        queue, died = death.get("queue"), death.get("time")
        #: What is known of a message from which no task could be made; None for all others.
        self.foreign = None if self.deaths else Foreign.of(self.headers)
        #: The queue it came from; None when unknown.
        self.queue = queue if _can_be_queue(queue) else None
        reason = death.get("reason")
        self.reason = reason if isinstance(reason, str) else Reason.UNKNOWN
        #: Times of its last and first death: ISO 8601, UTC.
        self.last = f"{died:%FT%TZ}" if isinstance(died, datetime) else None
        if self.foreign:
            self.queue = self.foreign.origin if _can_be_queue(self.foreign.origin) else None
            self.reason, self.last = self.foreign.reason, self.foreign.died
        first = self.headers.get(FIRST_DEATH)
        self.first = first if isinstance(first, str) else self.last

    @property
    def id(self) -> str:
        names = (
            self.headers.get("id"),
            self.properties.get("correlation_id"),
            self.properties.get("message_id"),
        )
        return next((name for name in names if isinstance(name, str) and name), "-")

    @property
    def task(self) -> str | None:
        """The name of its task; None when it is not a Celery message."""
        name, named = self.headers.get("task"), isinstance(self.headers.get("id"), str)
        return name if isinstance(name, str) and named and self.arguments is not None else None

    @property
    def redrives(self) -> int:
        count = self.headers.get(queues.REDRIVES_HEADER)
        return count if isinstance(count, int) else 0

    @property
    def attempts(self) -> int | None:
        """Executions since it was sent, according to the message; None when unknown.

        Counts one too many when a worker rejected it unexecuted, which only the result store knows: see
        `attempts_of`.
        """
        if self.foreign:
            return 0
        retries = self.headers.get("retries")
        by_death: dict[str, int] = {
            Reason.REJECTED: 1 if self.task and checks.is_id(self.headers.get("id")) else 0,
            Reason.DELIVERY_LIMIT: queues.DELIVERY_LIMIT + 1,
        }
        known = by_death.get(self.reason, 0) + (retries if isinstance(retries, int) else 0)
        # The delivery limits of other queues are unknown.
        is_known = self.reason != Reason.DELIVERY_LIMIT or self.queue in self._work_queues
        return known if self.deaths and is_known else None

    @property
    def arguments(self) -> str | None:
        """The arguments in the form of a call; None when the body is not a task's."""
        try:
            args, kwargs, _ = json.loads(self._content)
            named = [f"{name}={json.dumps(value)}" for name, value in kwargs.items()]
            return ", ".join([*map(json.dumps, args), *named])
        except NotUnpacked as error:
            return f"({error})"
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None

    @property
    def embedded(self) -> dict[str, Any]:
        """The part of the body that holds Celery's callbacks, chord and chain."""
        try:
            _, _, embedded = json.loads(self._content)
        except (NotUnpacked, ValueError, TypeError, RecursionError):
            return {}
        return embedded if isinstance(embedded, dict) else {}

    @property
    def text(self) -> str:
        """The body, decompressed."""
        try:
            return self._content.decode("utf-8", "backslashreplace")
        except NotUnpacked as error:
            return f"({error}) {self.body.decode('utf-8', 'backslashreplace')}"

    @property
    def _content(self) -> bytes:
        # Not cached: decompressed, many dead letters would take many times their size.
        compression = self.headers.get("compression")
        return unpack(self.body, compression) if compression else self.body

    def again(self) -> amqp.Message:
        """The message for a redrive: the original without its death, its expiry and its retries."""
        if self.foreign:
            return self.foreign.again(self.body, self.redrives, self.first)
        headers = {
            name: value
            for name, value in self.headers.items()
            if not str(name).startswith(_DROPPED_HEADERS) and name not in COPY_HEADERS
        }
        if _is_over(headers.get("expires")):
            headers["expires"] = None  # or the worker would dead-letter it as expired
        now = time.time()
        headers |= {
            queues.REDRIVES_HEADER: self.redrives + 1,
            queues.REDRIVEN_HEADER: now,
            queues.REPEAT_HEADER: True,
        }
        if queues.DUE_HEADER in headers:
            headers[queues.DUE_HEADER] = now
        if {"task", "retries"} <= headers.keys():
            headers["retries"] = 0  # or a task that used up its retries would get none
        if self.first:
            headers[FIRST_DEATH] = self.first
        return copy_of(self.message, self.body, headers)

    def _latest_death(self) -> dict[str, Any]:
        last = self.headers.get("x-last-death-queue"), self.headers.get("x-last-death-reason")
        latest = (death for death in self.deaths if (death.get("queue"), death.get("reason")) == last)
        return next(latest, self.deaths[0] if self.deaths else {})


class Outcomes:
    """Looks up outcomes of dead letters in the result store; stops after its first error."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        #: The store's error, in words.
        self.problem: str | None = None

    def of(self, letter: DeadLetter) -> results.Outcome | None:
        """The stored outcome; None when the store fails or cannot hold such an id."""
        if self.problem or not checks.is_id(letter.id):
            return None
        try:
            return results.outcome(self._app, letter.id)
        except Exception as error:  # of any kind of store, and it must not hide the dead letters
            self.problem = str(error)
            return None


def attempts_of(letter: DeadLetter, outcome: results.Outcome | None) -> int | None:
    """Executions since it was sent; None when unknown."""
    rejected_unexecuted = letter.reason == Reason.REJECTED and outcome and not outcome.executed
    return letter.attempts - 1 if letter.attempts and rejected_unexecuted else letter.attempts


@dataclass(frozen=True)
class Wanted:
    """A filter for dead letters; a field that is None matches all."""

    ids: Collection[str] | None = None
    task: str | None = None
    reason: str | None = None

    def __contains__(self, letter: DeadLetter) -> bool:
        return (
            (self.ids is None or letter.id in self.ids)
            and (self.task is None or letter.headers.get("task") == self.task)
            and (self.reason is None or letter.reason == self.reason)
        )


def _can_be_queue(name: Any) -> bool:
    return isinstance(name, str) and name != queues.dead_queue.name and queues.can_be_name(name)


def _is_over(moment: Any) -> bool:
    try:
        ends = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return False
    return (ends if ends.tzinfo else ends.replace(tzinfo=UTC)) <= datetime.now(UTC)
