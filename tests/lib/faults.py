"""A node for what other tests must not feel, and a network that fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle, vhost_of
from tests.lib.proxy import Proxy
from tests.lib.publisher import MAX_SIZE, hurry


@pytest.fixture(scope="session")
def own_node(rabbitmq: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A node for alarms, freezes, plugins and settings of which the other tests must not know."""
    # Milliseconds after which its management API counts anew, as of the other node.
    config = f"max_message_size = {MAX_SIZE}\ncollect_statistics_interval = 300"
    node = BrokerNode(tmp_path_factory.mktemp("chaos"), extra_config=config)
    node.start()
    yield node
    node.kill()


@pytest.fixture
def own(own_node: BrokerNode, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bundle]:
    with Bundle(own_node, vhost=vhost_of(request), folder=tmp_path) as bundle:
        hurry(bundle)
        yield bundle


@pytest.fixture
def proxy(bundle: Bundle) -> Iterator[Proxy]:
    """What the bundle's programs reach their broker through."""
    hurry(bundle)
    with Proxy(bundle.node.info.port) as proxy:
        bundle.env["CELERY_BROKER_URL"] = bundle.url_at(proxy.port)
        yield proxy
