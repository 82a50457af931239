"""Further work queues: one setting declares them, and all that knows `proj.tasks` knows them."""

import json
import re
from collections.abc import Iterator

import pytest

from proj.private_node.node import BrokerNode
from tests.lib import dead as dead_letters
from tests.lib.bundle import Bundle, Worker, eventually

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
    with Bundle(node, "work-queues", tmp_path_factory.mktemp("work-queues")) as bundle:
        bundle.env |= QUEUES
        bundle.add_task(TASKS)
        yield bundle


@pytest.fixture(scope="module")
def workers(shared: Bundle) -> dict[str, Worker]:
    """One for each of two queues."""
    return {
        "proj.tasks": shared.worker(log="default.log").ready(),
        "slow": shared.worker("-Q", "slow", log="slow.log").ready(),
    }


def _where(shared: Bundle, *args: str) -> str:
    done = shared.proj("enqueue", "task", *args, "--wait", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout))


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


def test_a_worker_consumes_the_default_queue_alone(shared: Bundle, workers: dict[str, Worker]) -> None:
    """Each of the others waits for a worker of its own; the doctor names one that has messages and none."""
    shared.enqueue("add", "1", "2", "--queue", "mail")
    rows = {row["queue"]: row for row in json.loads(shared.proj("queues", "--json").stdout)["queues"]}
    assert list(rows) == ["proj.tasks", "slow", "mail", "delayed", "proj.dead"]
    assert [rows[name]["consumers"] for name in ("proj.tasks", "slow", "mail")] == [1, 1, 0]
    assert rows["mail"]["ready"] == 1

    found = shared.proj("doctor").stdout
    assert "queue mail has 1 message and no consumer" in found
    assert "celery -A proj worker -Q mail" in found
    assert "queue slow has" not in found


def test_a_full_queue_does_not_delay_another(shared: Bundle, workers: dict[str, Worker]) -> None:
    """A thousand messages wait in one, and a message of the other is executed at once."""
    shared.python("""
from proj.tasks import sleep_dots
for _ in range(1000):
    sleep_dots.apply_async(("600",), queue="mail")
print(1)
""")
    assert shared.depth("mail") >= 1000
    assert shared.proj("enqueue", "add", "1", "2", "--wait", "--timeout", "60").stdout == "3\n"


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
