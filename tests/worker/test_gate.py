"""A message is acknowledged when its end is stored, and never because Celery stumbled over it.

One worker gets every message of this module, and is the same at the end.
"""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import amqp
import pytest

from proj import queues
from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.worker import Worker

ADD: Final = {"task": "proj.tasks.add", "lang": "py", "retries": 0}

GOOD: Final = b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'

PAST: Final = "2020-01-01T00:00:00+00:00"


def _nested(depth: int) -> bytes:
    """A body whose first argument is lists in lists."""
    return b"[[" + b"[" * depth + b"]" * depth + b", 2], {}, {}]"


def _tables(depth: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for _ in range(depth):
        table = {"t": table}
    return table


#: Messages that no task can be executed of: body, headers, and a word of the error that is stored.
BAD: Final[dict[str, tuple[bytes, dict[str, Any], str]]] = {
    "body-null": (b"null", {}, "invalid: "),
    "body-number": (b"5", {}, "invalid: "),
    "body-text": (b'"hello"', {}, "invalid: "),
    "body-cut": (b'["not", "a task"', {}, "unreadable: "),
    "body-nested-100000": (_nested(100_000), {}, "unreadable: maximum recursion depth"),
    "kwargs-null": (b"[[1, 2], null, {}]", {}, "expected a mapping of keyword arguments, got None"),
    "kwargs-list": (b"[[1, 2], [1], {}]", {}, "expected a mapping of keyword arguments, got [1]"),
    "args-text": (b'["12", {}, {}]', {}, "expected a list of arguments, got '12'"),
    "embed-list": (b"[[1, 2], {}, [1]]", {}, "expected a mapping of callbacks, got [1]"),
    "shadow-number": (GOOD, {"shadow": 5}, "expected the name of a task, got 5"),
    "expires-word": (GOOD, {"expires": "tomorrow"}, "invalid: "),
    "eta-word": (GOOD, {"eta": "tomorrow"}, "invalid: "),
    "expired": (GOOD, {"expires": PAST}, f"expired: its expiry time was {PAST}"),
    "unknown-task": (GOOD, {"task": "proj.tasks.unknown"}, "unknown task: 'proj.tasks.unknown'"),
    "task-table": (GOOD, {"task": {"a": 1}}, "invalid: "),
    "limit-negative": (GOOD, {"timelimit": [-1, None]}, "a time limit is a number of seconds, got -1"),
    "limit-nan": (GOOD, {"timelimit": ["nan", None]}, "a time limit is a number of seconds, got 'nan'"),
    "limit-bool": (GOOD, {"timelimit": [True, None]}, "a time limit is a number of seconds, got True"),
    "limit-of-one": (GOOD, {"timelimit": [5]}, "invalid: "),
    "limit-above-the-broker's": (GOOD, {"timelimit": [1800, None]}, "consumer_timeout, got 1800 and 1800"),
    "soft-limit-above": (GOOD, {"timelimit": [None, 5000]}, "consumer_timeout, got 5000 and 1800"),
    "headers-nested-200": (GOOD, {"deep": _tables(200), "expires": PAST}, "expired"),
}  # fmt: skip
if sys.version_info < (3, 12):  # later ones have more room for it in pickle
    BAD["body-nested-500"] = (_nested(500), {}, "invalid: the pool cannot accept it: RecursionError")

#: Ids under which nothing can be stored.
BAD_IDS: Final[dict[str, Any]] = {
    "number": 5,
    "table": {"a": 1},
    "absent": None,
    "empty": "",
    "100000-characters": "x" * 100_000,
}


@pytest.fixture(scope="module")
def bundle(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("gate")) as bundle:
        yield bundle


@pytest.fixture(scope="module")
def worker(bundle: Bundle) -> Worker:
    bundle.declare()
    return bundle.worker("--concurrency=2").ready()


def _publish(channel: Any, body: bytes, headers: dict[str, Any], **properties: Any) -> None:
    channel.basic_publish_confirm(
        amqp.Message(
            body,
            content_type="application/json",
            content_encoding="utf-8",
            application_headers=ADD | headers,
            delivery_mode=queues.PERSISTENT,
            **properties,
        ),
        exchange="proj",
        routing_key="proj.tasks",
    )


def _outcomes(bundle: Bundle, *ids: str) -> dict[str, dict[str, Any]]:
    """What is stored under each id."""
    found: dict[str, dict[str, Any]] = bundle.python(
        "import json; from proj import app, results; from dataclasses import asdict;"
        f"print(json.dumps({{i: asdict(results.outcome(app, i)) for i in {ids!r}}}))"
    )
    return found


def _dead(bundle: Bundle) -> list[dict[str, Any]]:
    """The headers of each dead letter."""
    return [message["properties"].get("headers", {}) for message in bundle.peek("proj.dead")]


@pytest.fixture(scope="module")
def buried(bundle: Bundle, worker: Worker) -> dict[str, dict[str, Any]]:
    """What is stored of the bad messages, once all of them are dead letters and a good one is done."""
    with bundle.channel() as channel:
        for name, (body, headers, _) in BAD.items():
            _publish(channel, body, {"id": name} | headers)
        for name, task_id in BAD_IDS.items():
            headers = {"case": name} | ({} if task_id is None else {"id": task_id})
            _publish(channel, GOOD, headers, correlation_id=f"waited-{name}")
        _publish(channel, GOOD, {"id": "good"})
    worker.says("[good] succeeded")
    count = len(BAD) + len(BAD_IDS)
    eventually("all are dead letters", lambda: bundle.depth("proj.dead") == count, seen=worker.text)
    return _outcomes(bundle, *BAD)


@pytest.mark.parametrize("name", BAD)
def test_message_that_cannot_be_executed_is_a_dead_letter_with_its_end(
    bundle: Bundle, worker: Worker, buried: dict[str, dict[str, Any]], name: str
) -> None:
    """It is never executed and never lost, and whoever waits for it is answered."""
    assert buried[name]["state"] == "FAILURE"
    assert buried[name]["error"].startswith("NotExecuted: ")
    assert BAD[name][2] in buried[name]["error"]
    assert len(buried[name]["error"]) < 1000
    assert f"{name}] succeeded" not in worker.text()


def test_dead_letter_says_why_whatever_its_body_is(bundle: Bundle, buried: dict[str, dict[str, Any]]) -> None:
    rows = {row["id"]: row for row in dead.rows(bundle)}
    assert {name: rows[name]["exception"] for name in BAD} == {name: buried[name]["error"] for name in BAD}


@pytest.mark.parametrize("name", BAD_IDS)
def test_id_that_nothing_can_be_stored_under_makes_a_dead_letter(
    bundle: Bundle, buried: dict[str, dict[str, Any]], name: str
) -> None:
    assert [headers["case"] for headers in _dead(bundle) if headers.get("case") == name] == [name]
    # Whoever published it may have named it in the properties, too.
    assert _outcomes(bundle, f"waited-{name}")[f"waited-{name}"]["state"] == "FAILURE"


def test_message_that_no_task_was_executed_for_had_no_attempt(
    bundle: Bundle, buried: dict[str, dict[str, Any]]
) -> None:
    assert {row["attempts"] for row in dead.rows(bundle)} == {0}


def test_message_that_expired_is_executed_when_it_is_redriven(
    bundle: Bundle, worker: Worker, buried: dict[str, dict[str, Any]]
) -> None:
    """The worker that found it expired does not remember it as revoked."""
    done = bundle.proj("dead", "redrive", "expired")
    assert done.returncode == 0, done.stderr

    worker.says("[expired] succeeded")

    eventually("its success is stored", lambda: _outcomes(bundle, "expired")["expired"]["state"] == "SUCCESS")


@pytest.mark.parametrize("depth", [5, 60, 200])
def test_steps_in_steps(bundle: Bundle, worker: Worker, depth: int) -> None:
    """The last is executed, whether or not a pool could be handed all of them as they are."""
    code = f"""
        import json
        from proj.tasks import add
        step = add.si(0, 0).set(task_id="last-of-{depth}")
        for number in range({depth}):
            step = add.si(0, number).set(link=[step])
        print(json.dumps(step.apply_async().id))
    """
    bundle.python(textwrap.dedent(code))
    worker.says(f"[last-of-{depth}] succeeded")


def test_time_limit_is_refused_by_who_knows_what_the_broker_waits_for(bundle: Bundle, worker: Worker) -> None:
    """A publisher whose PROJ_CONSUMER_TIMEOUT is set; any other leaves it to the worker."""
    code = """
        import json
        from proj.tasks import add
        from proj.errors import BadInput
        try:
            outcome = add.apply_async((1, 2), task_id="too-long", time_limit=1800).id
        except BadInput as error:
            outcome = str(error)
        print(json.dumps(outcome))
    """
    assert bundle.python(textwrap.dedent(code)) == "too-long"
    known = "import os; os.environ['PROJ_CONSUMER_TIMEOUT'] = '1800'\n"
    assert "time_limit must be below the broker's consumer_timeout, got 1800 and 1800" in bundle.python(
        known + textwrap.dedent(code)
    )

    worker.says("[too-long] became a dead letter: invalid: its time limit must be below")

    def error() -> str:
        return str(_outcomes(bundle, "too-long")["too-long"]["error"])

    eventually("its end is stored", lambda: "got 1800 and 1800" in error(), seen=error)


def test_worker_that_met_them_all_is_the_same_and_ends_in_time(
    bundle: Bundle, worker: Worker, buried: dict[str, dict[str, Any]]
) -> None:
    """Its pool waits for none of them."""
    assert worker.process.poll() is None
    assert "Connection to broker lost" not in worker.text()
    assert "rror in hub" not in worker.text()

    worker.process.terminate()

    assert worker.process.wait(PATIENCE / 4) == 0
    assert bundle.kept("proj.tasks") == 0


#: What Celery's tracer answers as it answers a duplicate: the arguments are no mapping.
_NO_MAPPING: Final = b"[[1, 2], null, {}]"


def test_message_that_celery_would_acknowledge_unexecuted_is_kept(
    vhosts: VirtualHosts, tmp_path: Path
) -> None:
    """The control for the check of its shape: what passes that is stopped where it would be acknowledged.

    And the control for that: without both, the message is lost.
    """
    with vhosts.lend(tmp_path) as bundle:
        bundle.switch_off("worker/request.py", "        shape.check(self)\n", "")
        worker = bundle.worker().ready()
        with bundle.channel() as channel:
            _publish(channel, _NO_MAPPING, {"id": "kept"})
        worker.says("[kept] became a dead letter: invalid: Celery ended it without executing it")
        eventually("it is a dead letter", lambda: bundle.depth("proj.dead") == 1)
        assert worker.terminate() == 0

        bundle.switch_off("worker/request.py", "elif self._end or not self.task.acks_late:", "elif True:")
        worker = bundle.worker(log="lost.log").ready()
        with bundle.channel() as channel:
            _publish(channel, _NO_MAPPING, {"id": "lost"})
            _publish(channel, GOOD, {"id": "next"})
        worker.says("[next] succeeded")  # its slot was free
        assert worker.terminate() == 0
        assert (bundle.kept("proj.tasks"), bundle.depth("proj.dead")) == (0, 1)


def test_revocation_that_cannot_be_stored_is_not_acknowledged(vhosts: VirtualHosts, tmp_path: Path) -> None:
    """While the store is down, a message that is revoked is given back."""
    with vhosts.lend(tmp_path) as bundle:
        bundle.env["CELERY_RESULT_BACKEND"] = "db+postgresql://nobody:nothing@127.0.0.1:1/nowhere"
        bundle.switch_off(
            "results/patience.py",
            "PATIENCE: Final = 2\n\n#: Seconds between",
            "PATIENCE: Final = 0.1\n\n#: Seconds between",
        )
        worker = bundle.worker().ready()
        bundle.control(worker, "revoke", "it")
        with bundle.channel() as channel:
            _publish(channel, GOOD, {"id": "it"})

        worker.says("[it] given back: store unreachable")

        assert worker.terminate() == 0
        assert bundle.kept("proj.tasks") + bundle.depth("proj.dead") == 1
        assert "[it] succeeded" not in worker.text()
