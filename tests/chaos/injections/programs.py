"""Faults of programs that publish, redrive or ingest, and of their clock."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pika

from proj import queues
from proj.dead_letters import publisher
from proj.enqueue.batch import WINDOW
from proj.ingest.source import PREFETCH
from tests.chaos import bounds, ledger
from tests.chaos.faults import Bound, Fault, injects
from tests.chaos.ledger import FAIL, Kind
from tests.chaos.skipping import missing
from tests.chaos.stage import Stage
from tests.lib import foreign
from tests.lib.erlang import evaluate
from tests.lib.proxy import Network, Proxy

#: Messages that a program which is killed has before it.
_SOME: Final = 1500

#: Seconds that each answer of the broker takes for a program that is to be killed half-way.
_DELAY: Final = 0.1

#: The queue of the foreign messages, and its route.
_QUEUE: Final = "chaos_text"
_ROUTE: Final = f'[[route]]\nqueue = "{_QUEUE}"\ndecoder = "text"\ntask = "chaos.mark"\n'

#: Seconds that the clock jumps.
_HOUR: Final = 3600

#: Where Debian has libfaketime, by architecture.
_FAKETIME: Final = "usr/lib/*/faketime/libfaketime.so.1"


def _held_in(stage: Stage, queue: str) -> int:
    """Messages of the queue, those among them that a consumer holds."""
    name = f'rabbit_misc:r(<<"{stage.broker.vhost}">>, queue, <<"{queue}">>)'
    query = "ra:leader_query(amqqueue:get_pid(Queue), fun rabbit_fifo:overview/1)"
    found = f"{{ok, Queue}} = rabbit_amqqueue:lookup({name}), {{ok, {{_, Seen}}, _}} = {query}"
    return int(evaluate(stage.node, f"{found}, maps:get(num_messages, Seen)"))


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait(10) == -signal.SIGKILL, "it has ended by itself"


@injects(
    Fault.REDRIVE_KILLED,
    private=True,
    duplicates=Bound(
        publisher.WINDOW,
        f"the copies of {publisher.WINDOW} may be sent, and the dead letters not acknowledged",
    ),
)
@contextmanager
def redrive_killed(stage: Stage) -> Iterator[str]:
    stage.file(FAIL).touch()
    stage.enqueue("chaos.fail", _SOME)
    stage.progress("all have failed", lambda: stage.ready("proj.dead") == _SOME)
    stage.file(FAIL).unlink()
    with Proxy(stage.node.info.port) as proxy:
        proxy.delay, proxy.network = _DELAY, Network.SLOW
        redrive = stage.bundle.start(
            "dead",
            "redrive",
            "--all",
            env={"CELERY_BROKER_URL": stage.broker.url(proxy.port)},
            log="redrive.log",
        )
        stage.eventually("some are redriven", lambda: _held_in(stage, queues.dead_queue.name) < _SOME)
        _kill(redrive)
    stage.eventually("the rest is back", lambda: stage.ready("proj.dead"))
    left = stage.ready("proj.dead")
    assert left < _SOME, "none was redriven"
    yield f"process {redrive.pid} is gone, and {left} of {_SOME} dead letters are left"
    done = stage.bundle.proj("dead", "redrive", "--all")
    assert done.returncode == 0, done.stderr


@injects(
    Fault.BATCH_KILLED,
    duplicates=Bound(
        WINDOW, f"what may have been sent is sent again under its id, at most {WINDOW} messages"
    ),
)
@contextmanager
def batch_killed(stage: Stage) -> Iterator[str]:
    tokens = stage.attempt(_SOME)
    command = "enqueue", "batch", str(stage.batch_file("chaos.mark", tokens)), "--progress", "batch.progress"
    printed = stage.bundle.folder / "batch.log"

    def lines() -> int:
        return printed.read_bytes().count(b"\n")

    with Proxy(stage.node.info.port) as proxy:
        proxy.delay, proxy.network = _DELAY, Network.SLOW
        batch = stage.bundle.start(
            *command, env={"CELERY_BROKER_URL": stage.broker.url(proxy.port)}, log=printed.name
        )
        stage.eventually("some are confirmed", lines)
        _kill(batch)
    confirmed = lines()
    assert confirmed < _SOME
    yield f"process {batch.pid} is gone after {confirmed} of {_SOME} lines"
    done = stage.bundle.proj(*command)
    assert done.returncode == 0, done.stderr
    for token in tokens:
        stage.write(Kind.CONFIRMED, token)


@injects(
    Fault.INGEST_KILLED,
    duplicates=Bound(PREFETCH, f"what was not acknowledged is taken again, at most {PREFETCH} messages"),
)
@contextmanager
def ingest_killed(stage: Stage) -> Iterator[str]:
    routes = stage.bundle.folder / "routes.toml"
    routes.write_text(_ROUTE)
    env = {"PROJ_INGEST_ROUTES": str(routes)}
    stage.further_queues.append(_QUEUE)
    with pika.BlockingConnection(pika.URLParameters(stage.broker.url())) as connection:
        channel = connection.channel()
        channel.queue_declare(_QUEUE, durable=True)
        channel.confirm_delivery()
        for _ in range(_SOME):
            (token,) = stage.attempt(1)
            channel.basic_publish(
                "", _QUEUE, token.encode(), pika.BasicProperties(delivery_mode=2), mandatory=True
            )
            stage.write(Kind.CONFIRMED, token)
    victim = foreign.start(stage.bundle, "victim.log", env)
    stage.eventually("it has begun", lambda: len(victim.rows()) > _SOME // 10)
    victim.kill()
    rows = len(victim.rows())
    assert victim.process.returncode == -signal.SIGKILL
    assert rows < _SOME, "it had taken all"
    yield f"process {victim.process.pid} is gone after {rows} of {_SOME} messages"
    other = foreign.start(stage.bundle, "ingest.log", env)
    stage.progress("all are taken", lambda: not stage.ready(_QUEUE))
    assert other.terminate() == 0, other.text()


@injects(Fault.PUBLISHER_KILLED, duplicates=bounds.NONE)
@contextmanager
def publisher_killed(stage: Stage) -> Iterator[str]:
    pids = []
    for way in ("bulk", "single"):
        program = stage.load.programs[way]
        program.kill()
        assert program.wait(10) == -signal.SIGKILL
        pids.append(str(program.pid))
    yield f"processes {', '.join(pids)} ended by signal {signal.SIGKILL.value}"
    for way in ("bulk", "single"):
        stage.load.replace(way)


@injects(Fault.CLOCK_JUMPS, duplicates=bounds.NONE)
@contextmanager
def clock_jumps(stage: Stage) -> Iterator[str]:
    library = next(iter(sorted(Path("/").glob(_FAKETIME))), None)
    if library is None:
        missing("libfaketime (Debian, Ubuntu: sudo apt-get install faketime)")
    clock = stage.bundle.folder / "clock"
    clock.write_text("+0")
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    for way in ("bulk", "single"):
        stage.load.replace(way, env)
    for jump in (_HOUR, -_HOUR):
        clock.write_text(f"{jump:+}")
        stage.eventually(f"the clock has jumped by {jump} s", lambda jump=jump: _confirmed_at(stage, jump))  # type: ignore[misc]
        stage.load.release(100)
    clock.write_text("+0")
    yield "publishes are confirmed at times that are an hour ahead, and an hour behind"


def _confirmed_at(stage: Stage, offset: int) -> bool:
    """Whether both publishers had messages confirmed when their clock was off by so many seconds."""
    found = {
        name.partition("-")[0]
        for name, facts in ledger.read(stage.ledgers).items()
        for fact in facts
        if fact.kind is Kind.CONFIRMED and abs(fact.at - time.time() - offset) < _HOUR / 2
    }
    return "single" in found
