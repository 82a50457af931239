"""A cluster of three in containers, with a real Docker; skipped, in CI too, where there is none."""

import json
from collections.abc import Iterator

import pytest

from tests.lib import stack
from tests.lib.stack import Stack
from tests.lib.waiting import eventually

pytestmark = pytest.mark.timeout(3 * stack.LONG)

NODES = ["rabbitmq", "rabbitmq-2", "rabbitmq-3"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if reason := stack.why_not():
        pytest.skip(reason)
    files = ("-f", "docker-compose.yml", "-f", "deploy/cluster/docker-compose.yml")
    with Stack(tmp_path_factory.mktemp("cluster"), *files) as running:
        running.compose("build", "worker")
        running.compose("up", "--detach", "--wait", *NODES, "worker")
        yield running


def test_the_loss_of_the_leader_loses_nothing(cluster: Stack) -> None:
    """Three nodes are one broker: the work goes on without the leader of the queue, and with it again."""
    assert findings(cluster, "nodes") == ["all 3 nodes run"]
    assert findings(cluster, "replicas") == ["each queue has 3 replicas"]
    ids = cluster.enqueue_there("sleep-dots", "1", "--count", "30")
    eventually("work is under way", lambda: cluster.done(ids))
    leader = leader_of(cluster, "proj.tasks")

    cluster.kill(cluster.containers(leader)[0])

    assert len(cluster.done(ids)) < 30, "there is work left"
    (other, *_) = [node for node in NODES if node != leader]
    eventually("another node leads", lambda: leader_of(cluster, "proj.tasks", other) not in {leader, ""})
    ids += cluster.enqueue_there("add", "2", "3")
    cluster.all_done(ids)
    cluster.compose("up", "--detach", "--wait", leader)
    eventually(
        "all nodes run", lambda: findings(cluster, "nodes") == ["all 3 nodes run"], patience=stack.LONG
    )
    assert cluster.dead_letters() == []


def findings(cluster: Stack, check: str) -> list[str]:
    """What the doctor says of it, as the user who operates."""
    done = cluster.compose("run", "--rm", "-T", "operator", "proj", "doctor", "--json", check=False)
    return [each["what"] for each in json.loads(done.stdout) if each["check"] == check]


def leader_of(cluster: Stack, queue: str, asked: str = NODES[0]) -> str:
    """The service whose node leads the queue."""
    words = (
        "rabbitmqctl",
        "--quiet",
        "list_queues",
        "--vhost",
        "proj",
        "--no-table-headers",
        "name",
        "leader",
    )
    done = cluster.compose("exec", "-T", asked, *words, check=False)
    leaders = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    return str(leaders.get(queue, "")).removeprefix("rabbit@")
