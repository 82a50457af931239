"""deploy/rabbitmq/definitions.json is what the code declares."""

import importlib.machinery
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from proj import queues
from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle
from tests.lib.users import FOLDER, Users

WORK, DEAD = queues.DEFAULT_QUEUE, queues.dead_queue.name


def implied(thing: dict[str, Any]) -> dict[str, Any]:
    """What RabbitMQ 4.3 says of exchanges and older releases do not, and the other way round of queues."""
    return {"internal": False, "type": thing["arguments"].get("x-queue-type")}


def comparable(things: list[dict[str, Any]]) -> list[str]:
    same = {"vhost": "proj"}
    return sorted(json.dumps(implied(thing) | thing | same, sort_keys=True) for thing in things)


def test_the_definitions_are_what_the_code_declares(bundle: Bundle) -> None:
    """RabbitMQ exports the same from a virtual host in which `proj/queues.py` declared all."""
    bundle.declare()
    declared = bundle.of_vhost("definitions")
    kept = json.loads((FOLDER / "definitions.json").read_text())

    assert set(kept) == {"vhosts", "exchanges", "queues", "bindings"}
    for kind in ("exchanges", "queues", "bindings"):
        assert comparable(kept[kind]) == comparable(declared[kind]), "run: make definitions"


@pytest.fixture
def generated(node: BrokerNode, tmp_path: Path) -> Path:
    """The files that `PROJ_QUEUES=slow,celery.mail make definitions` writes after `old,celery.mail`."""
    folder = tmp_path / "generated"
    shutil.copytree(FOLDER, folder)
    script = _script("definitions")
    script.let_workers_read(folder / "users.json", queues.Topology(("old", "celery.mail")))
    script.write(folder, node, queues.Topology(("slow", "celery.mail")))
    return folder


def _script(name: str) -> ModuleType:
    path = str(FOLDER.parents[1] / "scripts" / name)
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, path))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_definitions_of_further_queues(bundle: Bundle, generated: Path) -> None:
    """They hold the queue and what leads to it, and the worker may consume it and nothing else."""
    made = {
        kind: [
            tuple(thing.get(key) for key in ("name", "source", "destination", "routing_key"))
            for thing in things
        ]
        for kind, things in json.loads((generated / "definitions.json").read_text()).items()
    }
    assert {name for name, *_ in made["queues"] if not name.startswith("celery_delayed_")} == {
        *(WORK, DEAD),
        *("slow", "celery.mail"),
    }
    for source, destination, key in (
        ("proj.direct", "slow", "slow"),
        ("proj", "slow", "slow"),
        ("proj", "slow", "#.slow"),
        (queues.DELAY_EXCHANGE, "proj", "#.slow"),
    ):
        assert (None, source, destination, key) in made["bindings"]
    (read,) = (
        right["read"]
        for right in json.loads((generated / "users.json").read_text())["permissions"]
        if right["user"] == "proj-worker"
    )
    assert [name for name in ("slow", "celery.mail", WORK, DEAD) if not re.search(read, name)] == []
    assert [name for name in ("old", "slow2", "celery-mail", "proj") if re.search(read, name)] == []

    template, new = (json.loads((each / "work-queue.json").read_text()) for each in (FOLDER, generated))
    for kind in ("exchanges", "queues", "bindings"):
        assert comparable(template[kind]) == comparable(new[kind]), "run: make definitions"

    users = Users(bundle, folder=generated).give_passwords()
    further = {"PROJ_QUEUES": "slow,celery.mail"}
    worker = bundle.worker("-Q", "slow", env=users.env("proj-worker") | further).ready()
    done = bundle.proj(
        *("enqueue", "add", "2", "3", "--queue", "slow", "--countdown", "1", "--wait"),
        env=users.env("proj-producer") | further,
    )
    assert done.stdout == "5\n", done.stderr
    assert not re.search(" (WARNING|ERROR|CRITICAL)/", worker.text()), worker.text()
