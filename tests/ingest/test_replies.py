"""Who has asked for a reply gets the end of the task, once it is stored; nobody else is held up by it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest

from tests.lib import foreign
from tests.lib.bundle import Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

TASKS = """
    @app.task(name="proj.tasks.fails")
    def fails(text: str) -> None:
        raise LookupError(f"no {text}")

    @app.task(name="proj.tasks.flaky", bind=True)
    def flaky(self, text: str) -> str:
        if not self.request.retries:
            raise self.retry(countdown=1, exc=LookupError(f"no {text} yet"))
        return f"{text} after a retry"
"""

ROUTES = """
[[route]]
queue = "add"
decoder = "json-args"
task = "proj.tasks.add"

[[route]]
queue = "fails"
decoder = "text"
task = "proj.tasks.fails"

[[route]]
queue = "flaky"
decoder = "text"
task = "proj.tasks.flaky"
"""

DIRECT = "amq.rabbitmq.reply-to"


@pytest.fixture(scope="module")
def served(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Worker]]:
    """A virtual host with an ingest and a worker."""
    with vhosts.lend(tmp_path_factory.mktemp("replies")) as bundle:
        bundle.add_task(TASKS)
        routes = bundle.folder / "routes.toml"
        routes.write_text(ROUTES)
        foreign.start(bundle, env={"PROJ_INGEST_ROUTES": str(routes)}).consumes("add", "fails", "flaky")
        yield bundle, bundle.worker().ready()


class Asker:
    """A program that asks, in the way of the broker's own tutorials."""

    def __init__(self, channel: Any, *, direct: bool) -> None:
        self._channel = channel
        self._address = DIRECT if direct else channel.queue_declare("", exclusive=True).method.queue
        self._got: list[tuple[Any, bytes]] = []
        channel.basic_consume(self._address, self._take, auto_ack=True)

    def _take(self, _channel: Any, _method: Any, properties: Any, body: bytes) -> None:
        self._got.append((properties, body))

    def ask(self, queue: str, body: str, correlation_id: str, **properties: Any) -> Any:
        given = pika.BasicProperties(reply_to=self._address, correlation_id=correlation_id, **properties)
        self._channel.basic_publish("", queue, body, given)

        def has_come() -> bool:
            self._channel.connection.process_data_events(0.1)
            return bool(self._got)

        eventually("a reply comes", has_come)
        found, reply = self._got.pop()
        assert (found.correlation_id, found.content_type) == (correlation_id, "application/json")
        return json.loads(reply)


@contextmanager
def asker(bundle: Bundle, *, direct: bool = False) -> Iterator[Asker]:
    with pika.BlockingConnection(pika.URLParameters(bundle.url)) as connection:
        yield Asker(connection.channel(), direct=direct)


@pytest.mark.parametrize("direct", [False, True], ids=["queue", "direct"])
def test_a_reply_says_how_the_task_ended(served: tuple[Bundle, Worker], direct: bool) -> None:
    """Over the broker's direct reply-to it goes from the worker's process to the asker's channel."""
    with asker(served[0], direct=direct) as program:
        assert program.ask("add", "[221, 345]", "c-1") == {"status": "SUCCESS", "result": 566}
        assert program.ask("fails", "bread", "c-2") == {"status": "FAILURE", "error": "LookupError: no bread"}


def test_a_retry_is_no_end(served: tuple[Bundle, Worker]) -> None:
    """Its own message carries the address on: the reply is the one of the attempt that ended the task."""
    with asker(served[0]) as program:
        assert program.ask("flaky", "bread", "c") == {"status": "SUCCESS", "result": "bread after a retry"}


def test_a_duplicate_gets_the_stored_end(served: tuple[Bundle, Worker]) -> None:
    """The worker that stored it may have been killed before its reply."""
    bundle, worker = served
    with asker(bundle) as program:
        for _ in range(2):
            assert program.ask("add", "[1, 2]", "c", message_id="m-1") == {"status": "SUCCESS", "result": 3}
    assert worker.text().count("Result of 1 + 2 is 3") == 1


def test_rubbish_is_answered_too(served: tuple[Bundle, Worker]) -> None:
    """By the worker that stores its end."""
    with asker(served[0]) as program:
        end = program.ask("add", "no JSON", "c")
    assert end["status"] == "FAILURE"
    assert "the body is not JSON" in end["error"]


def test_a_reply_that_nobody_waits_for_is_dropped(served: tuple[Bundle, Worker]) -> None:
    """With a line; the task has succeeded, and the worker goes on."""
    bundle, worker = served
    foreign.publish(bundle, ["[4, 4]"], "add", reply_to="nobody", correlation_id="c")
    worker.says("its reply to 'nobody' is dropped: ")
    foreign.publish(bundle, ["[5, 5]"], "add")
    worker.says("Result of 5 + 5 is 10")
    assert "Result of 4 + 4 is 8" in worker.text()


def test_a_reply_needs_no_database(bundle: Bundle) -> None:
    """With results over `rpc://`, which nobody waits for, the asker gets its own."""
    bundle.env["CELERY_RESULT_BACKEND"] = "rpc://"
    foreign.start(bundle).consumes("add")
    bundle.worker().ready()
    with asker(bundle) as program:
        end = program.ask("add", '{"Number1": 221, "Number2": 345}', "c")
    assert end == {"status": "SUCCESS", "result": 566}
