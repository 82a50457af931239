"""Workers whose logs many tests of a module read."""

from collections.abc import Iterator

import pytest

from tests.lib.logged import JSON, Shared
from tests.lib.vhosts import VirtualHosts


@pytest.fixture(scope="module")
def json_worker(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with vhosts.lend(tmp_path_factory.mktemp("json")) as bundle:
        bundle.env |= JSON
        yield Shared(bundle)


@pytest.fixture(scope="module")
def text_worker(vhosts: VirtualHosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with vhosts.lend(tmp_path_factory.mktemp("text")) as bundle:
        yield Shared(bundle)
