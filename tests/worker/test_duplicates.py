"""A message that comes twice does not act twice, once its success is stored; and the window that remains."""

import json

import pytest

from proj import queues
from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

pytestmark = pytest.mark.used_vhost

#: A task that leaves a line in a file for each time it is executed, and can be told to die afterwards.
ACT = """
    @app.task(name="proj.tasks.act", pydantic=True)
    def act() -> str:
        with open("acts", "a") as file:
            file.write("x")
        return "acted"
"""


def _acts(bundle: Bundle) -> int:
    path = bundle.folder / "acts"
    return len(path.read_text()) if path.exists() else 0


def _handled(bundle: Bundle, worker: Worker) -> None:
    """Wait until the worker has taken all messages, and end it: none is left."""
    eventually("the queue is empty", lambda: bundle.depth("proj.tasks") == 0)
    assert worker.terminate() == 0
    assert bundle.kept("proj.tasks") == 0


def test_message_that_is_published_twice_acts_once(bundle: Bundle) -> None:
    """The caller repeats a publish with its id, after the first was executed: it is acknowledged, no more.

    Once the result is forgotten, a repeat is executed.
    """
    bundle.add_task(ACT)
    worker = bundle.worker()
    enqueue = ("enqueue", "task", "proj.tasks.act", "--id", "order-1")
    assert bundle.proj(*enqueue, "--wait").stdout == '"acted"\n'

    for _ in range(2):
        assert bundle.proj(*enqueue, "--wait").stdout == '"acted"\n'

    eventually("each is reported", lambda: len(worker.lines("is a duplicate")) == 2, seen=worker.text)
    assert _acts(bundle) == 1

    # The process that has found it does not remember it.
    bundle.python("from proj import app; app.AsyncResult('order-1').forget(); print(1)")
    assert bundle.proj(*enqueue, "--wait").stdout == '"acted"\n'
    _handled(bundle, worker)
    assert _acts(bundle) == 2
    assert bundle.depth("proj.dead") == 0


# upstream: not reported; remove when Celery looks into the result store for each repeat
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_repeat_of_a_success_that_is_not_stored_is_executed(bundle: Bundle, pool: str) -> None:
    """Such as when the acknowledgement of a task that ignores its result was lost."""
    bundle.add_task(ACT.replace("pydantic=True", "ignore_result=True"))
    worker = bundle.worker("-P", pool)

    dead.publish_task(bundle, "it", task="proj.tasks.act")
    worker.says("[it] succeeded")
    dead.publish_task(bundle, "it", task="proj.tasks.act", headers={queues.REPEAT_HEADER: True})

    eventually("it is executed again", lambda: _acts(bundle) == 2, seen=worker.text)
    _handled(bundle, worker)
    assert bundle.depth("proj.dead") == 0


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_duplicate_whose_next_step_cannot_be_published_keeps_no_slot(bundle: Bundle, pool: str) -> None:
    """It is given back until its delivery limit, in every pool; the worker's only slot is free after that."""
    bundle.python("from proj import app; app.backend.store_result('it', 3, 'SUCCESS'); print(1)")
    link = {"task": "proj.tasks.add", "args": [1], "kwargs": {}, "options": {"queue": "nowhere"}}
    body = [[1, 2], {}, {"callbacks": [link], "errbacks": None, "chain": None, "chord": None}]
    headers = {"id": "it", "task": "proj.tasks.add", "lang": "py", queues.REPEAT_HEADER: True}
    dead.publish(
        bundle,
        body,
        application_headers=headers,
        content_type="application/json",
        content_encoding="utf-8",
    )
    bundle.worker("-P", pool)

    dead.await_count(bundle, 1)

    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"


def test_redelivered_message_whose_success_is_stored_acts_once(bundle: Bundle) -> None:
    """A worker dies after the result is stored, and before it acknowledges: the other only acknowledges."""
    bundle.add_task(ACT)
    # The fault: die instead of the acknowledgement, which comes after the result is stored.
    bundle.switch_off(
        "worker/request.py",
        "    def acknowledge(self) -> None:\n",
        "    def acknowledge(self) -> None:\n        __import__('os').kill(__import__('os').getpid(), 9)\n",
    )
    victim = bundle.worker(log="victim.log").ready()
    message = bundle.python("import json; from proj.tasks import act; print(json.dumps(act.delay().id))")
    assert victim.ends() == -9
    assert json.loads(bundle.proj("result", message, "--json").stdout)["state"] == "SUCCESS"
    eventually("the message is back", lambda: bundle.depth("proj.tasks") == 1)

    bundle.heal()
    other = bundle.worker(log="other.log")
    other.says("is a duplicate: it succeeded already")

    _handled(bundle, other)
    assert _acts(bundle) == 1


def test_window_that_remains(bundle: Bundle) -> None:
    """A worker that dies after the task acted, and before the success is stored, lets it act twice."""
    bundle.add_task("""
        @app.task(name="proj.tasks.act", pydantic=True)
        def act() -> str:
            import os
            with open("acts", "a") as file:
                file.write("x")
            with open("acts") as file:
                if file.read() == "x":
                    os.kill(os.getppid(), 9)
                    # The system ends this process with its worker; until it does, nothing must be stored.
                    time.sleep(600)
            return "acted"
    """)
    victim = bundle.worker(log="victim.log").ready()
    bundle.enqueue("task", "proj.tasks.act", "--id", "twice")
    assert victim.ends() == -9

    other = bundle.worker(log="other.log")
    other.says("succeeded in")

    _handled(bundle, other)
    assert _acts(bundle) == 2


def test_control_without_the_mark_a_message_that_is_published_twice_acts_twice(bundle: Bundle) -> None:
    """The broker's redelivered flag alone does not know of a second publish."""
    bundle.add_task(ACT)
    bundle.switch_off("worker/request.py", "if message.headers.get(queues.REPEAT_HEADER):", "if False:")
    worker = bundle.worker().ready()
    for _ in range(2):
        bundle.enqueue("task", "proj.tasks.act", "--id", "order-1")

    eventually("it acts twice", lambda: _acts(bundle) == 2)
    _handled(bundle, worker)
