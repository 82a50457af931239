"""What docker-compose.yml runs, with a real Docker; skipped, in CI too, where there is none."""

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from tests.lib import stack
from tests.lib.stack import Stack
from tests.lib.waiting import eventually

pytestmark = pytest.mark.timeout(3 * stack.LONG)


def test_a_copy_of_the_example_that_was_not_edited_is_refused() -> None:
    """In words that say which password is missing, and what to do; no engine is needed for it."""
    if not stack.has_compose():
        pytest.skip("there is no `docker compose`")
    done = stack.docker("compose", "--env-file", ".env.example", "config", "--quiet", check=False)

    assert done.returncode != 0
    assert re.search(r'_PASSWORD is missing a value: run "make env"', done.stderr)


def test_the_files_of_a_cluster_are_read_together(tmp_path: Path) -> None:
    """Compose accepts both, and makes three nodes of them, of which one has ports on this machine."""
    if not stack.has_compose():
        pytest.skip("there is no `docker compose`")
    made = Stack(tmp_path)
    files = ("-f", "docker-compose.yml", "-f", "deploy/cluster/docker-compose.yml")
    found = json.loads(made.compose(*files, "config", "--format", "json").stdout)["services"]

    nodes = {name: keys for name, keys in found.items() if name.startswith("rabbitmq")}
    assert [keys["hostname"] for _, keys in sorted(nodes.items())] == ["rabbitmq", "rabbitmq-2", "rabbitmq-3"]
    assert [name for name, keys in nodes.items() if keys.get("ports")] == ["rabbitmq"]
    assert {keys["image"] for keys in nodes.values()} == {nodes["rabbitmq"]["image"]}
    assert all(name in found["worker"]["depends_on"] for name in nodes)
    assert (
        found["worker"]["environment"]["CELERY_BROKER_URL"].count(made.passwords["RABBITMQ_WORKER_PASSWORD"])
        == 3
    )


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if reason := stack.why_not():
        pytest.skip(reason)
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        running.compose("build")
        running.up(workers=2)
        yield running


def test_flower_asks_for_its_login(containers: Stack) -> None:
    """It listens on all addresses of its container, so on none without a login."""
    address = f"http://{containers.port('flower', 5555)}/"

    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(address, timeout=10)


def test_nothing_is_lost_when_containers_are_killed_and_replaced(containers: Stack) -> None:
    """A worker, then the broker is killed, and all of them are made anew: each task has its result."""
    containers.up(workers=2)
    ids = containers.enqueue_here("sleep-dots", "1", "--count", "20")
    ids += containers.enqueue_there("sleep-dots", "1", "--count", "10")
    assert len(set(ids)) == 30

    eventually("work is under way", lambda: containers.done(ids))
    containers.kill(containers.containers("worker")[0])
    eventually("the other one goes on", lambda: len(containers.done(ids)) >= 5)
    containers.kill(containers.containers("rabbitmq")[0])
    assert len(containers.done(ids)) < 30, "there is work left"
    containers.compose("down")
    containers.up(workers=4)
    assert len(containers.containers("worker")) == 4

    containers.all_done(ids)
    assert containers.dead_letters() == []


def test_a_program_that_knows_nothing_of_celery_is_served(containers: Stack) -> None:
    """By the service `ingest`, whose user may do no more than that."""
    containers.up(workers=1)
    for words in (
        ("add_user", "foreign", "secret"),
        ("set_permissions", "--vhost", "proj", "foreign", "^task_queue$", "^(task_queue|amq.default)$", ""),
    ):
        containers.compose("exec", "-T", "rabbitmq", "rabbitmqctl", *words)
    url = f"amqp://foreign:secret@{containers.port('rabbitmq', 5672)}/proj"
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_declare("task_queue", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "task_queue", "A foreign message", mandatory=True)

    eventually("its task is executed", lambda: containers.logged("Received 'A foreign message'"))


def test_a_worker_that_is_stopped_ends_its_task(containers: Stack) -> None:
    """SIGTERM reaches Celery, which waits for the task, and no longer."""
    containers.up(workers=1)
    (task_id,) = containers.enqueue_here("sleep-dots", "8")
    eventually("the worker has it", lambda: containers.received(task_id))
    (worker,) = containers.containers("worker")

    started = time.monotonic()
    containers.compose("stop", "worker")

    assert 4 < time.monotonic() - started < 60
    assert containers.state(worker)["ExitCode"] == 0
    assert containers.done([task_id]) == {task_id}
