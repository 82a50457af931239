"""Runs one fault: load, fault, heal, drain, check."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import kombu

from proj import queues
from tests.chaos import ledger
from tests.chaos.brokers import Broker
from tests.chaos.checker import check
from tests.chaos.faults import Plan
from tests.chaos.row import Row, Timeline, longest_pause
from tests.chaos.skipping import Skipped
from tests.chaos.stage import WORKERS, Stage, opened

#: Parts of the messages: before the fault, while it begins, and after it.
_BEFORE: Final = 0.3
_DURING: Final = 0.4


def run(plan: Plan, row: Row, broker: Callable[[], Broker], folder: Path, messages: int) -> None:
    """Publish so many messages, and inject the fault in their midst."""
    act = partial(_run, plan, messages, row)
    on_stage(row, broker, folder, act, proxied=plan.proxied, store=plan.store)


def on_stage(
    row: Row, broker: Callable[[], Broker], folder: Path, act: Callable[[Stage], None], **wanted: Any
) -> None:
    """Act on a stage that has what is wanted, on the broker of now; what goes wrong stands in the row."""
    began = time.monotonic()
    try:
        with opened(broker(), folder, **wanted) as stage:
            act(stage)
    except Skipped as why:
        row.skipped = str(why)
    except Exception as error:  # of whatever kind: the faults that follow are to be tried
        line, _, row.details = str(error).partition("\n")
        row.problem = f"{type(error).__name__}: {line}"
        with suppress(Exception):
            _purge(broker())  # or the next fault would find its messages
    row.seconds = time.monotonic() - began


def _purge(broker: Broker) -> None:
    if not broker.private:
        return
    with kombu.Connection(broker.url()) as connection:
        for queue in queues.Topology().queues:
            connection.default_channel.queue_purge(queue.name)


def _run(plan: Plan, messages: int, row: Row, stage: Stage) -> None:
    for _ in range(WORKERS):
        stage.start_worker()
    for way in ("bulk", "single"):
        stage.load.start(way)
    stage.await_workers()
    stage.load.release(int(messages * _BEFORE))
    stage.more_executed(messages // 20)
    stage.load.release(int(messages * _DURING))
    injected = time.time()
    with plan.inject(stage) as row.bit:
        pass
    healed = time.time()
    stage.load.release(messages - stage.load.released)
    stage.load.finish()
    settle(stage, row, injected, healed)


def settle(stage: Stage, row: Row, injected: float, healed: float, **patience: float) -> None:
    """Drain, end the workers, and check."""
    stage.drain(**patience)
    stage.await_workers()  # one that starts does not yet obey
    stage.stop_workers()
    stage.take_dead()
    ledgers = ledger.read(stage.ledgers)
    row.counts = check(ledgers)
    row.pause_s = longest_pause(ledgers, injected)
    row.timeline = Timeline.of(ledgers, injected, healed)
