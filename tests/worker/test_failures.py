"""What fails, and where its message is afterwards: tried again, or kept in proj.dead, never gone.

One worker of one slot gets every message of this module that leaves a worker as it is.
"""

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import pytest

from tests.lib import dead, failing
from tests.lib.bundle import Bundle
from tests.lib.failing import OTHERS, SCRIPTED, Messages
from tests.lib.vhosts import VirtualHosts
from tests.lib.worker import Worker

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

#: An errback that does not take what Celery passes, so that it is not published.
WRONG_ERRBACK: Final = {"task": "proj.tasks.sleep_dots", "args": ["extra"], "kwargs": {}, "options": {}}

#: What the worker of this module gets. The first one's retry, if it held the slot, would hold up the rest.
FAILING: Final[Messages] = {
    "very-busy": ("very_busy", (), {}),
    "busy": ("busy", (), {}),
    "transient": ("scripted", ("transient", "late", "fine"), {}),
    "ran-out": ("scripted", ("transient",), {}),
    "fail": ("scripted", ("fail",), {}),
    "memory": ("scripted", ("memory",), {}),
    "again": ("again", (), {}),
    "again-called": ("again_called", (), {}),
    "again-before": ("again_before", (), {}),
    "fail-linked": ("scripted", ("fail",), {"link_error": WRONG_ERRBACK}),
    "reject-linked": ("scripted", ("reject",), {"link_error": WRONG_ERRBACK}),
}


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


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("failures")) as bundle:
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
    failing.enqueue(shared, FAILING)
    for name, (body, content_type, headers) in NO_TASKS.items():
        _raw(shared, body, content_type, headers, name)
    found = failing.dead_letters(shared, len(FAILING) - len({"very-busy", "transient"}) + len(NO_TASKS))
    worker.says("[transient] succeeded")
    return found


@pytest.fixture(scope="module")
def outcomes(shared: Bundle, dead_letters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is stored of the messages that could be executed."""
    return failing.outcomes(shared, *FAILING)


def test_transient_error_is_tried_again(
    shared: Bundle, dead_letters: dict[str, Any], outcomes: dict[str, dict[str, Any]]
) -> None:
    """A connection error and a timeout are retried with the same id, until they are over."""
    assert failing.attempts(shared, "transient") == 3
    assert outcomes["transient"]["result"] == "fine"
    assert "transient" not in dead_letters


def test_retries_that_ran_out_make_a_dead_letter(
    shared: Bundle, dead_letters: dict[str, Any], outcomes: dict[str, dict[str, Any]]
) -> None:
    """At most PROJ_MAX_RETRIES retries, then the message is kept with the error that it had last."""
    assert failing.attempts(shared, "ran-out") == 3
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
    assert failing.attempts(shared, action) == 1
    assert dead_letters[action]["argsrepr"] == repr((action,))
    assert outcomes[action]["error"] == error
    assert "in scripted" in outcomes[action]["traceback"]


@pytest.mark.parametrize("task_id", ["again", "again-called", "again-before"])
def test_retry_that_was_not_published_is_a_failure(
    dead_letters: dict[str, Any], outcomes: dict[str, dict[str, Any]], task_id: str
) -> None:
    """Celery's `Retry`, raised by hand, publishes no next attempt: the message is kept, not acknowledged.

    Also that of a task whose base has a `__call__` or `before_start` of its own.
    """
    assert task_id in dead_letters
    assert outcomes[task_id]["error"].startswith("RuntimeError: the task raised Retry")


@pytest.mark.parametrize(
    ("task_id", "error"), [("fail-linked", "ValueError: no such thing"), ("reject-linked", "Reject: ")]
)
def test_errback_that_cannot_be_published(
    worker: Worker,
    dead_letters: dict[str, Any],
    outcomes: dict[str, dict[str, Any]],
    task_id: str,
    error: str,
) -> None:
    """A warning says so, the error of the task is stored, and its message is settled."""
    assert dead_letters[task_id]["x-death"][0]["reason"] == "rejected"
    assert outcomes[task_id]["error"].startswith(error)
    worker.says(f"errback of task {task_id} cannot be called: BadArguments")


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
    assert failing.outcome(shared, what)["result"] == 3


def test_worker_that_met_them_all_works_on(
    shared: Bundle, worker: Worker, dead_letters: dict[str, Any]
) -> None:
    """No error of a task, and no message, ends its worker, or keeps its slot."""
    assert shared.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
    assert worker.process.poll() is None


@pytest.mark.used_vhost
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

    letter = failing.dead_letters(bundle)["it"]

    assert letter["x-death"][0]["reason"] == "rejected"
    worker.says("not published: user 'guest' lacks a right")


# --- Controls: without its protection, the same fault loses the message


@pytest.mark.used_vhost
def test_control_without_reject_on_failure_a_failed_message_is_lost(bundle: Bundle) -> None:
    """Celery's default acknowledges a failed task."""
    bundle.switch_off("celeryconfig.py", '"task_acks_on_failure": False', '"task_acks_on_failure": True')
    bundle.add_task(SCRIPTED)
    worker = bundle.worker()
    failing.enqueue_scripted(bundle, "fail")

    worker.says("ValueError('no such thing')")

    failing.assert_lost(bundle, worker)


@pytest.mark.used_vhost
def test_control_without_reject_on_decode_error_an_unreadable_message_is_lost(bundle: Bundle) -> None:
    """Celery's consumer acknowledges what it cannot read."""
    bundle.switch_off("worker/consumer.py", "    def on_decode_error(", "    def _not_used(")
    worker = bundle.worker().ready()
    _raw(bundle, *NO_TASKS["body-not-text"], "it")

    worker.says("Can't decode message body")

    failing.assert_lost(bundle, worker)
