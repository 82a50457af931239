"""A node that counts often, and a virtual host that a worker has prepared."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from proj.private_node.node import BrokerNode
from tests.bundle import Bundle, eventually, vhost_of

#: Milliseconds after which the node of these tests counts anew; the usual 5 seconds would be waited for.
COUNTED = 300


@pytest.fixture(scope="session")
def own_node(rabbitmq: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node for alarms and policies, of which the other tests must not know."""
    node = BrokerNode(
        tmp_path_factory.mktemp("doctor"), extra_config=f"collect_statistics_interval = {COUNTED}"
    )
    node.start()
    node.ctl("eval", f"application:set_env(rabbit, quorum_tick_interval, {COUNTED}).")
    yield node
    node.kill()


@pytest.fixture
def own(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    with Bundle(own_node, vhost=vhost_of(request), folder=tmp_path) as bundle:
        yield bundle


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
