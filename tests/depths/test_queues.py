"""`proj queues`: each number shown true by making it true, and what is not known shown as unknown."""

import json
import re
import socket

import pytest

from tests.lib.bundle import MANAGEMENT_OFF, Bundle
from tests.lib.proxy import Network, Proxy
from tests.lib.refusal import refuses
from tests.lib.snapshots import COLUMNS, look
from tests.lib.waiting import eventually


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


@pytest.mark.used_vhost
def test_ready_messages_are_counted_at_once(bundle: Bundle) -> None:
    """Right after a message is confirmed it is ready, and with no worker there is no consumer."""
    bundle.enqueue("add", "1", "2", "--count", "3")

    row = look(bundle)["queues"]["proj.tasks"]

    assert (row["ready"], row["consumers"]) == (3, 0)


@pytest.mark.used_vhost
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


@pytest.mark.used_vhost
def test_worker_that_does_not_answer_is_no_zero(bundle: Bundle) -> None:
    """One that is too busy to say what it holds makes the number unknown, although another one answers."""
    bundle.enqueue("sleep-dots", "600", "--id", "held")
    bundle.worker("-P", "solo").ready().started("held")
    bundle.worker(log="other.log").ready()

    def one_answers() -> bool:
        seen = look(bundle, env=MANAGEMENT_OFF)
        assert seen["queues"]["proj.tasks"]["consumers"] == 2
        assert seen["queues"]["proj.tasks"]["unacknowledged"] is None
        return "1 of 2 workers answer" in " ".join(seen["problems"])

    eventually("the other one answers", one_answers)


@pytest.mark.used_vhost
def test_delayed_messages_are_counted_in_one_row(bundle: Bundle) -> None:
    """All levels of delay together, and it is said whose they are."""
    for delay in ("60", "3600", "100000"):
        bundle.enqueue("add", "1", "2", "--countdown", delay)

    done = bundle.proj("queues", env=MANAGEMENT_OFF)

    assert re.search(r"^delayed +3 ", done.stdout, re.MULTILINE)
    assert re.search(r"^proj\.tasks +0 ", done.stdout, re.MULTILINE)
    assert "delayed: messages of all Celery applications" in done.stderr


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
        assert proxy.happened[Network.SLOW]


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
