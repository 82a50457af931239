"""Further work queues: one setting declares them, and all that knows `proj.tasks` knows them."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proj import queues
from proj.enqueue import priorities
from proj.private_node.node import BrokerNode
from proj.rabbitmq import version
from tests.lib import dead as dead_letters
from tests.lib.bundle import GATED_TASK, MANAGEMENT_OFF, Bundle, shared_vhost
from tests.lib.waiting import eventually
from tests.lib.worker import Worker

PAGE = (Path(__file__).parents[2] / "docs/queues.md").read_text()

QUEUES = {"PROJ_QUEUES": "slow,mail"}

TASKS = """
    @app.task(name="proj.tasks.where", bind=True, queue="slow")
    def where(self, retry_once: bool = False) -> str:
        if retry_once and not self.request.retries:
            raise ConnectionError("for a moment")
        return self.request.delivery_info["routing_key"]

    @app.task(name="proj.tasks.broken", autoretry_for=())
    def broken() -> None:
        raise ValueError("for good")
"""


@pytest.fixture(scope="module")
def shared(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with Bundle(node, vhost=shared_vhost("work-queues"), folder=tmp_path_factory.mktemp("shared")) as bundle:
        bundle.env |= QUEUES
        bundle.add_task(TASKS)
        bundle.add_task(GATED_TASK)
        yield bundle


@pytest.fixture(scope="module")
def workers(shared: Bundle) -> dict[str, Worker]:
    """One for each of two queues."""
    return {
        "proj.tasks": shared.worker(log="default.log").ready(),
        "slow": shared.worker("-Q", "slow", log="slow.log").ready(),
    }


#: So many messages are in a queue that is full.
FULL = 1000


def _fill(shared: Bundle) -> None:
    shared.enqueue("sleep-dots", "600", "--queue", "mail", "--count", str(FULL))


def _purge(shared: Bundle) -> None:
    with shared.channel() as channel:
        channel.queue_purge("mail")


def _where(shared: Bundle, *args: str) -> str:
    done = shared.proj("enqueue", "task", *args, "--wait", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout))


@pytest.mark.celery_docs("Calling: queue", "Routing: task_queues")
@pytest.mark.parametrize(
    ("args", "queue"),
    [
        (["proj.tasks.where"], "slow"),
        (["proj.tasks.where", "--countdown", "1"], "slow"),
        (["proj.tasks.where", "true"], "slow"),
        (["proj.tasks.where", "--queue", "proj.tasks"], "proj.tasks"),
        (["proj.tasks.where", "true", "--queue", "proj.tasks", "--countdown", "1"], "proj.tasks"),
    ],
    ids=["task", "delayed", "retried", "call", "call-delayed-retried"],
)
def test_the_queue_of_a_message(
    shared: Bundle, workers: dict[str, Worker], args: list[str], queue: str
) -> None:
    """The task says it, and the call before it; what is delayed or retried comes back to it."""
    # A delay puts words before the routing key.
    assert re.fullmatch(rf"([01]\.)*{re.escape(queue)}", _where(shared, *args))
    assert workers["slow"].process.poll() is None


def test_celery_call_sends_to_the_queue_of_the_task(shared: Bundle, workers: dict[str, Worker]) -> None:
    """The command gives None for each option that it was not given."""
    done = shared.celery("call", "proj.tasks.where")
    assert done.returncode == 0, done.stderr
    workers["slow"].says(f"[{done.stdout.strip()}] received")


@pytest.mark.celery_docs("Routing: task_routes")
def test_routes_of_celery(shared: Bundle, workers: dict[str, Worker]) -> None:
    """`task_routes` sends tasks to a queue, by their names."""
    found = shared.python("""
import json
from proj.tasks import add, app
app.conf.task_routes = {"proj.tasks.add": "slow"}
add.apply_async((1, 2), task_id="routed")
print(json.dumps(app.AsyncResult("routed").get(timeout=60)))
""")
    assert found == 3
    assert "[routed] received" in workers["slow"].text()
    assert "routed" not in workers["proj.tasks"].text()


def test_dead_letters_go_back_to_their_own_queue(shared: Bundle, workers: dict[str, Worker]) -> None:
    """Each redriven one is executed again by the worker of the queue that it came from."""
    for queue in workers:
        shared.enqueue("task", "proj.tasks.broken", "--queue", queue, "--id", f"dead-{queue}")
    ids = {f"dead-{queue}" for queue in workers}

    def dead() -> dict[str, str]:
        letters = map(json.loads, shared.proj("dead", "list", "--json").stdout.splitlines())
        return {letter["id"]: dead_letters.show(shared, letter["id"])["queue"] for letter in letters}

    eventually("both are dead letters", lambda: dead().keys() == ids)
    assert dead() == {f"dead-{queue}": queue for queue in workers}

    assert shared.proj("dead", "redrive", "--all").returncode == 0
    eventually(
        "each worker has its own again",
        lambda: all(text.text().count(f"[dead-{name}] received") == 2 for name, text in workers.items()),
    )
    eventually("both are dead letters again", lambda: dead().keys() == ids)
    assert shared.proj("dead", "drop", "--all", "--yes").returncode == 0


@pytest.mark.celery_docs("Routing: -Q")
def test_a_worker_consumes_the_default_queue_alone(shared: Bundle, workers: dict[str, Worker]) -> None:
    """Each of the others waits for a worker of its own; the doctor names one that has messages and none."""
    shared.enqueue("add", "1", "2", "--queue", "mail")
    rows = {row["queue"]: row for row in json.loads(shared.proj("queues", "--json").stdout)["queues"]}
    assert list(rows) == ["proj.tasks", "slow", "mail", "delayed", "proj.dead"]
    assert [rows[name]["consumers"] for name in ("proj.tasks", "slow", "mail")] == [1, 1, 0]
    assert rows["mail"]["ready"] == 1
    assert shared.proj("health", "--ready").returncode == 0

    found = shared.proj("doctor").stdout
    assert "queue mail has 1 message and no consumer" in found
    assert "celery -A proj worker -Q mail" in found
    assert "queue slow has" not in found


def test_workers_ask_for_their_consumer_timeout(shared: Bundle, workers: dict[str, Worker]) -> None:
    """For the longest task and its end: RabbitMQ 4.3 obeys, and older releases do not mind."""

    def asked() -> dict[str, Any]:
        return {
            consumer["queue"]["name"]: consumer["arguments"].get("x-consumer-timeout")
            for consumer in shared.of_vhost("consumers")
            if consumer["queue"]["name"] in workers
        }

    eventually("the management API has all workers", lambda: asked().keys() == workers.keys())
    assert asked() == dict.fromkeys(workers, 1_810_000)


def test_a_full_queue_does_not_delay_another(shared: Bundle, workers: dict[str, Worker]) -> None:
    """A thousand messages wait in one, and a message of the other is executed at once."""
    _fill(shared)
    assert shared.depth("mail") >= FULL
    assert shared.proj("enqueue", "add", "1", "2", "--wait", "--timeout", "60").stdout == "3\n"


@pytest.mark.celery_docs("Routing: task_create_missing_queues")
def test_unknown_queue(shared: Bundle) -> None:
    """It is refused, with the nearest that there is, by a call, a task, a route and a worker."""
    done = shared.proj("enqueue", "add", "1", "2", "--queue", "slwo")
    assert (done.returncode, done.stdout) == (65, "")
    assert done.stderr == "Error: proj.tasks.add: there is no queue 'slwo' (did you mean slow?)\n"

    done = shared.proj("enqueue", "task", "proj.tasks.where", env={"PROJ_QUEUES": ""})
    assert done.returncode == 65
    assert "no queue 'slow' (known queues: proj.tasks; PROJ_QUEUES adds more)" in done.stderr

    worker = shared.worker("-Q", "slow,mial", log="unknown.log")
    assert worker.ends() == 2
    assert worker.text() == "Error: there is no queue 'mial' (did you mean mail?)\n"

    worker = shared.worker(env={"PROJ_QUEUES": ""}, log="task.log")
    assert worker.ends() == 2
    assert "there is no queue 'slow'" in worker.text().splitlines()[-1]


def test_a_worker_of_two_queues_reports_what_that_costs(shared: Bundle) -> None:
    """It may keep a message of the one waiting while it executes one of the other."""
    worker = shared.worker("-Q", "mail,proj.tasks", log="two.log")
    worker.says("each has its own prefetch count")
    worker.kill()


def test_what_workers_hold_without_the_management_api(
    shared: Bundle, workers: dict[str, Worker], tmp_path: Path
) -> None:
    """Each worker is asked, and what it holds counts for its own queue."""
    shared.enqueue("task", "proj.tasks.gated", json.dumps(str(tmp_path / "gate")), "--queue", "slow")

    def held() -> list[int | None]:
        done = shared.proj("queues", "--json", "proj.tasks", "slow", env=MANAGEMENT_OFF)
        return [row["unacknowledged"] for row in json.loads(done.stdout)["queues"]]

    eventually("the one of slow holds a message", lambda: held() == [0, 1], seen=lambda: str(held()))
    (tmp_path / "gate").touch()
    eventually("it is done", lambda: held() == [0, 0], seen=lambda: str(held()))


def test_a_queue_with_other_arguments(shared: Bundle) -> None:
    """A further queue that exists already is refused as the default one would be, and the doctor says why."""
    with shared.channel() as channel:
        channel.queue_declare("other", durable=True, auto_delete=False)
    further = {"PROJ_QUEUES": "slow,mail,other"}

    done = shared.proj("enqueue", "add", "1", "2", "--queue", "other", env=further)
    assert (done.returncode, done.stdout) == (69, "")
    assert "has a queue with different arguments" in done.stderr
    assert "docs/migration.md" in done.stderr
    assert done.stderr.count("\n") == 1

    worker = shared.worker("-Q", "other", env=further, log="other.log")
    assert worker.ends() == 69
    assert "has a queue with different arguments" in worker.text()

    found = shared.proj("doctor", env=further).stdout
    assert "queue other differs from its declaration" in found
    assert "queue slow differs" not in found


# --- A queue that fills up


def _command(limit: str) -> list[str]:
    """The command of the page's row about this limit, as the shell takes it apart, without the program."""
    command = re.findall(rf"^\| {limit} \| `rabbitmqctl (.*?)` \|", PAGE, re.MULTILINE)[0]
    return shlex.split(command)


def _set_policy(shared: Bundle, limit: str, **changed: int) -> Iterator[None]:
    command, option, vhost, *rest, definition = _command(limit)
    assert (command, option, vhost) == ("set_policy", "-p", "/")
    shared.node.ctl(command, "-p", shared.vhost, *rest, json.dumps(json.loads(definition) | changed))
    yield
    shared.management("DELETE", f"policies/{shared.vhost}/{rest[2]}")


@pytest.fixture
def limited_length(shared: Bundle) -> Iterator[None]:
    yield from _set_policy(shared, "length")


@pytest.fixture
def limited_age(shared: Bundle) -> Iterator[None]:
    """The command's limit, in the test's time: half a second."""
    yield from _set_policy(shared, "age", **{"message-ttl": 500})


def _refused(shared: Bundle) -> str:
    """The line of a publish that was refused; empty when it was taken."""
    done = shared.proj("enqueue", "add", "1", "2", "--queue", "mail")
    assert (done.returncode, done.stdout == "") in {(0, False), (69, True)}, done.stderr
    return done.stderr if done.returncode else ""


def test_a_limit_of_the_length(shared: Bundle, workers: dict[str, Worker], limited_length: None) -> None:
    """Publishing to the full queue is refused in one line, and to another one it is not."""
    if shared.depth("mail") < FULL:
        _fill(shared)
    line = eventually("publishing is refused", lambda: _refused(shared))
    assert re.fullmatch(r"Error: proj\.tasks\.add: .*\n", line), line
    assert shared.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"

    # One that is due is refused too, and waits.
    shared.enqueue("add", "1", "2", "--queue", "mail", "--countdown", "1")
    eventually("it is due", lambda: not shared.depth(queues.DELAY_QUEUES[0]))
    _purge(shared)
    eventually("it is in the queue", lambda: shared.depth("mail"))
    eventually("publishing is taken", lambda: not _refused(shared))


def test_a_limit_of_the_age(shared: Bundle, limited_age: None) -> None:
    """What waits longer becomes a dead letter of its queue, with its reason."""
    _purge(shared)  # what was there before has no limit, and what follows expires after it
    shared.enqueue("add", "1", "2", "--queue", "mail", "--id", "too-late")

    def letters() -> list[str]:
        listed = shared.proj("dead", "list", "--reason", "expired", "--json").stdout.splitlines()
        return [json.loads(line)["id"] for line in listed]

    eventually("there is a dead letter", lambda: shared.depth("proj.dead"))
    eventually("it is a dead letter", lambda: "too-late" in letters())
    assert dead_letters.show(shared, "too-late")["queue"] == "mail"
    assert shared.proj("dead", "drop", "--all", "--yes").returncode == 0


# --- Priorities


@pytest.mark.celery_docs("Calling: priority")
def test_priorities(shared: Bundle, workers: dict[str, Worker]) -> None:
    """High ones overtake what waits, from RabbitMQ 4.0; before, the first publish and the doctor warn."""
    with shared.channel() as channel:
        heeded = version.of(channel.connection.client) >= priorities.KNOWN_SINCE
    _purge(shared)

    def enqueue(count: int, *options: str) -> tuple[list[str], str]:
        done = shared.proj("enqueue", "add", "1", "2", "--queue", "mail", "--count", str(count), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.split(), done.stderr

    normal, _ = enqueue(30)
    high, warned = enqueue(10, "--priority", "9")
    assert (len(normal), len(high)) == (30, 10)
    warning = r"Warning: RabbitMQ \S+ ignores the priority of messages in quorum queues; .*\n"
    assert re.fullmatch("" if heeded else warning, warned), warned
    said = shared.proj("doctor").stdout
    assert ("this version ignores the priority of messages in quorum queues" in said) != heeded

    worker = shared.worker("-Q", "mail", log="mail.log")
    eventually("all are executed", lambda: len(worker.lines("succeeded in")) == 40, seen=worker.text)
    assert worker.terminate() == 0
    order = [line.id for line in worker.lines("received")]
    if heeded:
        # Of three messages two are high ones, so all of these are in the first half.
        assert set(high) <= set(order[:20])
    else:
        assert order == normal + high
