"""What `proj queues` knows from the management API: what workers hold, the age of the oldest, and rates."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from proj.depths import statistics
from proj.private_node.node import BrokerNode
from proj.rabbitmq.management import Api, Management
from tests.lib import dead
from tests.lib.alarm import alarm
from tests.lib.bundle import MANAGEMENT_OFF, Bundle, vhost_of
from tests.lib.erlang import count_often, evaluate
from tests.lib.serving import serving
from tests.lib.snapshots import COLUMNS, look, number
from tests.lib.waiting import eventually

#: Seconds between two messages of a steady work.
_PAUSE = 0.05


@pytest.fixture
def counted(bundle: Bundle) -> Bundle:
    """A bundle whose work queue tells the management API its numbers several times a second."""
    count_often(bundle)
    return bundle


def management(bundle: Bundle) -> Management:
    """What `proj queues` asks, without a process for each look."""
    return Management([Api(bundle.node.management_url, "guest", "guest")], bundle.vhost)


def counts_are(bundle: Bundle, counts: tuple[int, int, int], source: str, env: dict[str, str]) -> bool:
    """Whether so many are ready, unacknowledged, and consumers, and the second is told by that source."""
    seen = look(bundle, env=env)
    row = seen["queues"]["proj.tasks"]
    told = row["ready"], row["unacknowledged"], row["consumers"]
    return bool(told == counts and seen["unacknowledged_from"] == source)


def in_alarm(bundle: Bundle, flag: str) -> bool:
    return bool(bundle.management("GET", "nodes")[0].get(flag))


def is_said(bundle: Bundle, words: str, env: dict[str, str] | None = None) -> bool:
    return words in bundle.proj("queues", "proj.tasks", env=env).stderr


@contextmanager
def steady_work(bundle: Bundle) -> Iterator[None]:
    """Messages all the time: a rate is that of parts of a second, and a look takes longer.

    They come over one channel. RabbitMQ does not count what a channel publishes that closes before its
    statistics are collected.
    """
    over = threading.Event()

    def publish() -> None:
        with bundle.channel() as channel:
            for number in count():
                channel.basic_publish(dead.task_message(f"add-{number}", 1, 2), routing_key="proj.tasks")
                if over.wait(_PAUSE):
                    return

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        yield
    finally:
        over.set()
        publisher.join()


def hold_one(bundle: Bundle) -> None:
    """Start a worker that holds one message of some, for longer than the test takes."""
    bundle.enqueue("sleep-dots", "600", "--id", "held")
    bundle.worker().ready().started("held")


def test_message_that_a_worker_holds_is_unacknowledged(counted: Bundle) -> None:
    """The management API tells it, or else the workers; which of the two, programs and people are told."""
    bundle = counted
    hold_one(bundle)
    bundle.enqueue("add", "1", "2", "--count", "2")
    eventually("the management API knows it", lambda: bundle.unacknowledged("proj.tasks") == 1)

    for env, source, words in (
        ({}, "management", "unacknowledged, rates: from the management API"),
        (MANAGEMENT_OFF, "workers", "unacknowledged: from the workers"),
    ):
        # A worker that stalls for a second is not waited for.
        eventually("it is told", partial(counts_are, bundle, (2, 1, 1), source, env))
        eventually("people are told", partial(is_said, bundle, words, env))
    assert number(bundle, "proj.dead", "unacknowledged", env=MANAGEMENT_OFF) is None


@pytest.mark.long
def test_oldest_message_is_told_and_not_touched(counted: Bundle) -> None:
    """It has waited at least as long as is said, and was not delivered to know it; then a newer one is it."""
    bundle = counted
    sent = time.time()
    bundle.enqueue("sleep-dots", "600", "--id", "held")
    confirmed = time.time()

    def oldest() -> float:
        return statistics.oldest(management(bundle), "proj.tasks")

    eventually("its age is told", lambda: oldest() >= 5)
    told = float(number(bundle, "proj.tasks", "oldest"))
    assert time.time() - confirmed - 20 <= told <= time.time() - sent
    assert re.search(r"^proj\.tasks .* >\d+s ", bundle.proj("queues").stdout, re.MULTILINE)
    assert [message["redelivered"] for message in bundle.peek("proj.tasks")] == [False]

    bundle.worker().ready().started("held")
    bundle.enqueue("add", "1", "2")
    sent = time.time()
    eventually("the next one is younger", lambda: oldest() <= time.time() - sent)
    row = look(bundle)["queues"]["proj.tasks"]
    assert row["ready"] == 1
    assert row["oldest"] <= time.time() - sent


@pytest.mark.long
def test_rates_are_those_of_the_work(counted: Bundle) -> None:
    """Messages come in, are delivered and acknowledged; what stands still has a rate of 0.

    A worker that holds nothing says so: its 0 is no unknown.
    """
    bundle = counted
    bundle.worker().ready()
    eventually(
        "it holds none", lambda: number(bundle, "proj.tasks", "unacknowledged", env=MANAGEMENT_OFF) == 0
    )

    def rates() -> statistics.Statistics:
        return statistics.of_queues(management(bundle))["proj.tasks"]

    #: Not all at once: on a busy machine the broker counts some of them late, and has 0 until then.
    moved: set[str] = set()

    def told() -> bool:
        found = rates()
        counted = {"in": found.published, "delivered": found.delivered, "acknowledged": found.acknowledged}
        if any(counted[rate] for rate in counted.keys() - moved):  # else a program would look in vain
            row = look(bundle)["queues"]["proj.tasks"]
            moved.update(rate for rate in counted if row[rate])
        return moved == counted.keys()

    eventually("it is at rest", lambda: rates().published == 0)
    assert number(bundle, "proj.tasks", "in") == 0
    with steady_work(bundle):
        eventually("all move", told, seen=lambda: str(rates()))
    assert number(bundle, "proj.dead", "in") is None


def test_wrong_password_of_the_management_api_costs_its_numbers_only(bundle: Bundle) -> None:
    """The table comes, and one line says whose password is wrong, without it."""
    bundle.enqueue("add", "1", "2")
    url = bundle.node.management_url.replace("://", "://guest:s3cret@")

    done = bundle.proj("queues", env={"PROJ_MANAGEMENT_URL": url})

    assert done.returncode == 0
    assert re.search(r"^proj\.tasks +1 +- ", done.stdout, re.MULTILINE)
    assert "refused user 'guest'" in done.stderr
    assert "s3cret" not in done.stderr


def test_broker_in_alarm_is_said(own: Bundle) -> None:
    """The numbers come all the same, and without the management API the question to workers meets it."""
    own.worker().ready()
    for kind, flag in (("memory", "mem_alarm"), ("disk", "disk_free_alarm")):
        with alarm(own.node, kind):
            eventually("the API knows", partial(in_alarm, own, flag))
            eventually("it is said", partial(is_said, own, f"has a {kind} alarm"))
            done = own.proj("queues", env=MANAGEMENT_OFF)

        assert done.returncode == 0
        assert re.search(r"^proj\.tasks +0 +- +1 ", done.stdout, re.MULTILINE)
        assert "the broker's memory or disk alarm is on" in done.stderr


@pytest.mark.parametrize(
    ("status", "unknown"), [(HTTPStatus.UNAUTHORIZED, False), (HTTPStatus.SERVICE_UNAVAILABLE, True)]
)
def test_alarms_that_cannot_be_asked_for(bundle: Bundle, status: HTTPStatus, unknown: bool) -> None:
    """Silence means that there is none, but for a user who may not see nodes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/api/nodes" else HTTPStatus.OK)
            self.end_headers()
            self.wfile.write(b"[]" if self.path.startswith("/api/queues") else b"{}")

        def log_message(self, *_: Any) -> None: ...

    with serving(Handler) as url:
        told = bundle.proj("queues", "proj.tasks", env={"PROJ_MANAGEMENT_URL": url}).stderr

    assert ("whether the broker has an alarm is unknown" in told) is unknown
    assert "unacknowledged, rates: from the management API" in told


@pytest.fixture
def no_statistics(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    """As `management_agent.disable_metrics_collector = true` in a broker's configuration."""
    setting = "rabbitmq_management_agent, disable_metrics_collector"
    evaluate(own_node, f"application:set_env({setting}, true)")
    with Bundle(own_node, vhost=vhost_of(request), folder=tmp_path) as bundle:
        yield bundle
    evaluate(own_node, f"application:set_env({setting}, false)")


def test_broker_that_keeps_no_statistics_is_not_at_rest(no_statistics: Bundle) -> None:
    """Its management API answers, with nothing that could be taken for 0."""
    no_statistics.enqueue("add", "1", "2")

    seen = look(no_statistics)

    row = seen["queues"]["proj.tasks"]
    assert [row[name] for name in COLUMNS] == ["proj.tasks", 1, None, 0, None, None, None, None]
    assert "statistics of the management API" in " ".join(seen["problems"])
