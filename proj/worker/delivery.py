"""Decides what happens to a delivery: it is executed now, delayed, or made a dead letter."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final
from weakref import WeakSet

from celery import signals
from celery.app.task import Task
from celery.utils.collections import LimitedSet
from celery.worker.state import REVOKE_EXPIRES, REVOKES_MAX, revoked, task_reserved
from celery.worker.strategy import hybrid_to_proto2, proto1_to_proto2
from kombu.asynchronous.timer import Entry

from proj import queues
from proj.dead_letters.reasons import Reason
from proj.enqueue import checks
from proj.worker import pools, watchers
from proj.worker.request import Request

#: Messages a second: up to this rate limit, messages wait for their turns in delay queues, which count whole
#: seconds. Above it, turns are less than a second apart, and messages wait for them in their slots.
MAX_TURNS: Final = 1.0

#: Messages that have come since they were redriven: the id, and how often.
_redriven: Final = LimitedSet(maxlen=REVOKES_MAX, expires=REVOKE_EXPIRES)


def strategy(task: Task, app: Any, consumer: Any) -> Callable[..., None]:
    """The function that receives the deliveries of one task; it replaces Celery's `default` strategy.

    It raises errors of the message and of the broker; `Consumer.create_task_handler` handles both.
    """

    utc_by_default, has_processes = app.uses_utc_timezone(), pools.has_processes(consumer.pool)

    def receive(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        headers, decoded, utc = message.headers, False, utc_by_default
        is_shallow = pools.is_shallow(message.body)
        if body is not None:  # Celery's message protocol 1, with the arguments in the body
            body, headers, decoded, utc = proto1_to_proto2(message, body)
        elif isinstance(payload := message.payload, dict) and "args" in payload:
            body, headers, decoded, utc = hybrid_to_proto2(message, payload)
        elif decoded := is_shallow and has_processes:
            body = payload  # which the process need not decode again
        else:
            # Pickle reaches less deep than JSON, and a task of this process may change what it is given.
            body = message.body
        request = Request(
            message,
            on_ack=ack,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            task=task,
            connection_errors=consumer.connection_errors,
            body=body,
            headers=headers,
            decoded=decoded,
            utc=utc,
            is_shallow=is_shallow,
        )
        if queues.DELIVERIES_HEADER in message.headers and request.deliveries > queues.DELIVERY_LIMIT:
            # The broker counts only the deliveries of this copy.
            request.bury(Reason.DELIVERY_LIMIT, f"given back {request.deliveries} times")
            return
        if redrives := message.headers.get(queues.REDRIVES_HEADER):
            _forget_revocation(request.id, redrives)
        if request.revoked():
            return
        signals.task_received.send(sender=consumer, request=request)
        if watchers.are_sent(request.eventer):
            request.send_event(
                "task-received",
                name=request.name,
                args=request.argsrepr,
                kwargs=request.kwargsrepr,
                root_id=request.root_id,
                parent_id=request.parent_id,
                retries=request.request_dict.get("retries", 0),
                eta=request.eta and request.eta.isoformat(),
                expires=request.expires and request.expires.isoformat(),
            )
        bucket = consumer.task_buckets[task.name]
        if bucket and queues.TURN_HEADER in message.headers:
            bucket = None
        if request.eta and (seconds := _seconds_until(request.eta)) > 0:
            consumer.delays.send(request, seconds, "eta")
            return
        wait = consumer.turns.next(task.name, bucket.fill_rate) if bucket else 0
        if wait and bucket.fill_rate <= MAX_TURNS:
            consumer.delays.send(request, math.ceil(wait), "rate limit", is_turn=True)
            return
        task_reserved(request)
        for callback in callbacks:
            callback(request)
        if wait:
            consumer.turns.wait(consumer.timer, wait, execute, request)
        else:
            execute(request)

    def execute(request: Request) -> None:
        consumer.on_task_request(request)
        if has_processes:
            pools.send_at_once(consumer)

    return receive


class Turns:
    """The turns that this worker assigns to messages of tasks with a rate limit."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._waiting: WeakSet[Entry] = WeakSet()

    def next(self, task_name: str, rate: float) -> float:
        """Assign the next turn of a task with `rate` messages a second. Returns the seconds until then."""
        now = time.time()
        turn = max(now, self._next.get(task_name, now))
        self._next[task_name] = turn + 1 / rate
        return min(turn - now, checks.MAX_DELAY)

    def wait(self, timer: Any, seconds: float, execute: Callable[..., None], *args: Any) -> None:
        """Call `execute` after `seconds`; until then the message holds its slot."""
        self._waiting.add(timer.call_after(seconds, execute, args))

    def forget(self) -> None:
        """Forget all turns, such as when a limit changes."""
        self._next.clear()

    def drop(self) -> None:
        """Drop what waits in slots: its connection is lost, and the broker delivers it again."""
        for entry in self._waiting:
            entry.cancel()


def _forget_revocation(task_id: str, redrives: object) -> None:
    """Forget that the message was revoked before it was redriven, when its first delivery since then comes.

    A revocation since then is in the result store, by which `proj.worker.revocation` finds it.
    """
    life = f"{task_id} {redrives}"
    if life not in _redriven:
        _redriven.add(life)
        revoked.discard(task_id)


def _seconds_until(moment: datetime) -> int:
    seconds = math.ceil((moment - datetime.now(UTC)).total_seconds())
    return min(seconds, checks.MAX_DELAY)  # after a longer delay the message is delayed again
