"""Faults of workers and of the processes that execute their tasks."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from tests.chaos import bounds
from tests.chaos.faults import Bound, Fault, injects
from tests.chaos.ledger import HELD, HOLD
from tests.chaos.stage import SLOTS, WORKERS, Stage
from tests.lib.erlang import evaluate
from tests.lib.proxy import Network, Proxy
from tests.lib.worker import Worker

#: How many processes are killed.
_CHILDREN: Final = 4

#: Messages that kill whoever executes them.
_POISON: Final = 3

#: Bytes of memory that processes have together which execute tasks, beside what they share with their worker.
_MEMORY: Final = 256 * 2**20

#: The consumer timeout, in milliseconds, and how often the broker looks.
_TIMEOUT: Final = 4000
_TICK: Final = 1000


def _children(worker: Worker) -> list[psutil.Process]:
    return [child for child in worker.children() if child.status() != psutil.STATUS_ZOMBIE]


@injects(
    Fault.CHILD_KILLED,
    duplicates=Bound(_CHILDREN, "the task of each killed process may have acted, its success not be stored"),
)
@contextmanager
def child_killed(stage: Stage) -> Iterator[str]:
    pids = []
    for number in range(_CHILDREN):
        worker = stage.workers[number % len(stage.workers)]
        (child, *_) = stage.eventually(
            "the worker has processes",
            lambda worker=worker: _children(worker),  # type: ignore[misc]
        )
        child.kill()
        child.wait(10)
        assert not psutil.pid_exists(child.pid)
        pids.append(str(child.pid))
        stage.more_executed(10)
    yield f"processes {', '.join(pids)} are gone"


@injects(Fault.WORKER_KILLED, duplicates=bounds.ONE_WORKER)
@contextmanager
def worker_killed(stage: Stage) -> Iterator[str]:
    victim = stage.workers[0]
    victim.kill()
    stage.more_executed(50)
    yield f"process {victim.process.pid} ended by signal {signal.SIGKILL.value}"
    stage.start_worker()


@injects(Fault.WORKERS_KILLED, duplicates=bounds.ALL_WORKERS)
@contextmanager
def workers_killed(stage: Stage) -> Iterator[str]:
    victims = [str(victim.process.pid) for victim in stage.workers]
    for victim in stage.workers:
        victim.process.kill()
    for victim in stage.workers:
        assert victim.ends() == -signal.SIGKILL
    stage.eventually("the broker sees no consumer", lambda: not stage.consumers())
    yield f"processes {', '.join(victims)} ended by signal {signal.SIGKILL.value}, and nobody consumes"
    for _ in range(WORKERS):
        stage.start_worker()


@injects(
    Fault.CHILD_OUT_OF_MEMORY,
    duplicates=Bound(WORKERS, "the system may end another process than the one that takes the memory"),
)
@contextmanager
def child_out_of_memory(stage: Stage) -> Iterator[str]:
    children = [child for worker in stage.workers for child in _children(worker)]
    with _memory_group([child.pid for child in children]) as killed:
        if killed is None:
            for child in children:
                child.rlimit(psutil.RLIMIT_AS, (child.memory_info().vms + _MEMORY,) * 2)
            before = stage.ready("proj.dead")
            stage.enqueue("chaos.devour", 2)
            stage.eventually("a task has no memory", lambda: stage.ready("proj.dead") > before)
            yield "the system refused the memory, and the task failed"
        else:
            stage.enqueue("chaos.devour", 2)
            stage.eventually("the system kills a process", lambda: _killed(killed))
            gone = stage.eventually(
                "a process is gone", lambda: [str(each.pid) for each in children if not _runs(each)]
            )
            yield f"the system killed {_killed(killed)} for memory, and process {', '.join(gone)} is gone"


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@contextmanager
def _memory_group(pids: list[int]) -> Iterator[Path | None]:
    """A control group with little memory for these processes; None where this user may not make one."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    group = (old if old.is_dir() else new) / f"chaos-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        try:
            limit = "memory.limit_in_bytes" if old.is_dir() else "memory.max"
            (group / limit).write_text(str(_MEMORY))
            for each in pids:
                (group / "cgroup.procs").write_text(str(each))
        except OSError:
            yield None
        else:
            yield group / ("memory.oom_control" if old.is_dir() else "memory.events")
    finally:
        # Empty only when its processes have ended: these go back to where they came from.
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        with suppress(OSError):
            group.rmdir()


def _killed(events: Path) -> int:
    """How many processes the system has killed in a control group."""
    counts = dict(line.split() for line in events.read_text().splitlines())
    return int(counts.get("oom_kill", 0))


@injects(Fault.POISON, duplicates=Bound(0, "a process executes one task at a time"))
@contextmanager
def poison(stage: Stage) -> Iterator[str]:
    before = stage.ready("proj.dead")
    stage.enqueue("chaos.poison", _POISON)
    stage.eventually("all are dead letters", lambda: stage.ready("proj.dead") - before == _POISON)
    yield f"{_POISON} messages are dead letters after six deliveries each"


@injects(Fault.WORKER_STOPPED, duplicates=bounds.ONE_WORKER)
@contextmanager
def worker_stopped(stage: Stage) -> Iterator[str]:
    victim = psutil.Process(stage.workers[0].process.pid)
    victim.suspend()
    try:
        stage.eventually("the broker gives it up", lambda: stage.consumers() < WORKERS)
        assert victim.status() == psutil.STATUS_STOPPED
        yield f"process {victim.pid} is stopped, and the broker has closed its connection"
    finally:
        victim.resume()
    stage.eventually("it consumes again", lambda: stage.consumers() == WORKERS)


@injects(
    Fault.CONSUMER_TIMEOUT,
    duplicates=Bound(
        bounds.ALL_STOPPED.most + bounds.ALL_WORKERS.most,
        "one a slot of the workers that stop, and of those whose channel is closed",
    ),
    private=True,
)
@contextmanager
def consumer_timeout(stage: Stage) -> Iterator[str]:
    log = stage.node.info.log
    start = log.stat().st_size

    def closed() -> int:
        return log.read_bytes()[start:].count(b"has timed out waiting for delivery")

    def ended() -> list[Worker]:
        return [worker for worker in stage.workers if worker.process.poll() is not None]

    stage.file(HOLD).touch()
    try:
        with _settings(stage, consumer_timeout=_TIMEOUT, channel_tick_interval=_TICK):
            # A channel reads them when it is opened.
            stage.stop_workers()
            for _ in range(WORKERS):
                stage.start_worker()
            stage.enqueue("chaos.hold", 1)
            stage.eventually("the broker closes a channel", closed)
        yield f"the broker closed {closed()} channels, for an acknowledgement that was late"
    finally:
        stage.file(HOLD).unlink()
    # Celery's worker ends once its tasks have, before RabbitMQ 4.3.
    stage.eventually(
        "each worker consumes, or ends", lambda: stage.consumers() + len(ended()) >= len(stage.workers)
    )
    for worker in ended():  # as a supervisor does
        stage.workers.remove(worker)
        stage.start_worker()


@contextmanager
def _settings(stage: Stage, **settings: int) -> Iterator[None]:
    """Settings of the running broker, and then again those that it had."""
    usual = {name: evaluate(stage.node, f"application:get_env(rabbit, {name})") for name in settings}
    for name, value in settings.items():
        evaluate(stage.node, f"application:set_env(rabbit, {name}, {value})")
    try:
        yield
    finally:
        for name, found in usual.items():
            evaluate(stage.node, f"application:set_env(rabbit, {name}, element(2, {found}))")


@injects(Fault.ROLLING_DEPLOY, duplicates=bounds.ALL_STOPPED)
@contextmanager
def rolling_deploy(stage: Stage) -> Iterator[str]:
    for old in stage.workers.copy():
        stage.start_worker()
        assert old.terminate() == 0, old.text()
        stage.await_workers()
        stage.more_executed(20)
    yield f"{WORKERS} workers ended with exit code 0, and others execute tasks"


@injects(
    Fault.KILLED_BEFORE_ACK,
    duplicates=Bound(0, "a message that is delivered again is not executed when its success is stored"),
)
@contextmanager
def killed_before_acknowledging(stage: Stage) -> Iterator[str]:
    with Proxy(stage.node.info.port) as proxy:
        victim = stage.start_worker(env={"CELERY_BROKER_URL": stage.broker.url(proxy.port)})
        name = f"w{len(stage.workers)}@chaos"
        stage.await_workers()
        stage.file(HOLD).touch()
        stage.enqueue("chaos.hold", SLOTS * (WORKERS + 1))
        stage.eventually(
            "all its slots are held", lambda: len(list(stage.ledgers.glob(f"{HELD}-{name}-*"))) == SLOTS
        )
        before = _stored(stage, name)
        proxy.network = Network.SWALLOWS_ALL
        stage.file(HOLD).unlink()
        stage.eventually("its results are stored", lambda: _stored(stage, name) == before + SLOTS)
        stage.eventually("it acknowledges", lambda: proxy.happened[Network.SWALLOWS_ALL])
        victim.kill()
    yield (
        f"process {victim.process.pid} is gone; {SLOTS} of its results are stored, whose acknowledgements the"
        " network swallowed"
    )


def _stored(stage: Stage, worker: str) -> int:
    """Successes that this worker has stored."""
    with closing(sqlite3.connect(stage.bundle.folder / "state/results.sqlite3")) as database:
        query = "SELECT count(*) FROM celery_taskmeta WHERE worker = ? AND status = 'SUCCESS'"
        return int(database.execute(query, [worker]).fetchone()[0])
