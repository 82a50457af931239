"""What Celery documents and a worker refuses, in one line, as soon as it is typed."""

import json
from collections.abc import Iterator

import pytest

from proj.private_node.node import BrokerNode
from tests.lib.bundle import GATED_TASK, Bundle
from tests.lib.proxy import Proxy
from tests.lib.vhosts import VirtualHosts
from tests.lib.waiting import eventually
from tests.lib.worker import Worker


@pytest.fixture(scope="module")
def shared(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with vhosts.lend(tmp_path_factory.mktemp("refused")) as bundle:
        bundle.add_task(GATED_TASK)
        yield bundle


@pytest.mark.celery_docs("Workers: --autoscale with another pool", "Periodic Tasks: worker -B")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-B",), "a worker cannot embed a beat with -B (run `celery -A proj beat` beside it)"),
        (("--autoscale=4,1", "--pool=threads"), "--autoscale needs the pool prefork"),
        (("--autoscale=4,1", "--pool=solo"), "--autoscale needs the pool prefork"),
        (("-X", "proj.taks"), "there is no queue 'proj.taks' (did you mean proj.tasks?)"),
        (("-X", "proj.tasks"), "-X leaves no queue to consume"),
    ],
    ids=["beat", "threads", "solo", "unknown queue", "no queue"],
)
def test_option_that_is_refused(shared: Bundle, options: tuple[str, ...], words: str) -> None:
    """Before the worker connects, with exit code 2."""
    done = shared.celery("worker", *options)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert words in line
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


@pytest.fixture(scope="module")
def proxy(node: BrokerNode) -> Iterator[Proxy]:
    with Proxy(node.info.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def scaled(shared: Bundle, proxy: Proxy) -> Worker:
    """A worker of one slot that may have three."""
    return shared.worker("--autoscale=3,1", env={"CELERY_BROKER_URL": shared.url_at(proxy.port)}).ready()


@pytest.mark.celery_docs("Workers: control pool_grow, pool_shrink, autoscale")
@pytest.mark.parametrize("command", [("pool_grow", "2"), ("pool_shrink",), ("autoscale", "5", "2")])
def test_change_of_slots_is_refused(shared: Bundle, scaled: Worker, command: tuple[str, ...]) -> None:
    """It would change the number of slots, not of messages: the answer says what to do instead."""
    answer = shared.control(scaled, *command)
    assert "OK" not in answer
    assert "is fixed at its start, and" in answer
    assert "restart it with another --concurrency or --autoscale" in answer


@pytest.mark.celery_docs("Workers: --autoscale")
def test_autoscale(shared: Bundle, scaled: Worker, proxy: Proxy) -> None:
    """As many tasks run at the same time as it says, also after a lost connection."""
    proxy.cut_for_programs()
    proxy.cut_for_broker()
    eventually("it connects again", lambda: scaled.text().count("Connected to ") == 2, seen=scaled.text)

    gate, ids = shared.folder / "gate", ["one", "two", "three"]
    for task_id in ids:
        shared.enqueue("task", "proj.tasks.gated", json.dumps(str(gate)), "--id", task_id)
    for task_id in ids:
        scaled.started(task_id)
    gate.touch()
    for task_id in ids:
        scaled.says(f"[{task_id}] succeeded")
