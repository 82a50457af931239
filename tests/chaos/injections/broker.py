"""Faults of the broker."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psutil

from proj import queues
from tests.chaos import bounds
from tests.chaos.faults import Fault, injects
from tests.chaos.stage import Stage
from tests.lib.alarm import alarm
from tests.lib.erlang import evaluate
from tests.lib.node_processes import STOPPED

#: How often all connections are closed.
_TIMES: Final = 3


@injects(Fault.BROKER_KILLED, duplicates=bounds.ALL_CONNECTIONS, private=True, share=4)
@contextmanager
def broker_killed(stage: Stage) -> Iterator[str]:
    pid = stage.node.pid
    stage.node.kill()
    try:
        assert not psutil.pid_exists(pid)
        yield f"process {pid} is gone"
    finally:
        stage.node.start()


@injects(Fault.BROKER_RESTARTED, duplicates=bounds.ALL_CONNECTIONS, private=True)
@contextmanager
def broker_restarted(stage: Stage) -> Iterator[str]:
    pid, log = stage.node.pid, stage.node.info.log
    start = log.stat().st_size
    stage.node.stop()
    try:
        assert not psutil.pid_exists(pid)
        assert STOPPED.encode() in log.read_bytes()[start:], "it did not stop in good order"
        yield f"process {pid} has stopped in good order"
    finally:
        stage.node.start()


@injects(Fault.BROKER_STOPPED, duplicates=bounds.ALL_CONNECTIONS, private=True)
@contextmanager
def broker_stopped(stage: Stage) -> Iterator[str]:
    broker = psutil.Process(stage.node.pid)
    broker.suspend()
    try:
        stage.more_unknown()
        stage.stands_still()
        assert broker.status() == psutil.STATUS_STOPPED
        yield f"process {broker.pid} is stopped, a publish is unknown, and no task is executed"
    finally:
        broker.resume()


@injects(Fault.MEMORY_ALARM, duplicates=bounds.ALL_CONNECTIONS, private=True)
@contextmanager
def memory_alarm(stage: Stage) -> Iterator[str]:
    with alarm(stage.node, "memory"):
        stage.more_unknown()
        yield "the alarm is in the broker's list, and a publish is unknown"


@injects(Fault.DISK_ALARM, duplicates=bounds.ALL_CONNECTIONS, private=True)
@contextmanager
def disk_alarm(stage: Stage) -> Iterator[str]:
    with alarm(stage.node, "disk"):
        stage.more_unknown()
        yield "the alarm is in the broker's list, and a publish is unknown"


@injects(Fault.CONNECTIONS_CLOSED, duplicates=bounds.ALL_CONNECTIONS, private=True, share=4)
@contextmanager
def connections_closed(stage: Stage) -> Iterator[str]:
    closed = 0
    for _ in range(_TIMES):
        stage.await_workers()
        count = evaluate(
            stage.node,
            "Found = rabbit_networking:connections(), application:set_env(rabbit, chaos, Found),"
            ' [rabbit_networking:close_connection(Each, "chaos") || Each <- Found], length(Found)',
        )
        left = (
            "length([Each || Each <- element(2, application:get_env(rabbit, chaos)), is_process_alive(Each)])"
        )
        stage.eventually("they are closed", lambda left=left: evaluate(stage.node, left) == "0")  # type: ignore[misc]
        closed += int(count)
        stage.more_executed(20)
    yield f"{closed} connections are gone from the broker's list"


@injects(Fault.QUEUE_KILLED, duplicates=bounds.ALL_CONNECTIONS, private=True)
@contextmanager
def queue_killed(stage: Stage) -> Iterator[str]:
    name = f'rabbit_misc:r(<<"{stage.broker.vhost}">>, queue, <<"{queues.DEFAULT_QUEUE}">>)'
    leader = f"{{ok, Queue}} = rabbit_amqqueue:lookup({name}), {{Name, _}} = amqqueue:get_pid(Queue)"
    pid = evaluate(stage.node, f"{leader}, Pid = whereis(Name), exit(Pid, kill), Pid")
    now = stage.eventually(
        "it is started again",
        lambda: next(
            (p for p in [evaluate(stage.node, f"{leader}, whereis(Name)")] if p.startswith("<")), ""
        ),
    )
    assert now != pid
    stage.more_executed(20)
    yield f"process {pid} of the queue is gone, {now} has come"
