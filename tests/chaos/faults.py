"""The faults: a sentence each, how it is injected and healed, and how many duplicates it may cause.

A fault is injected by a context manager that a function makes of a stage (`tests.chaos.stage.Stage`):

    @injects(Fault.WORKER_KILLED, duplicates=Bound(2, "a slot each"))
    @contextmanager
    def worker_killed(stage: Stage) -> Iterator[str]:
        victim = stage.workers[0]
        victim.kill()
        yield f"process {victim.process.pid} is gone"      # what proved that the fault bit
        stage.start_worker()                               # heals

It yields once the fault has bitten, and raises `AssertionError` when it did not. The load runs before, during
and after. Whatever happens in the block, all is healed when it ends, so heal in a `finally` what others would
feel.
"""

from __future__ import annotations

import enum
import importlib
import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.chaos.stage import Stage


class Fault(enum.Enum):
    """What goes wrong, in one sentence."""

    # --- Workers
    CHILD_KILLED = "SIGKILL of a process that executes a task"
    WORKER_KILLED = "SIGKILL of a worker"
    WORKERS_KILLED = "SIGKILL of all workers at once"
    CHILD_OUT_OF_MEMORY = "the system kills a process that executes a task, for its memory"
    POISON = "some messages kill each process that executes them"
    WORKER_STOPPED = "SIGSTOP of a worker, for longer than the broker waits for its heartbeat"
    CONSUMER_TIMEOUT = "tasks take longer than the broker's consumer timeout"
    ROLLING_DEPLOY = "all workers are replaced, one after the other, with SIGTERM"
    KILLED_BEFORE_ACK = "SIGKILL of a worker between storing results and acknowledging them"

    # --- The broker
    BROKER_KILLED = "SIGKILL of the broker, and a restart"
    BROKER_RESTARTED = "a graceful restart of the broker"
    BROKER_STOPPED = "SIGSTOP of the broker"
    MEMORY_ALARM = "the broker raises its memory alarm"
    DISK_ALARM = "the broker raises its disk alarm"
    CONNECTIONS_CLOSED = "the broker closes all connections"
    QUEUE_KILLED = "the process of the work queue in the broker is killed"

    # --- The network
    BLACK_HOLE = "the network swallows all that either side sends"
    ANSWERS_LOST = "the network swallows what the broker answers, confirms among it"
    SLOW_NETWORK = "the network is slow, and connections overtake each other"

    # --- The result store
    STORE_GONE = "the result store is gone, and comes back"
    STORE_FULL = "the file system of the result store is full"

    # --- Programs
    REDRIVE_KILLED = "SIGKILL of proj dead redrive half-way, which is then repeated"
    BATCH_KILLED = "SIGKILL of proj enqueue batch half-way, which is then resumed"
    INGEST_KILLED = "SIGKILL of proj ingest half-way; another one takes over"
    PUBLISHER_KILLED = "SIGKILL of a publishing program; another one takes over"
    CLOCK_JUMPS = "the clock of the publisher jumps an hour forward, and back"

    # --- A cluster of three nodes
    LEADER_KILLED = "SIGKILL of the node that leads the work queue"
    NODE_PARTITIONED = "the network parts one node from the two others"
    NODES_RESTARTED = "a graceful restart of all three nodes, one after the other"
    MAJORITY_LOST = "SIGKILL of two of three nodes, and their return"


class Store(enum.Enum):
    """The result store of a stage."""

    SQLITE = "an SQLite file, as by default"
    SMALL = "an SQLite file on a small file system of its own, `stage.small_disk`"
    POSTGRESQL = "a private PostgreSQL, `stage.postgres`"


@dataclass(frozen=True)
class Bound:
    """How many executions more than one a message a fault may cause, and why."""

    most: int
    why: str


#: Makes of a stage what injects the fault and heals it; see above.
Injection = Callable[["Stage"], AbstractContextManager[str]]


@dataclass(frozen=True)
class Plan:
    """What a fault needs, and what it may cost."""

    fault: Fault
    inject: Injection
    duplicates: Bound
    #: Nodes of the broker.
    nodes: int = 1
    #: Lines of `rabbitmq.conf`, for which the fault gets a node of its own.
    config: str = ""
    #: Programs reach the broker through `stage.proxy`.
    proxied: bool = False
    #: It needs the private node: a broker of one's own is not killed.
    private: bool = False
    #: The result store.
    store: Store = Store.SQLITE
    #: Its part of the messages of a run, relative to that of the others.
    share: float = 1.0


#: By fault, in the order of the enum; filled by `load`.
PLANS: Final[dict[Fault, Plan]] = {}


def injects(
    fault: Fault,
    *,
    duplicates: Bound,
    nodes: int = 1,
    config: str = "",
    proxied: bool = False,
    private: bool = False,
    store: Store = Store.SQLITE,
    share: float = 1.0,
) -> Callable[[Injection], Injection]:
    """Register the function for the fault."""

    def register(inject: Injection) -> Injection:
        assert fault not in PLANS, f"{fault} is injected twice"
        PLANS[fault] = Plan(fault, inject, duplicates, nodes, config, proxied, private, store, share)
        return inject

    return register


def load() -> dict[Fault, Plan]:
    """All faults that can be injected, in their order: each module of `injections` registers some."""
    from tests.chaos import injections

    for module in pkgutil.iter_modules(injections.__path__):
        importlib.import_module(f"{injections.__name__}.{module.name}")
    return {fault: PLANS[fault] for fault in Fault if fault in PLANS}
