"""The example's page and a worker, started once: each test uploads photos of its own."""

from collections.abc import Iterator

import pytest

from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle, shared_vhost
from tests.lib.photos import Studio


@pytest.fixture(scope="session")
def studio(node: BrokerNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with Bundle(node, vhost=shared_vhost("photos"), folder=tmp_path_factory.mktemp("studio")) as bundle:
        studio = Studio(bundle)
        try:
            yield studio
        finally:
            studio.end()
