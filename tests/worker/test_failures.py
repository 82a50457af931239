"""What fails, and where its message is afterwards: tried again, or kept in proj.dead, never gone."""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.lib import dead
from tests.lib.bundle import PATIENCE, Bundle, Worker, eventually

#: A task that does as it is told; each attempt leaves a line in a file, whatever becomes of it.
SCRIPTED = """
    @app.task(name="proj.tasks.scripted", pydantic=True, bind=True)
    def scripted(self, *actions: str) -> str:
        import os, signal, sys
        from celery.exceptions import SoftTimeLimitExceeded
        with open("attempts", "a") as file:
            file.write(f"{self.request.id} {self.request.retries}\\n")
        with open("attempts") as file:
            attempt = len(file.readlines())
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


@pytest.fixture
def scripted(bundle: Bundle) -> Callable[..., None]:
    """Enqueue the scripted task under the id `it`."""
    bundle.add_task(SCRIPTED)

    def enqueue(*actions: str) -> None:
        words = [json.dumps(action) for action in actions]
        bundle.enqueue("task", "proj.tasks.scripted", *words, "--id", "it")

    return enqueue


def _attempts(bundle: Bundle) -> int:
    path = bundle.folder / "attempts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _dead(bundle: Bundle, patience: float = PATIENCE) -> Any:
    """The only message of proj.dead, once it is there; and nothing is left in proj.tasks."""

    def arrived() -> bool:
        return bundle.has("proj.dead") and bundle.depth("proj.dead") == 1

    eventually("a message is in proj.dead", arrived, patience)
    (message,) = bundle.peek("proj.dead")
    assert bundle.depth("proj.tasks") == 0
    return message


def _outcome(bundle: Bundle, task_id: str = "it") -> Any:
    return json.loads(bundle.proj("result", task_id, "--json").stdout)


def test_transient_error_is_tried_again(bundle: Bundle, scripted: Callable[..., None]) -> None:
    """A connection error and a timeout are retried with the same id, until they are over."""
    worker = bundle.worker()
    scripted("transient", "late", "fine")

    worker.says("succeeded in")

    assert _attempts(bundle) == 3
    assert _outcome(bundle)["result"] == "fine"
    assert bundle.depth("proj.dead") == 0


def test_retries_that_ran_out_make_a_dead_letter(bundle: Bundle, scripted: Callable[..., None]) -> None:
    """At most PROJ_MAX_RETRIES retries, then the message is kept with the error that it had last."""
    bundle.worker(env={"PROJ_MAX_RETRIES": "1"})
    scripted("transient")

    message = _dead(bundle)

    assert _attempts(bundle) == 2
    assert message["properties"]["headers"]["id"] == "it"
    assert message["properties"]["headers"]["x-death"][0]["reason"] == "rejected"
    assert _outcome(bundle)["error"] == "ConnectionError: the other side hung up"


def test_retries_wait_longer_each_time(bundle: Bundle) -> None:
    """1, 2, 4 seconds, where a task wants no jitter; for what it calls transient itself, and as often."""
    bundle.add_task("""
        @app.task(name="proj.tasks.busy", autoretry_for=(LookupError,), retry_jitter=False, max_retries=3)
        def busy() -> None:
            raise LookupError("come again")
    """)
    worker = bundle.worker()
    bundle.enqueue("task", "proj.tasks.busy", "--id", "it")

    _dead(bundle)

    assert re.findall(r"Retry in (\d+)s", worker.text()) == ["1", "2", "4"]
    assert _outcome(bundle)["error"] == "LookupError: come again"


def test_retry_waits_at_the_broker(bundle: Bundle) -> None:
    """At most ten minutes, in the queue of 2^9 seconds and more; the worker's only slot is free meanwhile."""
    bundle.add_task("""
        @app.task(name="proj.tasks.busy", retry_backoff=3600, retry_jitter=False)
        def busy() -> None:
            raise ConnectionError("come again")
    """)
    worker = bundle.worker()
    bundle.enqueue("task", "proj.tasks.busy", "--id", "it")
    worker.says("Retry in 600s")
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"

    (message,) = bundle.peek("celery_delayed_9")

    assert message["properties"]["headers"]["id"] == "it"
    assert message["properties"]["headers"]["retries"] == 1
    assert message["properties"]["delivery_mode"] == 2


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

    message = _dead(bundle)

    assert message["properties"]["headers"]["id"] == "it"
    assert message["properties"]["headers"]["x-death"][0]["reason"] == "rejected"
    worker.says("not published: user 'guest' lacks a right")


@pytest.mark.parametrize(
    ("action", "error"), [("fail", "ValueError: no such thing"), ("memory", "MemoryError: no more")]
)
def test_other_error_makes_a_dead_letter_at_once(
    bundle: Bundle, scripted: Callable[..., None], action: str, error: str
) -> None:
    """What is not transient is not tried again; and no error of a task ends its worker."""
    worker = bundle.worker()
    scripted(action)

    message = _dead(bundle)

    assert _attempts(bundle) == 1
    assert json.loads(message["payload"])[0] == [action]
    outcome = _outcome(bundle)
    assert outcome["error"] == error
    assert "in scripted" in outcome["traceback"]
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    ("action", "hard_limit", "error"),
    [("sleep", "60", "SoftTimeLimitExceeded"), ("stubborn", "2", "TimeLimitExceeded: TimeLimitExceeded(2")],
)
def test_time_limit_makes_a_dead_letter_at_once(
    bundle: Bundle, scripted: Callable[..., None], action: str, hard_limit: str, error: str
) -> None:
    """A task that is too long is ended, by an exception or with its process, and not tried again."""
    bundle.worker(env={"PROJ_TASK_SOFT_TIME_LIMIT": "1", "PROJ_TASK_TIME_LIMIT": hard_limit})
    scripted(action)

    message = _dead(bundle)

    assert _attempts(bundle) == 1
    assert message["properties"]["headers"]["x-death"][0]["reason"] == "rejected"
    assert _outcome(bundle)["error"].startswith(error)


def test_exit_in_a_pool_of_threads_makes_a_dead_letter_at_once(
    bundle: Bundle, scripted: Callable[..., None]
) -> None:
    """There is no process to end: the task has failed, and its slot takes the next message."""
    bundle.worker("-P", "threads")
    scripted("exit")

    _dead(bundle)

    assert _outcome(bundle)["error"] == "RuntimeError: the task raised SystemExit(3)"
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"


@pytest.mark.parametrize(
    ("limit_of_task", "limit_of_message"), [(1, None), (None, 1)], ids=["of-the-task", "of-the-message"]
)
def test_own_time_limit_is_kept(
    bundle: Bundle, limit_of_task: int | None, limit_of_message: int | None
) -> None:
    """A hard limit below the soft one of the settings needs no soft one of its own."""
    bundle.add_task(f"""
        @app.task(name="proj.tasks.bounded", time_limit={limit_of_task})
        def bounded():
            time.sleep(600)
    """)
    bundle.worker()
    bundle.python(
        "from proj.tasks import bounded; import json;"
        f"print(json.dumps(bounded.apply_async(task_id='it', time_limit={limit_of_message}).id))"
    )

    _dead(bundle)

    assert _outcome(bundle)["error"].startswith("TimeLimitExceeded: TimeLimitExceeded(1")


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("kill", "signal 9 (SIGKILL)"),
        ("exit", "exited with code 3"),
        ("interrupt", "ended by KeyboardInterrupt"),
    ],
)
def test_killer_of_its_process_is_told_apart_from_an_exception(
    bundle: Bundle, scripted: Callable[..., None], action: str, error: str
) -> None:
    """A process that ends under its task, as when memory runs out, is tried up to the delivery limit."""
    bundle.worker()
    scripted(action)

    # Celery takes 5 s to replace a process of its pool.
    message = _dead(bundle)

    assert message["properties"]["headers"]["x-death"][0]["reason"] == "delivery_limit"
    assert _attempts(bundle) == 6
    eventually("its end is stored", lambda: _outcome(bundle)["state"] == "FAILURE")
    outcome = _outcome(bundle)
    assert outcome["error"].startswith("DeadLettered: delivery limit: WorkerLostError: ")
    assert error in outcome["error"]
    assert "proj dead show it" in outcome["error"]


def _raw(bundle: Bundle, body: bytes, content_type: str, **headers: object) -> None:
    """Put a message into proj.tasks that our publishing would not make."""
    bundle.publish(
        body, routing_key="proj.tasks", content_type=content_type, content_encoding="utf-8", headers=headers
    )


@pytest.mark.parametrize(
    ("body", "content_type", "headers"),
    [
        (b"\xff not json", "application/json", {"task": "proj.tasks.add", "id": "it"}),
        (b'["not", "a task"', "application/json", {"task": "proj.tasks.add", "id": "it"}),
        (b"{}", "application/json", {"task": "proj.tasks.add", "id": "it"}),
        (b"gASVBQ==", "application/x-python-serialize", {"task": "proj.tasks.add", "id": "it"}),
        (b"[[1, 2], {}, {}]", "application/json", {"task": "proj.tasks.unknown", "id": "it"}),
        (b"[[1, 2], {}, {}]", "application/json", {"task": "proj.tasks.add"}),
        (b"[[1, 2], {}, {}]", "application/json", {"task": "proj.tasks.add", "id": "it", "timelimit": "zz"}),
        (b"hello", "text/plain", {}),
        (b'{"hello": 1}', "application/json", {}),
        (b"\xff", "application/json", {}),
    ],
    ids=[
        "body-not-text",
        "body-not-json",
        "body-no-arguments",
        "body-pickled",
        "task-unknown",
        "id-missing",
        "time-limit-no-number",
        "plain-text",
        "plain-json",
        "plain-bytes",
    ],
)
def test_message_that_is_no_task_makes_a_dead_letter_at_once(
    bundle: Bundle, body: bytes, content_type: str, headers: dict[str, object]
) -> None:
    """Whatever cannot be executed is kept as it came, and the worker goes on."""
    worker = bundle.worker().ready()
    _raw(bundle, body, content_type, **headers)

    message = _dead(bundle)

    assert message["properties"]["headers"]["x-death"][0]["count"] == 1
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"
    assert worker.process.poll() is None


@pytest.mark.parametrize("what", dead.UNREADABLE)
def test_properties_that_python_does_not_read_end_no_worker(bundle: Bundle, what: str) -> None:
    """A text that is no UTF-8, or a time beyond the calendar, ends no worker; the task is executed."""
    worker = bundle.worker().ready()

    dead.publish_unreadable(bundle, what, "proj.tasks")

    eventually("the task is done", lambda: worker.lines("succeeded"))
    assert worker.process.poll() is None
    assert _outcome(bundle)["result"] == 3


def test_message_that_expires_at_the_worker_is_kept(bundle: Bundle) -> None:
    """A message whose time is over when a worker gets it is not executed, and not dropped."""
    bundle.worker().ready()
    past = "2020-01-01T00:00:00+00:00"
    _raw(bundle, b"[[1, 2], {}, {}]", "application/json", task="proj.tasks.add", id="it", expires=past)

    assert _dead(bundle)["properties"]["headers"]["id"] == "it"


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
    _raw(bundle, b"\xff not json", "application/json", task="proj.tasks.add", id="it")

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
    bundle.worker()
    scripted("kill")

    eventually("it is executed beyond the limit", lambda: _attempts(bundle) > 6)

    assert bundle.depth("proj.dead") == 0


def test_retry_that_was_not_published_is_a_failure(bundle: Bundle) -> None:
    """Celery's `Retry`, raised by hand, publishes no next attempt: the message is kept, not acknowledged."""
    bundle.add_task("""
        @app.task(name="proj.tasks.again")
        def again() -> None:
            from celery.exceptions import Retry
            raise Retry("later")
    """)
    bundle.worker()
    bundle.enqueue("task", "proj.tasks.again", "--id", "it")

    _dead(bundle)

    assert _outcome(bundle)["error"].startswith("RuntimeError: the task raised Retry")
