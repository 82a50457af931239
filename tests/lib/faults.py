"""A node for what other tests must not feel, and a network that fails."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle
from tests.lib.one_node import CONFIG, quick_folder, started
from tests.lib.proxy import Proxy
from tests.lib.publisher import MAX_SIZE, hurry
from tests.lib.vhosts import VirtualHosts

#: The management API samples each second what else would be waited for: 5 seconds, for an alarm or a policy.
#: On a node with hundreds of virtual hosts that would cost too much.
_SAMPLES = "\n".join(
    f"management.sample_retention_policies.{kind}.minute = 1" for kind in ("global", "basic", "detailed")
)


@pytest.fixture(scope="session")
def own_node(rabbitmq: None) -> Iterator[BrokerNode]:
    """A node for alarms, freezes, plugins and settings of which the other tests must not know."""
    config = "\n".join([f"max_message_size = {MAX_SIZE}", CONFIG, _SAMPLES])
    with quick_folder() as folder, started(folder, config) as node:
        yield node


@pytest.fixture(scope="session")
def own_vhosts(own_node: BrokerNode) -> VirtualHosts:
    return VirtualHosts(own_node, "own")


@pytest.fixture
def own(own_vhosts: VirtualHosts, tmp_path: Path) -> Iterator[Bundle]:
    with own_vhosts.lend(tmp_path) as bundle:
        hurry(bundle)
        yield bundle


@pytest.fixture
def proxy(bundle: Bundle) -> Iterator[Proxy]:
    """What the bundle's programs reach their broker through."""
    hurry(bundle)
    with Proxy(bundle.node.info.port) as proxy:
        bundle.env["CELERY_BROKER_URL"] = bundle.url_at(proxy.port)
        yield proxy
