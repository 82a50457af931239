"""One private RabbitMQ for all tests, and for each test a virtual host and folders of its own."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from proj.private_node.node import BrokerNode
from tests.lib import ports
from tests.lib.bundle import Bundle
from tests.lib.missing import missing
from tests.lib.small_disk import mounted as small_disk_at
from tests.lib.vhosts import VirtualHosts

#: Fixtures of many rooms.
pytest_plugins = (
    "tests.lib.browser",
    "tests.lib.one_node",
    "tests.lib.databases",
    "tests.lib.faults",
    "tests.lib.order",
)

#: No test talks to a broker that it did not start: a process that is told of none gets this one.
NO_BROKER_URL = "amqp://a-test-that-needs-a-broker-asks-for-a-bundle.invalid"

# Half of the time that it takes to find all tests would be spent on looking for garbage among them.
gc.disable()

# The same examples everywhere, and no time decides.
hypothesis.settings.register_profile(
    "tests", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="FOLDER", help="Write the documentation's pictures there.")
    # As few as show that a message is lost when the gate of the worker is off.
    parser.addoption("--fuzz-messages", type=int, default=100, help="How many to fuzz a worker with.")
    parser.addoption("--fuzz-seed", metavar="NUMBER|random", help="Other ones; the test prints it.")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not among what stays until the end."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("CELERY_", "AMQP_", "PROJ_", "FLOWER_", "RABBITMQ_")):
                patch.delenv(name)
        # Else each program that a test starts compiles the whole package anew.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("CELERY_BROKER_URL", NO_BROKER_URL)
        yield


@pytest.fixture(scope="session", autouse=True)
def _ports_of_this_process(worker_id: str) -> None:
    ports.take_share(int(worker_id.removeprefix("gw")) if worker_id != "master" else 0)


@pytest.fixture(scope="session")
def vhosts(node: BrokerNode) -> VirtualHosts:
    return VirtualHosts(node, "used")


@pytest.fixture
def bundle(request: pytest.FixtureRequest, vhosts: VirtualHosts, tmp_path: Path) -> Iterator[Bundle]:
    """In an empty virtual host; with the mark `used_vhost`, in one that has the topology and no message."""
    used = request.node.get_closest_marker("used_vhost")
    with vhosts.lend(tmp_path) if used else vhosts.lend_empty(tmp_path) as bundle:
        yield bundle


@pytest.fixture
def small_disk(bundle: Bundle) -> Iterator[Path]:
    """A file system of 1 MiB as the bundle's state folder, where this user may mount one: root on Linux."""
    folder = bundle.folder / "state"
    with small_disk_at(folder, 2**20) as is_there:
        if not is_there:
            missing("a small file system to fill: only root may mount one")
        yield folder
