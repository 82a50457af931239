"""The users of `deploy/rabbitmq`: each can do its work, and is refused what is not its work."""

import pickle
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import kombu
import pytest
from amqp.exceptions import AccessRefused

from proj import queues
from proj.config import Settings
from proj.errors import ManagementUnavailable
from proj.private_node.node import BrokerNode
from proj.rabbitmq.management import Management
from tests.lib.bundle import BIN, Bundle, shared_vhost
from tests.lib.users import PASSWORD, Users
from tests.lib.waiting import eventually

WORK, DEAD = queues.DEFAULT_QUEUE, queues.dead_queue.name

#: A delay queue in the middle, and the exchange that delayed messages are published to.
DELAY_QUEUE, DELAY_ENTRY = "celery_delayed_5", "celery_delayed_27"


@pytest.fixture
def users(bundle: Bundle) -> Users:
    return Users(bundle).give_passwords()


def test_a_user_without_a_password_cannot_log_in(bundle: Bundle) -> None:
    """As the file has them, with an empty password or any other, until one is set."""
    users = Users(bundle)
    for password in ("", "guest"):
        done = bundle.proj(
            "enqueue", "add", "1", "2", env={"CELERY_BROKER_URL": users.url("proj-producer", password)}
        )
        assert (done.returncode, done.stdout) == (69, "")
        assert "refused user 'proj-producer-" in done.stderr

    users.give_passwords()
    assert bundle.proj("enqueue", "add", "1", "2", env=users.env("proj-producer")).returncode == 0


def test_producer_and_worker_can_do_their_work(bundle: Bundle, users: Users) -> None:
    """Now, later, tried again, and failed for good; the worker has nothing to complain of."""
    bundle.add_task(
        """
        @app.task(name="proj.tasks.fail", bind=True)
        def fail(self, twice: bool) -> int:
            if twice:
                raise ValueError("for good")
            if not self.request.retries:
                raise ConnectionError("for a moment")
            return self.request.retries
        """
    )
    worker = bundle.worker(env=users.env("proj-worker"), mingle=True).ready()
    producer = users.env("proj-producer")

    def enqueue(*args: str) -> tuple[int, str]:
        done = bundle.proj("enqueue", *args, "--wait", env=producer)
        return done.returncode, done.stdout.strip()

    assert enqueue("add", "2", "3") == (0, "5")
    assert enqueue("add", "2", "3", "--countdown", "1") == (0, "5")
    assert enqueue("task", "proj.tasks.fail", "false") == (0, "1")
    assert not re.search(" (WARNING|ERROR|CRITICAL)/", worker.text()), worker.text()
    assert enqueue("task", "proj.tasks.fail", "true")[0] == 1
    assert eventually("it is a dead letter", lambda: bundle.depth(DEAD)) == 1


def test_an_operator_redrives_dead_letters(bundle: Bundle, users: Users) -> None:
    """Lists, shows and redrives with no right to the work queue but to send to it."""
    bundle.publish(
        [[1, 2], {}, {}],
        exchange=queues.dead_exchange.name,
        headers={"id": "order-1", "task": "proj.tasks.add"},
    )

    for command in ("dead show order-1", "dead redrive order-1"):
        done = bundle.proj(*command.split(), env=users.env("proj-operator"))
        assert done.returncode == 0, done.stderr
    assert (bundle.depth(DEAD), bundle.depth(WORK)) == (0, 1)


def test_the_monitor_sees_the_broker_and_the_workers(bundle: Bundle, users: Users) -> None:
    """The management API as Flower and `proj` read it, workers that answer, and their events."""
    bundle.worker(env=users.env("proj-worker"), mingle=True).ready()
    management = Management.from_settings(
        Settings(celery_broker_url=users.url("proj-monitor"), proj_management_url=bundle.node.management_url)
    )

    def told(ask: Callable[[], Any]) -> Any:
        with suppress(ManagementUnavailable):  # one that stalls does not answer in time
            return ask()

    assert eventually("it answers", lambda: told(lambda: management.get("overview")))["rabbitmq_version"]
    assert eventually("it answers", lambda: told(lambda: management.get("nodes")))
    assert eventually("it answers", lambda: told(lambda: management.of_vhost("queues", DEAD)))["name"] == DEAD

    def answer() -> str:
        return bundle.run(
            BIN / "celery", "-A", "proj", "inspect", "ping", env=users.env("proj-monitor")
        ).stdout

    eventually("a worker answers", lambda: "pong" in answer())

    bundle.env |= users.env("proj-monitor")
    code = """
        import json
        from proj import app
        seen = []
        with app.connection_for_read() as broker:
            def on_event(event):
                seen.append(event["type"])
                receiver.should_stop = True
            receiver = app.events.Receiver(broker, handlers={"*": on_event})
            receiver.capture(limit=None, timeout=90, wakeup=True)
        print(json.dumps(seen))
    """
    assert "worker-heartbeat" in bundle.python(dedent(code))


def test_the_others_see_nothing_of_the_management_api(bundle: Bundle, users: Users) -> None:
    """Only the monitor has the tag for it."""
    for user in ("proj-worker", "proj-producer", "proj-operator"):
        management = Management.from_settings(
            Settings(celery_broker_url=users.url(user), proj_management_url=bundle.node.management_url)
        )
        with pytest.raises(ManagementUnavailable, match="lacks the tag 'monitoring'"):
            management.get("overview")


# upstream: celery#3025; remove when Celery unpickles no stored result that is not JSON
def test_what_is_stored_as_a_result_is_never_executed(bundle: Bundle) -> None:
    """Celery unpickles a result that is not JSON: who writes to the store could run code in each reader."""
    bundle.python("from proj import app; app.backend.store_result('x', 5, 'SUCCESS'); print(1)")
    harm = bundle.folder / "harm"

    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (harm,)

    with closing(sqlite3.connect(bundle.folder / "state/results.sqlite3", isolation_level=None)) as store:
        store.execute("UPDATE celery_taskmeta SET result = ?", (pickle.dumps(Harm()),))

    done = bundle.proj("result", "x")
    assert (done.returncode, done.stderr.count("\n")) == (69, 1), done
    assert not harm.exists()

    bundle.switch_off("results/database.py", "def _decode_stored_result", "def _not_used")
    bundle.proj("result", "x")
    assert harm.exists()


def get(queue: str) -> Callable[[Any], Any]:
    return lambda channel: channel.basic_get(queue)


def consume(queue: str) -> Callable[[Any], Any]:
    return lambda channel: channel.basic_consume(queue, callback=lambda message: None)


def purge(queue: str) -> Callable[[Any], Any]:
    return lambda channel: channel.queue_purge(queue)


def publish(exchange: str) -> Callable[[Any], Any]:
    # Not confirmed: the broker may answer later, and the next question waits for that.
    return lambda channel: (
        kombu.Producer(channel).publish("{}", exchange=exchange, routing_key=WORK),
        channel.basic_qos(0, 1, False),
    )


def declare(queue: kombu.Queue) -> Callable[[Any], Any]:
    return lambda channel: queue.queue_declare(channel=channel)


def lead(channel: Any) -> None:
    channel.queue_declare(queues.BEAT_LEADER, exclusive=True, durable=False, auto_delete=False)


def bind(queue: kombu.Queue, exchange: str) -> Callable[[Any], Any]:
    return lambda channel: channel.queue_bind(queue.name, exchange, "#")


def delete_queue(queue: str) -> Callable[[Any], Any]:
    return lambda channel: channel.queue_delete(queue)


def delete_exchange(exchange: str) -> Callable[[Any], Any]:
    return lambda channel: channel.exchange_delete(exchange)


#: Operations, and who may do each. An administrator may do all of them, in this order.
OPERATIONS: Final[dict[str, tuple[set[str], Callable[[Any], Any]]]] = {
    "take messages from the work queue": ({"worker"}, get(WORK)),
    "consume the work queue": ({"worker"}, consume(WORK)),
    "empty the work queue": ({"worker"}, purge(WORK)),
    "take dead letters": ({"worker", "operator"}, get(DEAD)),
    "empty the dead letters": ({"worker", "operator"}, purge(DEAD)),
    "empty a delay queue": (set(), purge(DELAY_QUEUE)),
    "enqueue": ({"producer", "worker", "ingest", "beat"}, publish(queues.direct_exchange.name)),
    "enqueue for later": ({"producer", "worker", "beat"}, publish(DELAY_ENTRY)),
    "imitate a delayed message": (set(), publish(queues.task_exchange.name)),
    "send past the exchange": ({"operator", "worker"}, publish("")),
    "forge a dead letter": ({"ingest"}, publish(queues.dead_exchange.name)),
    "control workers": ({"worker", "monitor"}, publish("celery.pidbox")),
    "forge an event": ({"worker", "monitor"}, publish("celeryev")),
    "declare": (set(), declare(queues.work_queue(queues.DEFAULT_QUEUE))),
    "lead the beats": ({"beat"}, lead),
    "divert messages": (set(), bind(queues.dead_queue, queues.direct_exchange.name)),
    "divert delayed messages": (set(), bind(queues.dead_queue, queues.task_exchange.name)),
    "delete the work queue": (set(), delete_queue(WORK)),
    "delete the dead letters": (set(), delete_queue(DEAD)),
    "delete a delay queue": (set(), delete_queue(DELAY_QUEUE)),
    "delete the exchange": (set(), delete_exchange(queues.direct_exchange.name)),
    "delete the exchange of delayed messages": (set(), delete_exchange(queues.task_exchange.name)),
}


def may_do(url: str) -> set[str]:
    """The operations that the broker does not refuse with 403."""
    done = set()
    for what, (_, operation) in OPERATIONS.items():
        with kombu.Connection(url) as broker, suppress(AccessRefused):
            operation(broker.channel())
            done.add(what)
    return done


def test_what_is_not_their_work_is_refused(bundle: Bundle, users: Users) -> None:
    """By the broker, with 403; what they may do, and an administrator, who may do all, are the control."""
    with bundle.channel() as channel:  # what a worker would have declared
        channel.exchange_declare("celery.pidbox", "fanout", durable=False, auto_delete=False)
        channel.exchange_declare("celeryev", "topic", durable=True, auto_delete=False)
    for user in ("producer", "worker", "ingest", "beat", "operator", "monitor"):
        assert may_do(users.url(f"proj-{user}")) == {
            what for what, (who, _) in OPERATIONS.items() if user in who
        }

    assert may_do(bundle.url) == set(OPERATIONS)


@pytest.fixture(scope="module")
def refusing(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bundle, Users]]:
    """One virtual host for what is refused, and so changes nothing in it."""
    with Bundle(node, vhost=shared_vhost("refusing"), folder=tmp_path_factory.mktemp("refusing")) as bundle:
        yield bundle, Users(bundle).give_passwords()


@pytest.mark.parametrize(
    ("user", "command"),
    [
        ("proj-producer", "dead list"),
        ("proj-producer", "dead redrive --all"),
        ("proj-producer", "dead show any"),
        ("proj-monitor", "dead drop --all --yes"),
        ("proj-monitor", "enqueue add 1 2"),
        ("proj-monitor", "enqueue add 1 2 --countdown 5"),
        ("proj-operator", "enqueue add 1 2"),
    ],
)
def test_a_refusal_is_one_line(refusing: tuple[Bundle, Users], user: str, command: str) -> None:
    """That names the user and the thing, and where it is said who may do what."""
    bundle, users = refusing
    done = bundle.proj(*command.split(), env=users.env(user))

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (69, "", 1)
    assert f"user '{user}-" in done.stderr
    assert "lacks a right" in done.stderr
    assert "SECURITY.md" in done.stderr
    assert PASSWORD not in done.stderr


def test_a_worker_with_the_rights_of_a_producer_ends(bundle: Bundle, users: Users) -> None:
    """With one line; to try again would mend nothing."""
    worker = bundle.worker(env=users.env("proj-producer"), mingle=True)

    assert worker.ends() == 69
    assert "lacks a right" in worker.text()
    assert "Traceback" not in worker.text()


def test_a_worker_that_may_not_declare_names_what_is_missing(bundle: Bundle) -> None:
    """In a virtual host that nobody has set up."""
    users = Users(bundle, topology=False).give_passwords()
    worker = bundle.worker(env=users.env("proj-worker"), mingle=True)

    assert worker.ends() == 69
    assert f"no queue '{DEAD}'" in worker.text()
    assert "definitions.json" in worker.text()
    assert "Traceback" not in worker.text()


def test_a_worker_that_may_not_declare_names_the_missing_exchange(bundle: Bundle, users: Users) -> None:
    """The tasks that it executes could publish nothing."""
    with bundle.channel() as channel:
        channel.exchange_delete(queues.direct_exchange.name)
    worker = bundle.worker(env=users.env("proj-worker"), mingle=True)

    assert worker.ends() == 69
    assert f"no exchange '{queues.direct_exchange.name}'" in worker.text()
    assert "definitions.json" in worker.text()


def test_a_beat_leads_and_publishes(bundle: Bundle, users: Users) -> None:
    """With its own user; with that of a producer, which may not lead, it ends with one line."""
    bundle.add_task('app.add_periodic_task(1.0, add.s(1, 2), name="tick")')
    refused = bundle.celery("beat", env=users.env("proj-producer"))
    assert refused.returncode == 69
    (line,) = [line for line in refused.stderr.splitlines() if "CRITICAL" in line]
    assert "access to queue 'proj.beat'" in line
    assert "SECURITY.md" in line
    assert "Traceback" not in refused.stderr

    bundle.beat(env=users.env("proj-beat")).says("this beat leads")
    eventually("it publishes", lambda: bundle.depth(WORK))
