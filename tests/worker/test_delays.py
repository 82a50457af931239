"""A delayed message is held by the broker: not too short, through a crash, and at no worker's expense."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import amqp
import pytest
from kombu.transport.native_delayed_delivery import calculate_routing_key

from proj import queues
from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle, shared_vhost, vhost_of
from tests.lib.erlang import evaluate
from tests.lib.one_node import start
from tests.lib.publisher import Publisher, limit
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.worker import Worker


@pytest.fixture
def retrying(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    """A new bundle, in which the broker tries soon again what no queue took at the end of a delay."""
    setting = "rabbit, dead_letter_worker_publisher_confirm_timeout"
    usual = evaluate(own_node, f"application:get_env({setting}, none)")
    # Milliseconds, for queues that are declared from now on.
    evaluate(own_node, f"application:set_env({setting}, 1000)")
    with Bundle(own_node, vhost=vhost_of(request), folder=tmp_path) as bundle:
        bundle.declare()
        yield bundle
    evaluate(own_node, f"application:set_env({setting}, {usual})")


def enqueue(bundle: Bundle, task_id: str, *options: str) -> float:
    """Enqueue a sum, and return when that began: what the shortest delay counts from."""
    began = time.time()
    bundle.enqueue("add", "1", "2", "--id", task_id, *options)
    return began


def executed(worker: Worker, task_id: str) -> float:
    """When the worker said the task's result; its clock is this one, in milliseconds."""
    worker.says(f"[{task_id}]: Result of 1 + 2 is 3")
    (line,) = [line for line in worker.lines("Result of") if line.id == task_id]
    return line.at


@dataclass(frozen=True)
class Crash:
    """A crash of the broker that is over."""

    #: Where the message waits that was published last, and when it may be executed.
    later: Bundle
    due: float
    #: Where a message was in each delay queue, and all delays ended meanwhile.
    ended: Bundle


@pytest.fixture(scope="module")
def crash(own_node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crash]:
    """One for both: to start a node again costs seconds."""
    with (
        Bundle(own_node, vhost=shared_vhost("later"), folder=tmp_path_factory.mktemp("later")) as later,
        Bundle(own_node, vhost=shared_vhost("ended"), folder=tmp_path_factory.mktemp("ended")) as ended,
        Publisher(later) as publisher,
    ):
        # A queue that was declared in the very second of the crash may come back without a leader (3.10).
        assert publisher.publish(task_id="first", countdown=1).kind == "confirmed"
        eventually("the delay queues work", lambda: later.depth("proj.tasks") == 1)

        ended.declare()
        seconds = 15
        with ended.channel() as channel:
            for level, exchange in enumerate(queues.DELAY_QUEUES):
                # The queues' own delays are up to four years; the message of the first is over after one.
                message = amqp.Message(str(level), delivery_mode=2, expiration=f"{seconds}000")
                key = calculate_routing_key(2**level, queues.DEFAULT_QUEUE)
                channel.basic_publish_confirm(message, exchange, key, timeout=PATIENCE)
        published = time.time()
        eventually("a delay is over", lambda: ended.depth("proj.tasks"))
        # The broker takes about as long to come back, so the room for a busy machine costs nothing.
        began, delay = time.time(), 15
        one = publisher.publish(1, 2, task="proj.tasks.add", task_id="later", countdown=delay)
        assert one.kind == "confirmed"

        own_node.kill()
        assert time.time() < published + seconds
        eventually("all delays are over", lambda: time.time() > published + seconds)
        start(own_node)
        yield Crash(later, began + delay, ended)


def test_delayed_message_survives_a_crash_of_the_broker(crash: Crash) -> None:
    """The broker is killed while it holds the message: it is executed all the same, and not too early."""
    assert executed(crash.later.worker(), "later") >= crash.due


def test_delays_that_end_while_the_broker_is_down(crash: Crash) -> None:
    """One in each delay queue: all go on soon after its start, also what it met before its exchanges."""
    ended = crash.ended
    levels = {str(level) for level, _ in enumerate(queues.DELAY_QUEUES)}
    # One may come twice, whose arrival was not on the disk yet.
    eventually("all have gone on", lambda: ended.depth("proj.tasks") >= len(levels), 2 * PATIENCE)
    eventually("each of them", lambda: {message["payload"] for message in ended.peek("proj.tasks")} == levels)


def test_delayed_message_waits_for_a_queue_that_is_gone(retrying: Bundle) -> None:
    """When the work queue is missing as the delay ends, the message is kept until there is one again."""
    own = retrying
    own.management("DELETE", f"queues/{quote(own.vhost)}/proj.tasks")
    key = calculate_routing_key(2, queues.DEFAULT_QUEUE)
    own.publish({}, exchange="celery_delayed_27", routing_key=key, headers={"id": "early"})
    confirmed = time.time()
    eventually("its delay is over", lambda: time.time() > confirmed + 3)
    assert not own.has("proj.tasks")

    # Declares the queue, and binds it to the end of all delays.
    enqueue(own, "next", "--countdown", "1")

    # One may come twice, whose arrival was not told in that second.
    eventually("both arrive", lambda: own.depth("proj.tasks") >= 2)
    found = {message["properties"]["headers"]["id"] for message in own.peek("proj.tasks")}
    assert found == {"early", "next"}


@pytest.mark.parametrize("cleared", [False, True], ids=["raised", "cleared and set again"])
def test_delayed_message_for_a_queue_that_was_full(retrying: Bundle, cleared: bool) -> None:
    """It comes when there is room, if there is a limit: RabbitMQ 3.10 holds it when that was cleared."""
    own = retrying

    def delayed(task_id: str) -> str:
        return publisher.publish(task_id=task_id, countdown=1).kind

    with Publisher(own) as publisher:
        # What forwards delayed messages is told from then on that the queue is full.
        assert delayed("before") == "confirmed"
        eventually("the first arrives", lambda: own.depth("proj.tasks") == 1)
        path = limit(own)
        eventually("it is full", lambda: publisher.publish().kind == "BrokerRefused")
        before = own.depth("proj.tasks")
        if cleared:
            own.management("DELETE", path)
            assert delayed("held") == "confirmed"
        limit(own, 10**6)
        assert delayed("after") == "confirmed"
    eventually("all arrive", lambda: own.depth("proj.tasks") == before + 1 + cleared)


@pytest.mark.long
@pytest.mark.used_vhost
def test_delayed_messages_hold_no_slot(bundle: Bundle) -> None:
    """A worker of one slot works on while three messages wait, of which it does not even know."""
    worker = bundle.worker().ready()
    # All by one program: what a command takes to start must not be longer than the delay.
    began = time.time()
    bundle.python(
        "from proj.tasks import add\n"
        "for number in range(3): add.apply_async((1, 2), task_id=f'late-{number}', countdown=10)\n"
        "add.apply_async((1, 2), task_id='now')\n"
        "print(0)"
    )
    due = {f"late-{number}": began + 10 for number in range(3)}

    done_now = executed(worker, "now")

    for task_id, moment in due.items():
        assert executed(worker, task_id) > done_now
        (received,) = [line for line in worker.lines("received") if line.id == task_id]
        assert received.at >= moment


@pytest.mark.long
@pytest.mark.celery_docs("Calling: countdown, eta")
def test_no_delay_is_too_short(bundle: Bundle) -> None:
    """A countdown, a fraction of a second rounded up; and a moment in its zone, or in UTC without one."""
    # On a broker that no worker has touched.
    due = {"first": enqueue(bundle, "first", "--countdown", "3") + 3}
    worker = bundle.worker().ready()
    for countdown in (0.2, 1, 1.5):
        task_id = f"after-{countdown}"
        due[task_id] = enqueue(bundle, task_id, "--countdown", str(countdown)) + countdown
    moments = {}
    for task_id, zone, hours in (("no-zone", "", 0.0), ("utc", "+00:00", 0.0), ("india", "+05:30", 5.5)):
        moment = datetime.now(UTC) + timedelta(seconds=15.25)
        there = (moment + timedelta(hours=hours)).replace(tzinfo=None).isoformat()
        enqueue(bundle, task_id, "--eta", f"{there}{zone}")
        moments[task_id] = moment.timestamp()

    for task_id, at in due.items():
        assert executed(worker, task_id) >= at, task_id
    for task_id, at in moments.items():
        # Rounding to whole milliseconds is the log's.
        assert executed(worker, task_id) >= at - 0.001, task_id


@pytest.mark.long
@pytest.mark.used_vhost
def test_delays_end_in_their_order(bundle: Bundle) -> None:
    """What was published last and waits least is executed first: accurate to the second."""
    with Publisher(bundle) as publisher:
        # The first one declares the delay queues, which takes a second or two.
        for countdown in (60, 16, 11, 6, 1):
            assert publisher.publish(task_id=f"after-{countdown}", countdown=countdown).kind == "confirmed"
    worker = bundle.worker()
    worker.says("after-16]: Done")
    assert [line.id for line in worker.lines("Done after")] == ["after-1", "after-6", "after-11", "after-16"]
    assert [line.id for line in worker.lines("received")][-1] == "after-16"


@pytest.mark.used_vhost
def test_long_delay_is_in_the_queue_of_its_highest_bit(bundle: Bundle) -> None:
    """An hour is 2^11 seconds and some: the broker's queue of that level has the message, durably."""
    enqueue(bundle, "later", "--countdown", "3600")

    (message,) = bundle.peek("celery_delayed_11")

    assert message["properties"]["headers"]["id"] == "later"
    assert message["properties"]["delivery_mode"] == 2
    assert bundle.depth("proj.tasks") == 0


@pytest.mark.used_vhost
def test_many_delayed_messages_over_one_connection(bundle: Bundle) -> None:
    """What a delayed publish declares leaves no channel open: RabbitMQ has room for 2047 a connection."""
    with Publisher(bundle) as publisher:
        for _ in range(20):
            assert publisher.publish(countdown=3600).kind == "confirmed"
        # It tells a moment later of those that are closed, too.
        eventually("one is open", lambda: len(bundle.of_vhost("vhosts", "/channels")) == 1)
