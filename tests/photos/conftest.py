"""The example's page and a worker, started once: each test uploads photos of its own."""

from collections.abc import Iterator

import pytest

from tests.lib.photos import Studio
from tests.lib.vhosts import VirtualHosts


@pytest.fixture(scope="session")
def studio(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with vhosts.lend(tmp_path_factory.mktemp("studio")) as bundle:
        studio = Studio(bundle)
        try:
            yield studio
        finally:
            studio.end()
