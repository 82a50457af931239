"""Faults of workers and of the processes that execute their tasks."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from tests.chaos.faults import Bound, Fault, injects
from tests.chaos.stage import SLOTS, WORKERS, Stage
from tests.lib.worker import Worker

#: How many processes are killed.
_CHILDREN = 4


def _child(stage: Stage, worker: Worker) -> psutil.Process:
    """A process of the worker that executes tasks; Celery replaces one that was killed."""

    def alive() -> list[psutil.Process]:
        return [child for child in worker.children() if child.status() != psutil.STATUS_ZOMBIE]

    return stage.eventually("the worker has processes", alive)[0]


@injects(
    Fault.CHILD_KILLED,
    duplicates=Bound(
        _CHILDREN, "the task of each killed process may have acted, and its success not be stored"
    ),
)
@contextmanager
def child_killed(stage: Stage) -> Iterator[str]:
    pids = []
    for number in range(_CHILDREN):
        worker = stage.workers[number % len(stage.workers)]
        child = _child(stage, worker)
        child.kill()
        child.wait(10)
        assert not psutil.pid_exists(child.pid)
        pids.append(str(child.pid))
        stage.more_executed(10)
    yield f"processes {', '.join(pids)} are gone"


@injects(
    Fault.WORKER_KILLED,
    duplicates=Bound(SLOTS, "one a slot: the task may have acted, and its success not be stored"),
)
@contextmanager
def worker_killed(stage: Stage) -> Iterator[str]:
    victim = stage.workers[0]
    victim.kill()
    stage.more_executed(50)
    yield f"process {victim.process.pid} ended by signal {signal.SIGKILL.value}"
    stage.start_worker()


@injects(
    Fault.WORKERS_KILLED,
    duplicates=Bound(SLOTS * WORKERS, "one a slot: the task may have acted, and its success not be stored"),
)
@contextmanager
def workers_killed(stage: Stage) -> Iterator[str]:
    for victim in stage.workers:
        victim.process.kill()
    for victim in stage.workers:
        assert victim.ends() == -signal.SIGKILL
    stage.eventually("the broker sees no consumer", lambda: not stage.consumers())
    pids = ", ".join(str(victim.process.pid) for victim in stage.workers)
    yield f"processes {pids} ended by signal {signal.SIGKILL.value}; the queue has no consumer"
    for _ in range(WORKERS):
        stage.start_worker()
