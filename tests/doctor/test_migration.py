"""The documented way to move the messages of a drifted queue."""

import re
import shutil
from pathlib import Path
from urllib.parse import quote

import pytest

from proj import queues
from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle
from tests.lib.erlang import evaluate
from tests.lib.findings import about, doctor, finds
from tests.lib.missing import missing
from tests.lib.waiting import eventually

DOC = Path(__file__).parents[2] / "docs/migration.md"


@pytest.mark.long
def test_migration(own: Bundle) -> None:
    """The commands of the documentation take every message through the change of its queue's arguments."""
    if not (shutil.which("curl") and shutil.which("bash")):
        missing("curl is missing")
    ids = [f"id-{n}" for n in range(20)]
    with own.channel() as channel:
        queues.dead_queue(channel).declare()
        queues.task_exchange(channel).declare()
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 3}
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False, arguments=arguments)
        for key in ("proj.tasks", "#.proj.tasks"):
            channel.queue_bind("proj.tasks", "proj", key)
    for task_id in ids:
        own.publish(
            [[1, 2], {}, {}],
            exchange="proj",
            routing_key="proj.tasks",
            serializer="json",
            correlation_id=task_id,
            headers={"task": "proj.tasks.add", "id": task_id},
        )
    assert own.depth("proj.tasks") == len(ids)
    assert "docs/migration.md" in about(doctor(own), "queues")["fix"]
    assert own.proj("enqueue", "add", "1", "2").returncode == 69

    out, back = re.findall(r"```sh\n(.*?)```", DOC.read_text(), re.DOTALL)
    env = {
        "API": own.node.management_url.replace("://", "://guest:guest@") + "/api",
        "VHOST": quote(own.vhost, safe=""),
    }
    # The node counts more often than others.
    quick = "sleep() { command sleep 1.5; }\n"
    # What cannot be moved, for the plugin is off, is not deleted.
    assert own.run("bash", "-c", quick + out, env=env).returncode
    assert own.depth("proj.tasks") == len(ids)
    enable_shovel(own.node)
    moved(own, "All are aside", quick + out, env)
    assert own.depth("proj.tasks.aside") == len(ids)
    assert not own.has("proj.tasks")
    worker = own.worker().ready()
    finds(own)
    moved(own, "All are back", quick + out.partition("curl -fs -X")[0] + back, env)

    eventually("all are executed", lambda: len(worker.lines("succeeded in")) == len(ids))
    assert {line.id for line in worker.lines("succeeded in")} == set(ids)
    assert not own.has("proj.tasks.aside")


def moved(bundle: Bundle, said: str, script: str, env: dict[str, str]) -> None:
    """Run the step until it says so: it may be repeated, as after a look that came too early."""
    eventually(said, lambda: said in bundle.run("bash", "-c", script, env=env).stdout)


def enable_shovel(node: BrokerNode) -> None:
    """Switch the plugin on, as `rabbitmq-plugins enable` does, which takes two seconds of the processor."""
    enabled = node.data_dir / "conf/enabled_plugins"
    enabled.write_text("[rabbitmq_management,rabbitmq_prometheus,rabbitmq_shovel].\n")
    answer = evaluate(node, f'rabbit_plugins:ensure("{enabled}")')
    assert re.match(r"\{ok, \[[^]]*rabbitmq_shovel[^]]*\], \[\]\}", answer), answer
