"""Whoever publishes a task: it is confirmed, or refused, or its outcome is unknown, in time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from tests.lib.alarm import alarm
from tests.lib.bundle import Bundle
from tests.lib.publisher import SLACK, fill, user
from tests.lib.vhosts import VirtualHosts

#: Each caller in a thread of its own, all at the same time. `traced` executes a task as a worker does.
_PROGRAM = """
import json, threading, time, uuid
import celery
from celery import chord, group
from celery.app.trace import build_tracer
from celery.beat import ScheduleEntry
from celery.schedules import schedule
from proj import app, errors
from proj.tasks import add

@app.task(name="test.plain", base=celery.Task)
def plain(x): pass

class Base(celery.Task):
    pass

@app.task(name="test.derived", base=Base)
def derived(x): pass

@app.task(name="test.again", bind=True)
def again(self, x):
    raise self.retry(countdown=0)

def traced(task, *args, kwargs=None, **request):
    request |= {{"id": str(uuid.uuid4()), "delivery_info": {{}}}}
    ended = build_tracer(task.name, task, app=app)(request["id"], args, kwargs or {{}}, request).info
    error = getattr(ended and ended.retval, "reason", ended and ended.retval)  # of a `Reject`
    if isinstance(error, errors.ProjError):
        raise error
    assert ended is None or ended.state == "RETRY", error

def chord_body():
    app.backend.store_result("header", 1, "SUCCESS")
    body = dict(app.signature("proj.tasks.add", (1,), task_id="body"))
    traced(app.tasks["celery.chord_unlock"], "group", body, kwargs={{"result": [["header", None]]}})
    ended = app.backend.get_task_meta("body")
    for kind in (errors.BrokerUnreachable, errors.BrokerRefused, errors.OutcomeUnknown):
        if kind.__name__ in str(ended["result"]):
            raise kind(str(ended["result"]))
    assert ended["status"] == "PENDING", ended

def beat():
    scheduler = celery.utils.imports.symbol_by_name(app.conf.beat_scheduler)(app=app, lazy=True)
    entry = ScheduleEntry(name="tick", task="proj.tasks.add", args=(1, 2), schedule=schedule(1), app=app)
    try:
        scheduler.apply_async(entry, producer=scheduler.producer, advance=False)
    except celery.beat.SchedulingError as error:
        raise error.__context__ or error.__cause__

callers = {{
    "delay": lambda: add.delay(1, 2),
    "delayed": lambda: app.send_task("proj.tasks.add", (1, 2), countdown=3600),
    "send_task": lambda: app.send_task("proj.tasks.add", (1, 2)),
    "unknown task": lambda: app.send_task("elsewhere.task", (1, 2)),
    "signature of an unknown task": lambda: app.signature("elsewhere.task", (1, 2)).delay(),
    "base is celery.Task": lambda: plain.delay(1),
    "base derived from celery.Task": lambda: derived.delay(1),
    "group": lambda: group(add.s(1, 1), add.s(2, 2)).delay(),
    "chord": lambda: chord([add.s(1, 1), add.s(2, 2)], add.si(3, 3)).delay(),
    "chunks": lambda: add.chunks([(1, 1), (2, 2)], 1).apply_async(),
    "chord body": chord_body,
    "next step": lambda: traced(add, 1, 2, chain=[dict(add.s(3))]),
    "retry": lambda: traced(again, 1),
    "beat": beat,
}}
ended = {{}}

def call(name, caller):
    began = time.monotonic()
    try:
        caller()
        kind, text = "confirmed", ""
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    ended[name] = kind, text, time.monotonic() - began

{before}
threads = [threading.Thread(target=call, args=each, daemon=True) for each in callers.items()]
for thread in threads:
    thread.start()
until = time.monotonic() + {limit}
for thread in threads:
    thread.join(max(0, until - time.monotonic()))
print(json.dumps({{name: ended.get(name, ("hangs", "", {limit})) for name in callers}}))
"""

CALLERS = (
    "delay",
    "delayed",
    "send_task",
    "unknown task",
    "signature of an unknown task",
    "base is celery.Task",
    "base derived from celery.Task",
    "group",
    "chord",
    "chunks",
    "chord body",
    "next step",
    "retry",
    "beat",
)


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what callers are told then."""

    happens: Callable[[Bundle], AbstractContextManager[None]]
    kind: str
    words: str
    exit_code: int
    #: Seconds that a publish may take: long enough for all callers to connect at the same time.
    timeout: int = 30
    before: str = "app.conf.broker_pool_limit = 50"


@contextmanager
def nothing(bundle: Bundle) -> Iterator[None]:
    yield


@contextmanager
def no_queue(bundle: Bundle) -> Iterator[None]:
    """The queue is gone, and the programs' user may not declare it anew."""
    bundle.management("DELETE", f"queues/{quote(bundle.vhost)}/proj.tasks")
    with user(bundle, write=".*"):
        yield


@contextmanager
def full_queue(bundle: Bundle) -> Iterator[None]:
    policy = fill(bundle)
    yield
    bundle.management("DELETE", policy)


def no_confirm(bundle: Bundle) -> AbstractContextManager[None]:
    return alarm(bundle.node, "memory")


FAULTS = {
    "nothing": Fault(nothing, "confirmed", "", 0),
    "no queue": Fault(no_queue, "BrokerRefused", "no queue takes the message", 69),
    "full queue": Fault(full_queue, "BrokerRefused", "the queue is full", 69),
    "no confirm": Fault(no_confirm, "OutcomeUnknown", "did not confirm message", 75, timeout=5),
    "no connection": Fault(
        nothing,
        "BrokerUnreachable",
        "all 10 connections to the broker are in use",
        0,
        timeout=2,
        before="held = [app.pool.acquire() for _ in range(app.conf.broker_pool_limit)]",
    ),
}


@dataclass(frozen=True)
class Ends:
    """How each caller's publish ended under one fault."""

    fault: Fault
    of: dict[str, tuple[str, str, float]]
    command: Any
    limits: list[Any]


@pytest.fixture(scope="module")
def shared(own_vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with own_vhosts.lend(tmp_path_factory.mktemp("callers")) as bundle:
        yield bundle


@pytest.fixture(scope="module", params=FAULTS)
def ends(request: pytest.FixtureRequest, shared: Bundle) -> Ends:
    bundle, fault = shared, FAULTS[request.param]
    bundle.declare()
    bundle.env |= {"PROJ_PUBLISH_TIMEOUT": str(fault.timeout), "CELERY_BROKER_URL": bundle.url}
    with fault.happens(bundle):
        ended = bundle.python(_PROGRAM.format(before=fault.before, limit=fault.timeout + SLACK))
        command = bundle.celery("call", "proj.tasks.add", "--args=[1, 2]")
    published = bundle.peek("proj.tasks") if fault.kind == "confirmed" else []
    return Ends(fault, ended, command, [each["properties"]["headers"]["timelimit"] for each in published])


@pytest.mark.celery_docs("Calling: OperationalError")
@pytest.mark.parametrize("caller", CALLERS)
def test_publish_of_each_caller(ends: Ends, caller: str) -> None:
    """It ends in the way that the fault asks for, within the time of a publish."""
    kind, text, seconds = ends.of[caller]
    if caller == "delayed" and ends.fault.happens in {no_queue, full_queue}:
        assert kind == "confirmed"  # it is in a delay queue
        return
    assert kind == ends.fault.kind, text
    assert ends.fault.words in text
    assert seconds < ends.fault.timeout + SLACK


def test_limits_are_those_of_the_worker(ends: Ends) -> None:
    """No message carries the time limits of its publisher's settings, whoever published it."""
    none = ["undefined", "undefined"]  # as the management API writes it
    assert all(limits == none for limits in ends.limits)
    assert ends.limits or ends.fault.kind != "confirmed"


@pytest.mark.celery_docs("Calling: celery call")
def test_celery_call(ends: Ends) -> None:
    """The command prints the id, or one line, and has the exit code of the contract."""
    done = ends.command
    assert done.returncode == ends.fault.exit_code, done.stderr
    if done.returncode:
        assert done.stdout == ""
        assert done.stderr.startswith("Error: proj.tasks.add: ")
        assert done.stderr.count("\n") == 1
        assert ends.fault.words in done.stderr
    else:
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("task", "words"),
    [("proj.tasks.add", "argument x: expected a number"), ("elsewhere.task", "JSON cannot carry argument 0")],
)
def test_celery_call_of_arguments_that_cannot_be_sent(shared: Bundle, task: str, words: str) -> None:
    """What is wrong with the message itself is one line too, whether or not the task is known here."""
    done = shared.celery("call", task, "--args=[NaN, 2]")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr.startswith(f"Error: {task}: {words}")
    assert done.stderr.count("\n") == 1
