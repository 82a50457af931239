"""A virtual host whose queues count often, and one that a worker has prepared."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest

from proj.private_node.node import BrokerNode
from tests.lib.alarm import SET_MEMORY
from tests.lib.bundle import Bundle, vhost_of
from tests.lib.erlang import evaluate, quick_ticks
from tests.lib.waiting import eventually


@pytest.fixture
def own(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    """For alarms, freezes and plugins: its queues count often, and are gone with the test."""
    with Bundle(own_node, vhost=vhost_of(request), folder=tmp_path) as bundle, quick_ticks(own_node):
        yield bundle
    evaluate(own_node, f"{SET_MEMORY}(0.4)")  # also when the test has failed
    bundle.management("DELETE", f"vhosts/{quote(bundle.vhost, safe='')}")


@pytest.fixture(autouse=True)
def _node_is_not_new(request: pytest.FixtureRequest) -> None:
    """For some seconds after its start, a node does not know its memory and disk."""
    for name in {"bundle", "own"} & set(request.fixturenames):
        eventually("the node knows its memory and disk", partial(_is_known, request.getfixturevalue(name)))


def _is_known(on: Bundle) -> bool:
    return all({"mem_used", "disk_free"} <= node.keys() for node in on.management("GET", "nodes"))


@pytest.fixture
def declared(bundle: Bundle) -> Bundle:
    bundle.declare()
    return bundle
