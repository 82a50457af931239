"""Controls: the same ledgers and the same checker, and a protection less. One that loses nothing is blind."""

import enum
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from tests.chaos import harness
from tests.chaos.brokers import Broker
from tests.chaos.ledger import HELD, HOLD, Kind
from tests.chaos.row import Row
from tests.chaos.skipping import Skipped
from tests.chaos.stage import SLOTS, Change, Stage
from tests.chaos.stock import KIND, Stock
from tests.lib import fork_server
from tests.lib.bundle import BIN
from tests.lib.erlang import evaluate
from tests.lib.worker import Worker

#: Messages of a control.
_MESSAGES: Final = 200

#: Those that a publisher sends to a broker that reads nothing any more.
_UNREAD: Final = 20

#: Seconds without any progress, after which what is missing is lost.
_PATIENCE: Final = 5.0

#: RabbitMQ without the queues of one control.
_WITHOUT_TRANSIENT: Final = (4, 3)


class Control(enum.Enum):
    """What is taken away, and the fault, in one sentence."""

    STOCK = "Celery with its defaults, and SIGKILL of a worker with its processes"
    EARLY_ACK = "proj with early acknowledgements, and SIGKILL of a worker with its processes"
    NO_CONFIRMS = "Celery without confirms, and a broker that stops reading and is then killed"
    TRANSIENT = "Celery on a classic transient queue, and a graceful restart of the broker"


@dataclass(frozen=True)
class Plan:
    """What a control does with a stage, and what it takes out of the project before."""

    act: Callable[[Stage], str]
    changes: tuple[Change, ...] = ()


def run(control: Control, row: Row, broker: Callable[[], Broker], folder: Path) -> None:
    """Whether the control loses something."""
    plan = _PLANS[control]

    def act(stage: Stage) -> None:
        began = time.time()
        row.bit = plan.act(stage)
        harness.settle(stage, row, began, time.time(), patience=_PATIENCE)

    harness.on_stage(row, broker, folder, act, changes=plan.changes)


# --- Programs of stock Celery


def _env(stage: Stage, stock: Stock) -> dict[str, str]:
    stage.queue = stock.queue
    return {KIND: stock.value, "CHAOS_BROKER": stage.broker.url()}


def _worker(stage: Stage, stock: Stock) -> Worker:
    name = f"s{len(stage.workers) + 1}"
    command = [str(BIN / "celery"), "-A", "tests.chaos.stock", "worker", f"--concurrency={SLOTS}"]
    path = stage.bundle.folder / f"{name}.log"
    with path.open("wb") as log:
        process = fork_server.popen(
            [
                *command,
                f"--hostname={name}@chaos",
                "--loglevel=WARNING",
                "--without-mingle",
                "--without-gossip",
            ],
            cwd=stage.bundle.folder,
            env=stage.bundle.env | _env(stage, stock),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    return stage.adopt(Worker(process, path))


def _publish(stage: Stage, stock: Stock, count: int) -> subprocess.Popen[bytes]:
    """A program that publishes so many messages and waits for more."""
    program = stage.spawn("stock.log", "-m", "tests.chaos.stock", env=_env(stage, stock))
    assert program.stdin is not None
    program.stdin.write(b"%d\n" % count)
    program.stdin.flush()
    return program


def _confirmed(stage: Stage) -> int:
    return stage.count.look()[Kind.CONFIRMED]


# --- What the controls do


def _killed_while_holding(stage: Stage, worker: Worker) -> str:
    """Kill a worker with its processes, as when its machine is lost, while each slot executes a task."""
    stage.eventually("its slots hold tasks", lambda: len(list(stage.ledgers.glob(f"{HELD}-*"))) == SLOTS)
    children = worker.children()
    worker.process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    worker.ends()
    psutil.wait_procs(children, 10)
    stage.file(HOLD).unlink()
    stage.workers.remove(worker)
    return f"process {worker.process.pid} and its {len(children)} children are gone, amid {SLOTS} tasks"


def _stock(stage: Stage) -> str:
    stage.file(HOLD).touch()
    worker = _worker(stage, Stock.DEFAULTS)
    program = _publish(stage, Stock.DEFAULTS, _MESSAGES)
    stage.eventually("all are published", lambda: _confirmed(stage) == _MESSAGES)
    bit = _killed_while_holding(stage, worker)
    program.kill()
    _worker(stage, Stock.DEFAULTS)
    return bit


def _early_ack(stage: Stage) -> str:
    stage.file(HOLD).touch()
    worker = stage.start_worker()
    stage.enqueue("chaos.hold", _MESSAGES)
    bit = _killed_while_holding(stage, worker)
    stage.start_worker()
    return bit


def _no_confirms(stage: Stage) -> str:
    _worker(stage, Stock.UNCONFIRMED)
    program = _publish(stage, Stock.UNCONFIRMED, 10**6)
    stage.more_executed(_MESSAGES)
    broker = psutil.Process(stage.node.pid)
    broker.suspend()
    before = _confirmed(stage)
    try:
        stage.eventually("the publisher goes on", lambda: _confirmed(stage) > before + _UNREAD)
    finally:
        stage.node.kill()
        stage.node.start()
    program.kill()
    return f"process {broker.pid} is gone, and had not read what was published before"


def _transient(stage: Stage) -> str:
    version = evaluate(stage.node, "rabbit_misc:version()").strip('"')
    if tuple(int(part) for part in version.split(".")[:2]) >= _WITHOUT_TRANSIENT:
        raise Skipped(f"RabbitMQ {version} has no such queues")
    program = _publish(stage, Stock.TRANSIENT, _MESSAGES)
    stage.eventually("all are published", lambda: _confirmed(stage) == _MESSAGES)
    program.kill()
    pid = stage.node.pid
    stage.node.stop()
    stage.node.start()
    assert not psutil.pid_exists(pid)
    _worker(stage, Stock.TRANSIENT)
    return f"process {pid} has stopped in good order"


_PLANS: Final = {
    Control.STOCK: Plan(_stock),
    Control.EARLY_ACK: Plan(
        _early_ack, (("celeryconfig.py", '"task_acks_late": True,', '"task_acks_late": False,'),)
    ),
    Control.NO_CONFIRMS: Plan(_no_confirms),
    Control.TRANSIENT: Plan(_transient),
}
