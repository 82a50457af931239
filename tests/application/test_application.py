"""The application as RabbitMQ sees it, and as a Python shell and a worker use it."""

import json
from collections.abc import Iterator

import pytest

from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

#: Enqueues a sum, and prints the message's id.
ADD = "import json; from proj.tasks import add; print(json.dumps(add.delay(2, 3).id))"


def test_rabbitmq_reports_the_queues_as_promised(bundle: Bundle) -> None:
    """The work queue and the dead-letter queue are durable quorum queues, as promised."""
    bundle.python(ADD)

    queues = {queue["name"]: queue for queue in bundle.of_vhost("queues")}

    assert set(queues) == {"proj.tasks", "proj.dead"}
    assert all(queue["type"] == "quorum" and queue["durable"] for queue in queues.values())
    assert queues["proj.tasks"]["arguments"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 5,
        "x-dead-letter-exchange": "proj.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    assert queues["proj.dead"]["arguments"] == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2**31 - 1,
    }


def test_rabbitmq_reports_the_exchanges_as_promised(bundle: Bundle) -> None:
    """They are durable, and bound to their queues."""
    bundle.python(ADD)

    exchanges = {exchange["name"]: exchange for exchange in bundle.of_vhost("exchanges")}
    for name, type_ in (("proj.direct", "direct"), ("proj", "topic"), ("proj.dead", "topic")):
        assert exchanges[name]["type"] == type_
        assert exchanges[name]["durable"]
    bindings = {
        (binding["source"], binding["destination"], binding["routing_key"])
        for binding in bundle.of_vhost("bindings")
        if binding["source"]
    }
    assert bindings == {
        ("proj.direct", "proj.tasks", "proj.tasks"),
        ("proj", "proj.tasks", "proj.tasks"),
        ("proj.dead", "proj.dead", "#"),
    }


def test_looking_at_dead_letters_never_loses_them(bundle: Bundle) -> None:
    """A dead letter that is read and given back, more often than any broker's own limit, stays."""
    bundle.python(ADD)
    for body in ("one", "two"):
        bundle.publish(body, exchange="proj.dead", routing_key="any")

    for _ in range(30):
        assert [message["payload"] for message in bundle.peek("proj.dead")] == ["one", "two"]


def test_message_in_the_queue_is_persistent_json(bundle: Bundle) -> None:
    """A message waits in the queue with delivery mode 2, its task's name and id in its headers, as JSON."""
    task_id = bundle.python(ADD)

    (message,) = bundle.peek("proj.tasks")

    assert message["properties"]["delivery_mode"] == 2
    assert message["properties"]["content_type"] == "application/json"
    assert message["properties"]["headers"]["id"] == task_id
    assert message["properties"]["headers"]["task"] == "proj.tasks.add"
    assert json.loads(message["payload"])[0] == [2, 3]
    # None: the limits are the worker's, not those of whoever published. The management API words it so.
    assert message["properties"]["headers"]["timelimit"] == ["undefined", "undefined"]


def test_task_says_how_long_its_messages_are_wanted(bundle: Bundle) -> None:
    """The `expires` of a task holds for each of its messages that has none of its own."""
    bundle.add_task("""
        @app.task(name="proj.tasks.news", expires=3600)
        def news() -> None: ...
    """)
    bundle.enqueue("task", "proj.tasks.news")
    bundle.enqueue("task", "proj.tasks.news", "--expires", "60")
    bundle.python("from proj.tasks import news; news.delay(); news.apply_async(expires=None); print(0)")

    messages = bundle.peek("proj.tasks")
    assert [message["properties"].get("expiration") for message in messages] == [
        "3600000",
        "60000",
        "3600000",
        None,
    ]


@pytest.mark.celery_docs("Next Steps: celery -A proj worker")
@pytest.mark.used_vhost
def test_two_plain_workers_of_one_machine_both_run(bundle: Bundle) -> None:
    """Two workers that were given no name do not take each other's."""
    first = bundle.worker(log="first.log", mingle=True).ready()
    second = bundle.worker(log="second.log", mingle=True).ready()

    def names() -> set[str]:
        # It waits a second for the answers.
        status = bundle.celery("status", "--json").stdout
        return {name.split("@")[0] for name in json.loads(status.splitlines()[0])} if status else set()

    expected = {f"celery-{worker.process.pid}" for worker in (first, second)}
    eventually("both answer", lambda: names() == expected)
    assert first.process.poll() is None
    assert second.process.poll() is None


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("shared")) as bundle:
        yield bundle


@pytest.fixture(scope="module")
def worker(shared: Bundle) -> Worker:
    """One worker for all that only has tasks executed."""
    return shared.worker("-n", "mine@here").ready()


def test_name_that_a_worker_was_given_is_kept(worker: Worker) -> None:
    """`-n` still decides the name."""
    assert worker.name == "mine@here"


@pytest.mark.usefixtures("worker")
def test_python_shell_gets_the_result(shared: Bundle) -> None:
    """`add.delay(2, 3).get()` gives 5."""
    assert shared.python("from proj.tasks import add; print(add.delay(2, 3).get(timeout=90))") == 5


def test_tasks_log_what_they_do(shared: Bundle, worker: Worker) -> None:
    """Each task logs what it received and how it ended."""
    done = shared.proj("enqueue", "add", "221", "345", "--wait")
    assert (done.returncode, done.stdout) == (0, "566\n")
    worker.says("Result of 221 + 345 is 566")

    done = shared.proj("enqueue", "sleep-dots", "A", "dot.", "--wait")
    assert (done.returncode, done.stdout) == (0, "1\n")
    worker.says("Received 'A dot.'")
    worker.says("Done after 1 s")


@pytest.mark.usefixtures("worker")
def test_worker_checks_the_arguments_itself(shared: Bundle) -> None:
    """A message that was published without our checks fails in the worker, and becomes a dead letter."""
    dead.publish_task(shared, "wrong", "2", 3)
    code = """
from proj import app
try:
    app.AsyncResult("wrong").get(timeout=90)
except Exception as error:
    import json; print(json.dumps([type(error).__name__, str(error)]))
"""
    assert shared.python(code) == [
        "BadArguments",
        "proj.tasks.add: argument x: expected a number, got '2'",
    ]
    # The failure is stored first.
    eventually("the message is in proj.dead", lambda: shared.depth("proj.dead") == 1)
    (letter,) = shared.peek("proj.dead")
    assert letter["properties"]["headers"]["task"] == "proj.tasks.add"


def test_publisher_survives_a_lost_connection(bundle: Bundle) -> None:
    """A producer whose connection was closed behind its back publishes on a new one, once."""
    code = """
from proj import app
from proj.tasks import add
add.delay(1, 1)
with app.pool.acquire() as connection:
    connection.connection.sock.shutdown(2)
print(repr(add.apply_async((2, 2), task_id="second").id).replace("'", '"'))
"""
    assert bundle.python(code) == "second"
    assert [m["properties"]["headers"]["id"] for m in bundle.peek("proj.tasks")].count("second") == 1
