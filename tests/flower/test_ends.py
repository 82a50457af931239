"""What Flower shows of a worker that was killed, and of the task that it executed."""

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proj import queues
from tests.lib import dead
from tests.lib.bundle import GATED_TASK, Bundle
from tests.lib.flower import Flower
from tests.lib.waiting import eventually

pytestmark = pytest.mark.used_vhost


def _online(flower: Flower) -> dict[str, float]:
    """What the metrics say of each worker."""
    families = text_string_to_metric_families(flower.get("/metrics").text)
    return {
        sample.labels["worker"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "flower_worker_online"
    }


def test_task_that_kills_its_workers_ends_as_a_failure(bundle: Bundle, flower: Callable[..., Flower]) -> None:
    """With the reason, once the broker has made its message a dead letter. The killed worker is offline."""
    bundle.add_task(GATED_TASK)
    bundle.switch_off("flower/application.py", "SILENT: Final = 30", "SILENT: Final = 3")
    monitor = flower("--persistent=false").hears_events()
    worker = bundle.worker("-n", "killed@host").ready().watched()
    bundle.enqueue("task", "proj.tasks.gated", '"never"', "--id", "killer")
    worker.started("killer")
    eventually("it is shown as started", lambda: "STARTED" in monitor.get("/task/killer").text)
    eventually("the worker is online", lambda: _online(monitor) == {"killed@host": 1})

    worker.kill()
    with bundle.channel() as channel:
        for _ in range(queues.DELIVERY_LIMIT):  # as further workers that it kills
            message = eventually("it is delivered", lambda: channel.basic_get("proj.tasks"))
            channel.basic_reject(message.delivery_tag, requeue=True)
    dead.await_count(bundle, 1)
    eventually("the worker is offline", lambda: _online(monitor) == {"killed@host": 0})
    bundle.worker("-n", "next@host")

    page = eventually("it has failed", lambda: _failed(monitor.get("/task/killer").text), seen=monitor.text)
    assert "DeadLettered(&#x27;delivery limit (see: proj dead show killer)&#x27;)" in page


def _failed(page: str) -> str:
    return page if "FAILURE" in page else ""
