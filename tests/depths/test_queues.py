"""`proj queues`: each number shown true by making it true, and what is not known shown as unknown."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import pytest

from proj.depths import statistics
from proj.private_node.node import BrokerNode
from proj.rabbitmq import topology
from proj.rabbitmq.management import Management
from tests.lib import dead
from tests.lib.alarm import alarm
from tests.lib.bundle import MANAGEMENT_OFF, Bundle
from tests.lib.erlang import count_often, evaluate
from tests.lib.proxy import Network, Proxy
from tests.lib.refusal import refuses
from tests.lib.waiting import PATIENCE, eventually

#: Seconds between two messages of a steady work.
_PAUSE = 0.05

COLUMNS = ["queue", "ready", "unacknowledged", "consumers", "oldest", "in", "delivered", "acknowledged"]


def look(bundle: Bundle, *names: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What `proj queues --json` prints, its rows by their queues."""
    done = bundle.proj("queues", "--json", *names, env=env)
    assert done.returncode == 0, done.stderr
    snapshot: dict[str, Any] = json.loads(done.stdout)
    return snapshot | {"queues": {row["queue"]: row for row in snapshot["queues"]}}


def number(bundle: Bundle, queue: str, what: str, env: dict[str, str] | None = None) -> Any:
    return look(bundle, env=env)["queues"][queue][what]


@pytest.fixture
def counted(bundle: Bundle) -> Bundle:
    """A bundle whose work queue tells the management API its numbers several times a second."""
    count_often(bundle)
    return bundle


def management(bundle: Bundle) -> Management:
    """What `proj queues` asks, without a process for each look."""
    return Management(bundle.node.management_url, "guest", "guest", bundle.vhost)


def counts_are(bundle: Bundle, counts: tuple[int, int, int], source: str, env: dict[str, str]) -> bool:
    """Whether so many are ready, unacknowledged, and consumers, and the second is told by that source."""
    seen = look(bundle, env=env)
    row = seen["queues"]["proj.tasks"]
    told = row["ready"], row["unacknowledged"], row["consumers"]
    return bool(told == counts and seen["unacknowledged_from"] == source)


def in_alarm(bundle: Bundle, flag: str) -> bool:
    return bool(bundle.management("GET", "nodes")[0].get(flag))


def hold_one(bundle: Bundle, *worker: str) -> None:
    """Start a worker that holds one message of some, for longer than the test takes."""
    bundle.enqueue("sleep-dots", "600", "--id", "held")
    bundle.worker(*worker).ready().started("held")


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


# --- Numbers


def test_nothing_is_made_by_looking(bundle: Bundle) -> None:
    """On a new virtual host our queues are missing, which is no error, and stay so; nothing is delayed."""
    exchanges = bundle.of_vhost("exchanges")

    done = bundle.proj("queues")
    seen = look(bundle, env=MANAGEMENT_OFF)["queues"]

    assert done.returncode == 0
    assert re.search(r"^proj\.tasks missing +- ", done.stdout, re.MULTILINE)
    assert re.search(r"^proj\.dead +missing +- ", done.stdout, re.MULTILINE)
    assert re.search(r"^delayed +0 ", done.stdout, re.MULTILINE)
    assert "the first worker or message" in done.stderr
    assert [seen[name]["ready"] for name in ("proj.tasks", "delayed", "proj.dead")] == [None, 0, None]
    assert bundle.of_vhost("queues") == []
    assert bundle.of_vhost("exchanges") == exchanges


def test_ready_messages_are_counted_at_once(bundle: Bundle) -> None:
    """Right after a message is confirmed it is ready, and with no worker there is no consumer."""
    bundle.enqueue("add", "1", "2", "--count", "3")

    row = look(bundle)["queues"]["proj.tasks"]

    assert (row["ready"], row["consumers"]) == (3, 0)


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
        assert words in bundle.proj("queues", env=env).stderr
    assert number(bundle, "proj.dead", "unacknowledged", env=MANAGEMENT_OFF) is None


def test_nobody_to_ask_is_unknown(bundle: Bundle) -> None:
    """Without the management API and workers, what is not known is no 0, and one line says what to do."""
    bundle.enqueue("add", "1", "2")

    done = bundle.proj("queues", env=MANAGEMENT_OFF)
    seen = look(bundle, env=MANAGEMENT_OFF)

    assert done.returncode == 0
    assert re.search(r"^proj\.tasks +1 +- +0 +- +- +- +-$", done.stdout, re.MULTILINE), done.stdout
    warnings = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 1
    assert "rabbitmq-plugins enable rabbitmq_management" in warnings[0]
    assert seen["unacknowledged_from"] is None
    row = seen["queues"]["proj.tasks"]
    assert [row[name] for name in COLUMNS] == ["proj.tasks", 1, None, 0, None, None, None, None]
    assert [f"Warning: {problem}" for problem in seen["problems"]] == warnings


def test_worker_that_does_not_answer_is_no_zero(bundle: Bundle) -> None:
    """One that is too busy to say what it holds makes the number unknown, although another one answers."""
    hold_one(bundle, "-P", "solo")
    bundle.worker(log="other.log").ready()

    def one_answers() -> bool:
        seen = look(bundle, env=MANAGEMENT_OFF)
        assert seen["queues"]["proj.tasks"]["consumers"] == 2
        assert seen["queues"]["proj.tasks"]["unacknowledged"] is None
        return "1 of 2 workers answer" in " ".join(seen["problems"])

    eventually("the other one answers", one_answers)


def test_delayed_messages_are_counted_in_one_row(bundle: Bundle) -> None:
    """All levels of delay together, and it is said whose they are."""
    for delay in ("60", "3600", "100000"):
        bundle.enqueue("add", "1", "2", "--countdown", delay)

    done = bundle.proj("queues", env=MANAGEMENT_OFF)

    assert re.search(r"^delayed +3 ", done.stdout, re.MULTILINE)
    assert re.search(r"^proj\.tasks +0 ", done.stdout, re.MULTILINE)
    assert "delayed: messages of all Celery applications" in done.stderr


def test_dead_letters_say_how_long_the_oldest_lies(bundle: Bundle) -> None:
    """To the second, since a dead letter knows when it died; also without the management API."""
    bundle.enqueue("add", "1", "2", "--expires", "0.1")
    eventually("it is a dead letter", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))
    died = bundle.peek("proj.dead")[0]["properties"]["headers"]["x-death"][0]["time"]
    bundle.enqueue("add", "1", "2", "--expires", "2")
    eventually("there is another one", lambda: bundle.depth("proj.dead") == 2)

    before = time.time()
    row = look(bundle, env=MANAGEMENT_OFF)["queues"]["proj.dead"]

    assert row["ready"] == 2
    assert before - died - 1 <= row["oldest"] <= time.time() - died + 1


def test_dead_letters_that_another_program_reads_have_no_age(bundle: Bundle) -> None:
    """Only one may look at a time; the counts come all the same."""
    bundle.enqueue("add", "1", "2", "--expires", "0.1")
    eventually("it is a dead letter", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))

    with bundle.channel() as channel:
        channel.queue_declare("proj.dead.reader", exclusive=True, durable=False, auto_delete=True)
        seen = look(bundle)

    assert (seen["queues"]["proj.dead"]["ready"], seen["queues"]["proj.dead"]["oldest"]) == (1, None)
    assert "another program is reading the dead letters" in " ".join(seen["problems"])


def test_dead_letters_are_looked_at_anew_when_some_have_left(bundle: Bundle) -> None:
    """A watch holds up `proj dead` no more often than it must, and not at all when there are many."""
    bundle.env |= MANAGEMENT_OFF
    for task_id in ("first", "second"):
        bundle.enqueue("add", "1", "2", "--expires", "0.1", "--id", task_id)
    eventually("both are dead letters", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead") == 2)

    looks, ages, many, problems = bundle.python("""
import json
from proj import app, dead_letters, depths
from proj.dead_letters.letter import Wanted
looks, listing = [], dead_letters.listing
def counted(*args, **options):
    looks.append(1)
    return listing(*args, **options)
dead_letters.listing = counted
seen = []
def look(reader):
    snapshot = reader.snapshot()
    seen.append(len(looks))
    return snapshot.depths[0].oldest, snapshot.problems
with depths.Reader(app, ["proj.dead"]) as reader:
    ages = [look(reader)[0], look(reader)[0]]
    dead_letters.drop(app, Wanted(ids={"first"}))
    ages.append(look(reader)[0])
depths.reader._MAX_DEAD = 0
with depths.Reader(app, ["proj.dead"]) as reader:
    many, problems = look(reader)
print(json.dumps([seen, ages, many, problems]))
""")

    assert looks == [1, 1, 2, 2]
    assert None not in ages
    assert many is None
    assert "there are more than 0 messages (see: proj dead list --limit 1)" in " ".join(problems)


def test_dead_letters_are_not_looked_at_when_that_would_declare(bundle: Bundle) -> None:
    """A queue of ours that was deleted stays so."""
    bundle.enqueue("add", "1", "2", "--expires", "0.1")
    eventually("it is a dead letter", lambda: bundle.has("proj.dead") and bundle.depth("proj.dead"))
    with bundle.channel() as channel:
        channel.queue_delete("proj.tasks")

    seen = look(bundle)

    assert seen["queues"]["proj.tasks"]["ready"] is None
    assert seen["queues"]["proj.dead"]["oldest"] is None
    assert "part of the topology is missing" in " ".join(seen["problems"])
    assert not bundle.has("proj.tasks")


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


def test_rates_are_those_of_the_work(counted: Bundle) -> None:
    """Messages come in, are delivered and acknowledged; what stands still has a rate of 0.

    A worker that holds nothing says so: its 0 is no unknown.
    """
    bundle = counted
    bundle.worker().ready()
    eventually(
        "it holds none", lambda: number(bundle, "proj.tasks", "unacknowledged", env=MANAGEMENT_OFF) == 0
    )
    eventually("it is at rest", lambda: number(bundle, "proj.tasks", "in") == 0)

    def moving() -> bool:
        of = statistics.of_queues(management(bundle))["proj.tasks"]
        return bool(of.published and of.delivered and of.acknowledged)

    def told() -> bool:
        row = moving() and look(bundle)["queues"]["proj.tasks"]
        return bool(row and row["in"] and row["delivered"] and row["acknowledged"])

    with steady_work(bundle):
        eventually("all move", told, seen=lambda: str(statistics.of_queues(management(bundle))))
    assert number(bundle, "proj.dead", "in") is None


# --- What is printed


def test_json_has_the_keys_of_the_table(bundle: Bundle) -> None:
    """And the rows of the table are in the same order."""
    done = bundle.proj("queues", "--json")
    table = bundle.proj("queues").stdout.splitlines()

    assert done.stdout.count("\n") == 1
    rows = json.loads(done.stdout)["queues"]
    assert table[0].split() == list(rows[0]) == COLUMNS
    assert [line.split()[0] for line in table[1:]] == [row["queue"] for row in rows]
    assert max(map(len, table)) <= 80


def test_any_queue_can_be_named(bundle: Bundle) -> None:
    """Those of other programs too, each once."""
    with bundle.channel() as channel:
        channel.queue_declare("a queue", durable=True, auto_delete=False)

    rows = json.loads(bundle.proj("queues", "a queue", "delayed", "a queue", "--json").stdout)["queues"]

    assert [(row["queue"], row["ready"]) for row in rows] == [("a queue", 0), ("delayed", 0)]


def test_name_of_a_queue_steers_no_terminal(bundle: Bundle) -> None:
    """Whoever may declare may call a queue anything; it stays one line of the table."""
    name = "red\x1b[31m\nqueue"
    with bundle.channel() as channel:
        channel.queue_declare(name, durable=True, auto_delete=False)

    table = bundle.proj("queues", name).stdout.splitlines()

    assert [line.split()[0] for line in table] == ["queue", "red\\x1b[31m\\nqueue"]


# --- What goes wrong


def test_no_broker_is_69(bundle: Bundle) -> None:
    """Nothing is known then; a watch that begins so ends as well."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for options in ((), ("--watch",), ("--json",)):
        url = f"amqp://127.0.0.1:{port}"
        refuses(bundle, 69, "no broker answers", command=("queues", *options), CELERY_BROKER_URL=url)


def test_broker_that_stops_answering_is_given_up(bundle: Bundle) -> None:
    """One that takes the connection and then falls silent, in bounded time."""
    bundle.switch_off("depths/reader.py", "TIMEOUT: Final = 10.0", "TIMEOUT: Final = 2.0")
    with Proxy(bundle.node.info.port) as proxy:
        url = bundle.url_at(proxy.port)
        proxy.network = Network.SLOW
        proxy.delay = 0.4
        refuses(bundle, 69, "does not answer in time", command=("queues",), CELERY_BROKER_URL=url)
        assert proxy.happened[Network.SLOW] > 3


@pytest.mark.parametrize("name", ["nope", "", "n" * 300, "proj.task"])
def test_queue_that_does_not_exist_is_65(bundle: Bundle, name: str) -> None:
    """The names that there always are, are said."""
    shown = "proj.tasks, delayed, proj.dead"
    refuses(bundle, 65, f"there is no queue {name!r}", shown, command=("queues", name))


def test_queue_of_one_connection_alone_is_69(bundle: Bundle) -> None:
    """RabbitMQ tells nobody else about it."""
    with bundle.channel() as channel:
        channel.queue_declare("mine", exclusive=True, durable=False, auto_delete=True)
        refuses(bundle, 69, "queue 'mine' is exclusive", command=("queues", "mine"))


@pytest.mark.parametrize(
    "options", [("--interval", "2"), ("--watch", "--interval", "0"), ("--watch", "--interval", "nan")]
)
def test_interval_that_makes_no_sense_is_2(bundle: Bundle, options: tuple[str, ...]) -> None:
    """It is a number of seconds, of a watch."""
    refuses(bundle, 2, "--interval", command=("queues", *options))


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
            told = own.proj("queues", "proj.tasks")
            done = own.proj("queues", env=MANAGEMENT_OFF)

        assert f"has a {kind} alarm" in told.stderr
        assert done.returncode == 0
        assert re.search(r"^proj\.tasks +0 +- +1 ", done.stdout, re.MULTILINE)
        assert "the broker's memory or disk alarm is on" in done.stderr


@pytest.fixture
def no_statistics(own_node: BrokerNode) -> Iterator[None]:
    """As `management_agent.disable_metrics_collector = true` in a broker's configuration."""
    setting = "rabbitmq_management_agent, disable_metrics_collector"
    evaluate(own_node, f"application:set_env({setting}, true)")
    yield
    evaluate(own_node, f"application:set_env({setting}, false)")


def test_broker_that_keeps_no_statistics_is_not_at_rest(no_statistics: None, own: Bundle) -> None:
    """Its management API answers, with nothing that could be taken for 0."""
    own.enqueue("add", "1", "2")

    seen = look(own)

    row = seen["queues"]["proj.tasks"]
    assert [row[name] for name in COLUMNS] == ["proj.tasks", 1, None, 0, None, None, None, None]
    assert "statistics of the management API" in " ".join(seen["problems"])


def test_busy_queue_is_not_taken_for_an_empty_one(bundle: Bundle) -> None:
    """RabbitMQ says 0 for a queue that has no time to answer; it is asked again, until it has."""
    bundle.enqueue("add", "1", "2", "--count", "3")
    process = f"whereis('{bundle.vhost}_proj.tasks')"  # Erlang's, of the queue

    with bundle.channel() as channel, ThreadPoolExecutor(1) as background:
        evaluate(bundle.node, f"sys:suspend({process})")
        try:
            assert channel.queue_declare("proj.tasks", passive=True).message_count == 0
            found = background.submit(topology.look, channel, "proj.tasks", PATIENCE)
        finally:
            evaluate(bundle.node, f"sys:resume({process})")
        assert found.result().message_count == 3


def test_queue_that_stays_busy_is_no_empty_one(bundle: Bundle) -> None:
    """When it does not answer in time, its number is not known."""
    bundle.enqueue("add", "1", "2")
    process = f"whereis('{bundle.vhost}_proj.tasks')"

    with bundle.channel() as channel:
        evaluate(bundle.node, f"sys:suspend({process})")
        try:
            with pytest.raises(TimeoutError, match=r"proj\.tasks is too busy"):
                topology.look(channel, "proj.tasks", patience=0)
        finally:
            evaluate(bundle.node, f"sys:resume({process})")
