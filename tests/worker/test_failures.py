"""What fails, and where its message is afterwards: tried again, or kept in proj.dead, never gone.

One worker of one slot gets every message of this module that leaves a worker as it is.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest

from proj.private_node.node import BrokerNode
from tests.lib import dead
from tests.lib.bundle import Bundle, shared_vhost
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

#: A task that does as it is told; each attempt leaves a line in a file, whatever becomes of it.
SCRIPTED = """
    @app.task(name="proj.tasks.scripted", pydantic=True, bind=True)
    def scripted(self, *actions: str) -> str:
        import os, signal, sys
        from celery.exceptions import SoftTimeLimitExceeded
        with open("attempts", "a") as file:
            file.write(f"{self.request.id}\\n")
        with open("attempts") as file:
            attempt = file.read().split().count(self.request.id)
        action = actions[min(attempt, len(actions)) - 1]
        if action == "transient":
            raise ConnectionError("the other side hung up")
        if action == "late":
            raise TimeoutError("the other side did not answer")
        if action == "fail":
            raise ValueError("no such thing")
        if action == "memory":
            raise MemoryError("no more")
        if action == "interrupt":
            raise KeyboardInterrupt
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "exit":
            sys.exit(3)
        if action == "sleep":
            time.sleep(600)
        if action == "stubborn":
            while True:
                try:
                    time.sleep(600)
                except SoftTimeLimitExceeded:
                    pass
        return action
"""

#: Other tasks that fail.
OTHERS: Final = """
    @app.task(name="proj.tasks.busy", autoretry_for=(LookupError,), retry_jitter=False, max_retries=3)
    def busy() -> None:
        raise LookupError("come again")

    @app.task(name="proj.tasks.very_busy", retry_backoff=3600, retry_jitter=False)
    def very_busy() -> None:
        raise ConnectionError("come again")

    @app.task(name="proj.tasks.again")
    def again() -> None:
        from celery.exceptions import Retry
        raise Retry("later")

    @app.task(name="proj.tasks.bounded", time_limit=1)
    def bounded() -> None:
        time.sleep(600)

    @app.task(name="proj.tasks.unbounded")
    def unbounded() -> None:
        time.sleep(600)
"""

ADD: Final[dict[str, object]] = {"task": "proj.tasks.add", "id": "it"}

GOOD: Final = b"[[1, 2], {}, {}]"

#: Messages that our publishing would not make: body, content type, headers.
NO_TASKS: Final[dict[str, tuple[bytes, str, dict[str, object]]]] = {
    "body-not-text": (b"\xff not json", "application/json", ADD),
    "body-not-json": (b'["not", "a task"', "application/json", ADD),
    "body-no-arguments": (b"{}", "application/json", ADD),
    "body-pickled": (b"gASVBQ==", "application/x-python-serialize", ADD),
    "task-unknown": (GOOD, "application/json", {"task": "proj.tasks.unknown", "id": "it"}),
    "id-missing": (GOOD, "application/json", {"task": "proj.tasks.add"}),
    "time-limit-no-number": (GOOD, "application/json", ADD | {"timelimit": "zz"}),
    "expired": (GOOD, "application/json", ADD | {"expires": "2020-01-01T00:00:00+00:00"}),
    "plain-text": (b"hello", "text/plain", {}),
    "plain-json": (b'{"hello": 1}', "application/json", {}),
    "plain-bytes": (b"\xff", "application/json", {}),
}

#: A task, its arguments, and options of its publishing, by the id of its message.
Messages = dict[str, tuple[str, tuple[str, ...], dict[str, Any]]]

#: What the worker of this module gets. The first one's retry, if it held the slot, would hold up the rest.
FAILING: Final[Messages] = {
    "very-busy": ("very_busy", (), {}),
    "busy": ("busy", (), {}),
    "transient": ("scripted", ("transient", "late", "fine"), {}),
    "ran-out": ("scripted", ("transient",), {}),
    "fail": ("scripted", ("fail",), {}),
    "memory": ("scripted", ("memory",), {}),
    "again": ("again", (), {}),
}


def _enqueue(bundle: Bundle, messages: Messages) -> None:
    bundle.python(
        "from proj import tasks\n"
        f"for task_id, (name, args, options) in {messages!r}.items():\n"
        "    getattr(tasks, name).apply_async(args, task_id=task_id, **options)\n"
        "print(0)"
    )


def _raw(bundle: Bundle, body: bytes, content_type: str, headers: dict[str, object], name: str) -> None:
    """Put a message into proj.tasks that our publishing would not make."""
    bundle.publish(
        body,
        routing_key="proj.tasks",
        content_type=content_type,
        content_encoding="utf-8",
        headers=headers,
        message_id=name,
    )


def _attempts(bundle: Bundle, task_id: str = "it") -> int:
    path = bundle.folder / "attempts"
    return path.read_text().split().count(task_id) if path.exists() else 0


def _dead(bundle: Bundle, count: int = 1) -> dict[str, Any]:
    """So many messages of proj.dead, once they are there, by their id; and nothing is left in proj.tasks."""

    def arrived() -> bool:
        return bundle.has("proj.dead") and bundle.depth("proj.dead") == count

    eventually(f"{count} messages are in proj.dead", arrived)
    assert bundle.depth("proj.tasks") == 0
    messages = [message["properties"] for message in bundle.peek("proj.dead")]
    return {each.get("message_id") or each["headers"]["id"]: each["headers"] for each in messages}


def _outcomes(bundle: Bundle, *ids: str) -> dict[str, dict[str, Any]]:
    """What is stored under each id."""
    found: dict[str, dict[str, Any]] = bundle.python(
        "import json; from proj import app, results; from dataclasses import asdict;"
        f"print(json.dumps({{i: asdict(results.outcome(app, i)) for i in {ids!r}}}))"
    )
    return found


def _outcome(bundle: Bundle, task_id: str = "it") -> dict[str, Any]:
    return _outcomes(bundle, task_id)[task_id]


@pytest.fixture(scope="module")
def shared(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle(node, vhost=shared_vhost("failures"), folder=tmp_path_factory.mktemp("failures")) as bundle:
        bundle.declare()
        bundle.add_task(SCRIPTED)
        bundle.add_task(OTHERS)
        yield bundle


@pytest.fixture(scope="module")
def worker(shared: Bundle) -> Worker:
    return shared.worker(env={"PROJ_MAX_RETRIES": "2"}).ready()


@pytest.fixture(scope="module")
def dead_letters(shared: Bundle, worker: Worker) -> dict[str, Any]:
    """The dead letters that the messages of this module became, once all have ended that do."""
    _enqueue(shared, FAILING)
    for name, (body, content_type, headers) in NO_TASKS.items():
        _raw(shared, body, content_type, headers, name)
    found = _dead(shared, len(FAILING) - len({"very-busy", "transient"}) + len(NO_TASKS))
    worker.says("[transient] succeeded")
    return found


@pytest.fixture(scope="module")
def outcomes(shared: Bundle, dead_letters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is stored of the messages that could be executed."""
    return _outcomes(shared, *FAILING)


@pytest.fixture
def scripted(bundle: Bundle) -> Callable[..., None]:
    """Enqueue the scripted task under the id `it`, in a virtual host of the test's own."""
    bundle.add_task(SCRIPTED)

    def enqueue(*actions: str) -> None:
        _enqueue(bundle, {"it": ("scripted", actions, {})})

    return enqueue


def test_transient_error_is_tried_again(
    shared: Bundle, dead_letters: dict[str, Any], outcomes: dict[str, dict[str, Any]]
) -> None:
    """A connection error and a timeout are retried with the same id, until they are over."""
    assert _attempts(shared, "transient") == 3
    assert outcomes["transient"]["result"] == "fine"
    assert "transient" not in dead_letters


def test_retries_that_ran_out_make_a_dead_letter(
    shared: Bundle, dead_letters: dict[str, Any], outcomes: dict[str, dict[str, Any]]
) -> None:
    """At most PROJ_MAX_RETRIES retries, then the message is kept with the error that it had last."""
    assert _attempts(shared, "ran-out") == 3
    assert dead_letters["ran-out"]["x-death"][0]["reason"] == "rejected"
    assert outcomes["ran-out"]["error"] == "ConnectionError: the other side hung up"


def test_retries_wait_longer_each_time(
    worker: Worker, dead_letters: dict[str, Any], outcomes: dict[str, dict[str, Any]]
) -> None:
    """1, 2, 4 seconds, where a task wants no jitter; for what it calls transient itself, and as often."""
    waits = re.findall(r"proj\.tasks\.busy\[busy\].* [Rr]etry in (\d+)s", worker.text())
    assert waits == ["1", "2", "4"], worker.text()
    assert "busy" in dead_letters
    assert outcomes["busy"]["error"] == "LookupError: come again"


def test_retry_waits_at_the_broker(shared: Bundle, worker: Worker, dead_letters: dict[str, Any]) -> None:
    """At most ten minutes, in the queue of 2^9 seconds and more; the worker's only slot is free meanwhile."""
    assert "Retry in 600s" in worker.text()
    assert "very-busy" not in dead_letters

    (message,) = shared.peek("celery_delayed_9")

    assert message["properties"]["headers"]["id"] == "very-busy"
    assert message["properties"]["headers"]["retries"] == 1
    assert message["properties"]["delivery_mode"] == 2


@pytest.mark.celery_docs("Tasks: an exception")
@pytest.mark.parametrize(
    ("action", "error"), [("fail", "ValueError: no such thing"), ("memory", "MemoryError: no more")]
)
def test_other_error_makes_a_dead_letter_at_once(
    shared: Bundle,
    dead_letters: dict[str, Any],
    outcomes: dict[str, dict[str, Any]],
    action: str,
    error: str,
) -> None:
    """What is not transient is not tried again."""
    assert _attempts(shared, action) == 1
    assert dead_letters[action]["argsrepr"] == repr((action,))
    assert outcomes[action]["error"] == error
    assert "in scripted" in outcomes[action]["traceback"]


def test_retry_that_was_not_published_is_a_failure(
    dead_letters: dict[str, Any], outcomes: dict[str, dict[str, Any]]
) -> None:
    """Celery's `Retry`, raised by hand, publishes no next attempt: the message is kept, not acknowledged."""
    assert "again" in dead_letters
    assert outcomes["again"]["error"].startswith("RuntimeError: the task raised Retry")


@pytest.mark.parametrize("name", NO_TASKS)
def test_message_that_is_no_task_makes_a_dead_letter_at_once(dead_letters: dict[str, Any], name: str) -> None:
    """Whatever cannot be executed is kept as it came."""
    assert dead_letters[name]["x-death"][0]["count"] == 1
    assert NO_TASKS[name][2].items() <= dead_letters[name].items()


@pytest.mark.parametrize("what", dead.UNREADABLE)
def test_properties_that_python_does_not_read_end_no_worker(
    shared: Bundle, worker: Worker, dead_letters: dict[str, Any], what: str
) -> None:
    """A text that is no UTF-8, or a time beyond the calendar, ends no worker; the task is executed."""
    dead.publish_unreadable(shared, what, "proj.tasks", task_id=what)

    worker.says(f"[{what}] succeeded")
    assert worker.process.poll() is None
    assert _outcome(shared, what)["result"] == 3


def test_worker_that_met_them_all_works_on(
    shared: Bundle, worker: Worker, dead_letters: dict[str, Any]
) -> None:
    """No error of a task, and no message, ends its worker, or keeps its slot."""
    assert shared.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
    assert worker.process.poll() is None


def test_retry_that_cannot_be_published_makes_a_dead_letter(bundle: Bundle) -> None:
    """The message that it was to replace is not acknowledged, but kept; here a right for delays is gone."""
    bundle.add_task("""
        @app.task(name="proj.tasks.busy", retry_jitter=False)
        def busy() -> None:
            raise ConnectionError("come again")
    """)
    worker = bundle.worker().ready()
    rights = {"configure": ".*", "read": ".*", "write": "^(?!celery_delayed_27$)"}
    bundle.management("PUT", f"permissions/{quote(bundle.vhost, safe='')}/guest", rights)
    bundle.enqueue("task", "proj.tasks.busy", "--id", "it")

    letter = _dead(bundle)["it"]

    assert letter["x-death"][0]["reason"] == "rejected"
    worker.says("not published: user 'guest' lacks a right")


@pytest.mark.celery_docs("Tasks: time_limit, soft_time_limit of a task")
def test_time_limits_make_dead_letters_at_once(bundle: Bundle) -> None:
    """A task that is too long is ended, by an exception or with its process, and not tried again.

    A hard limit of its own or of its message, below the soft one of the settings, needs no soft one.
    """
    bundle.add_task(SCRIPTED)
    bundle.add_task(OTHERS)
    soft, hard = 2, 5
    limits = {"PROJ_TASK_SOFT_TIME_LIMIT": str(soft), "PROJ_TASK_TIME_LIMIT": str(hard)}
    bundle.worker("--concurrency=4", env=limits)
    messages: Messages = {
        "soft": ("scripted", ("sleep",), {}),
        "hard": ("scripted", ("stubborn",), {}),
        "of-the-task": ("bounded", (), {}),
        "of-the-message": ("unbounded", (), {"time_limit": 1}),
    }
    _enqueue(bundle, messages)

    letters = _dead(bundle, len(messages))

    assert {letters[task_id]["x-death"][0]["reason"] for task_id in messages} == {"rejected"}
    assert [_attempts(bundle, task_id) for task_id in ("soft", "hard")] == [1, 1]
    outcomes = _outcomes(bundle, *messages)
    assert outcomes["soft"]["error"].startswith("SoftTimeLimitExceeded")
    for task_id, limit in (("hard", hard), ("of-the-task", 1), ("of-the-message", 1)):
        assert outcomes[task_id]["error"].startswith(f"TimeLimitExceeded: TimeLimitExceeded({limit}")


def test_exit_in_a_pool_of_threads_makes_a_dead_letter_at_once(
    bundle: Bundle, scripted: Callable[..., None]
) -> None:
    """There is no process to end: the task has failed, and its slot takes the next message."""
    bundle.worker("-P", "threads")
    scripted("exit")

    _dead(bundle)

    assert _outcome(bundle)["error"] == "RuntimeError: the task raised SystemExit(3)"
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"


def test_killer_of_its_process_is_told_apart_from_an_exception(bundle: Bundle) -> None:
    """A process that ends under its task, as when memory runs out, is tried up to the delivery limit."""
    bundle.add_task(SCRIPTED)
    errors = {
        "kill": "signal 9 (SIGKILL)",
        "exit": "exited with code 3",
        "interrupt": "ended by KeyboardInterrupt",
    }
    bundle.worker(f"--concurrency={len(errors)}")
    _enqueue(bundle, {action: ("scripted", (action,), {}) for action in errors})

    letters = _dead(bundle, len(errors))

    def stored() -> dict[str, dict[str, Any]]:
        found = _outcomes(bundle, *errors)
        return found if {each["state"] for each in found.values()} == {"FAILURE"} else {}

    outcomes = eventually("their ends are stored", stored)
    for action, error in errors.items():
        assert letters[action]["x-death"][0]["reason"] == "delivery_limit"
        assert _attempts(bundle, action) == 6
        outcome = outcomes[action]
        assert outcome["error"].startswith("DeadLettered: delivery limit: WorkerLostError: ")
        assert error in outcome["error"]
        assert f"proj dead show {action}" in outcome["error"]


# --- Controls: without its protection, the same fault loses the message


def _lost(bundle: Bundle, worker: Worker) -> None:
    """Neither waiting, nor dead, nor in the hands of the worker, which ends in good order."""
    assert worker.terminate() == 0
    assert bundle.kept("proj.tasks") == 0
    assert bundle.depth("proj.dead") == 0


def test_control_without_reject_on_failure_a_failed_message_is_lost(
    bundle: Bundle, scripted: Callable[..., None]
) -> None:
    """Celery's default acknowledges a failed task."""
    bundle.switch_off("celeryconfig.py", '"task_acks_on_failure": False', '"task_acks_on_failure": True')
    worker = bundle.worker()
    scripted("fail")

    worker.says("ValueError('no such thing')")

    _lost(bundle, worker)


def test_control_without_reject_on_decode_error_an_unreadable_message_is_lost(bundle: Bundle) -> None:
    """Celery's consumer acknowledges what it cannot read."""
    bundle.switch_off("worker/consumer.py", "    def on_decode_error(", "    def _not_used(")
    worker = bundle.worker().ready()
    _raw(bundle, *NO_TASKS["body-not-text"], "it")

    worker.says("Can't decode message body")

    _lost(bundle, worker)


def test_control_without_late_acknowledgement_a_killed_worker_loses_its_message(bundle: Bundle) -> None:
    """Acknowledged at its start, the task dies with its worker."""
    bundle.switch_off("celeryconfig.py", '"task_acks_late": True', '"task_acks_late": False')
    worker = bundle.worker().ready()
    bundle.enqueue("sleep-dots", "600", "--id", "it")
    worker.started("it")
    # The broker hands out a second one to the only slot when it has the acknowledgement of the first.
    bundle.enqueue("add", "1", "2", "--id", "next")
    eventually("the task is acknowledged", lambda: bundle.depth("proj.tasks") == 0)

    worker.kill()

    other = bundle.worker(log="other.log").ready()
    other.says("[next] succeeded")
    _lost(bundle, other)


def test_control_without_delivery_limit_a_killer_goes_round_for_ever(
    bundle: Bundle, scripted: Callable[..., None]
) -> None:
    """Only the limit stops it."""
    bundle.switch_off(
        "queues.py", '"x-delivery-limit": DELIVERY_LIMIT', '"x-delivery-limit": NO_DELIVERY_LIMIT'
    )
    bundle.worker("--concurrency=2")
    scripted("kill")

    eventually("it is executed beyond the limit", lambda: _attempts(bundle) > 6)

    assert bundle.depth("proj.dead") == 0
