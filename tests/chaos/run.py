"""A run: all faults that are wanted, and the controls, each on a broker that it can share with others."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import amqp
import kombu
import psutil

from proj import queues
from proj.errors import BrokerNodeError, BrokerUnreachable
from proj.private_node.node import answers
from proj.rabbitmq import topology
from tests.chaos import brokers, controls, environment, harness
from tests.chaos.brokers import Broker
from tests.chaos.controls import Control
from tests.chaos.faults import Plan
from tests.chaos.row import Row

#: Bytes of memory and of disk without which a node runs into its alarms by itself.
_MEMORY: Final = 2**30
_DISK: Final = 2 * 2**30

#: Why something is not tried on a broker of one's own.
_PRIVATE: Final = "it needs a private node"


@dataclass(frozen=True)
class Wanted:
    """What a run consists of."""

    plans: Sequence[Plan]
    controls: Sequence[Control]
    #: Of one fault, unless its plan has another share.
    messages: int
    #: The URL of a broker of one's own; faults that need a private one are skipped.
    elsewhere: str | None = None

    @property
    def length(self) -> int:
        return len(self.plans) + len(self.controls)


def check_machine(memory: int = _MEMORY, disk: int = _DISK) -> None:
    """Raises `BrokerNodeError` when there are fewer bytes of memory or disk."""
    for what, there_is, needed in (
        ("memory", psutil.virtual_memory().available, memory),
        (f"disk in {tempfile.gettempdir()}", shutil.disk_usage(tempfile.gettempdir()).free, disk),
    ):
        if there_is < needed:
            raise BrokerNodeError(
                f"too little {what}: {there_is >> 20} MiB are free, {needed >> 20} are needed",
                "end other programs, or set TMPDIR",
            )


def rows(wanted: Wanted, folder: Path) -> Iterator[Row]:
    """A row for each fault and each control, as soon as it has ended.

    Raises `ProjError` where there cannot be a first broker; later ones are a problem of their rows.
    """
    usual = (1, "")
    keys = dict.fromkeys((plan.nodes, plan.config) for plan in wanted.plans)
    if wanted.controls:
        keys[usual] = None
    for number, key in enumerate(keys):
        shared = _Shared(key, wanted.elsewhere)
        try:
            if not number:
                shared.broker()
            for plan in (plan for plan in wanted.plans if (plan.nodes, plan.config) == key):
                row = Row(plan.fault.name.lower(), plan.fault.value, bound=plan.duplicates)
                if wanted.elsewhere and (plan.private or plan.nodes > 1):
                    row.skipped = _PRIVATE
                else:
                    messages = int(wanted.messages * plan.share)
                    harness.run(plan, row, shared.broker, _place(folder, row), messages)
                yield row
            for control in wanted.controls if key == usual else ():
                row = Row(control.name.lower(), control.value, control=True)
                if wanted.elsewhere:
                    row.skipped = _PRIVATE
                else:
                    controls.run(control, row, shared.broker, _place(folder, row))
                yield row
        finally:
            shared.end()


def _place(folder: Path, row: Row) -> Path:
    return folder / f"{row.fault}-{time.time_ns()}"


class _Shared:
    """A broker for one fault after the other; a new one when one has left it dead."""

    def __init__(self, key: tuple[int, str], elsewhere: str | None) -> None:
        self._key = key
        self._elsewhere = elsewhere
        self._broker: Broker | None = None
        self._cleanup = ExitStack()

    def broker(self) -> Broker:
        if self._broker and self._broker.private and not all(answers(n.info) for n in self._broker.nodes):
            self.end()
        if self._broker is None:
            self._broker = self._cleanup.enter_context(_opened(self._key, self._elsewhere))
            if self._broker.private:
                environment.note(self._broker.nodes[0])
        return self._broker

    def end(self) -> None:
        self._broker = None
        self._cleanup.close()


@contextmanager
def _opened(key: tuple[int, str], elsewhere: str | None) -> Iterator[Broker]:
    if elsewhere is None:
        with brokers.started(*key) as broker:
            yield broker
    else:
        broker = brokers.elsewhere(elsewhere)
        _refuse_used(broker)
        yield broker


def _refuse_used(broker: Broker) -> None:
    """Raises `BrokerUnreachable` where the messages of others would be executed, or be taken away."""
    try:
        with kombu.Connection(broker.url()) as connection:
            channel = connection.default_channel
            topology.declare(channel, queues.Topology())
            for queue in queues.Topology().queues:
                seen = topology.look(channel, queue.name)
                if seen.message_count or seen.consumer_count:
                    raise BrokerUnreachable(
                        f"queue {queue.name} of virtual host {broker.vhost} is in use", "name an empty one"
                    )
    except (OSError, kombu.exceptions.OperationalError, amqp.exceptions.AMQPError) as error:
        raise BrokerUnreachable(f"the broker cannot be used: {error}") from None
