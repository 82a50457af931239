"""One RabbitMQ for all test processes: to start one of its own costs each 5 seconds of the processor.

The process that controls the others starts and ends it. A test process that is alone does so itself.
"""

import fcntl
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from proj.errors import BrokerNodeError
from proj.private_node.guard import NodeInfo, read_info
from proj.private_node.node import BrokerNode
from tests.lib import lean_server, ports
from tests.lib.erlang import evaluate, usual_ticks
from tests.lib.missing import missing
from tests.lib.waiting import eventually

#: Milliseconds after which a node's management API counts anew: the usual 5 seconds would be waited for.
CONFIG: Final = "collect_statistics_interval = 300"

#: What a test process is handed: the folder of the node.
_INPUT: Final = "one_node"

#: A folder there, from which all test processes start further nodes.
_SERVER: Final = "server"

#: A file there, once the node has started or has failed to: nothing, or why.
_OUTCOME: Final = "outcome"

#: A file system in memory, where there is one with room: queues sync each message to it.
_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 2**30

#: How the names of folders there begin, and a file in each that is locked while the folder is used.
_PREFIX: Final = "proj-tests-"
_USED: Final = "used"


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory for a node's data, if there is room, else on disk.

    Those that killed test runs have left there are removed.
    """
    quick = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _ROOM
    parent = _MEMORY if quick else Path(tempfile.gettempdir())
    for other in parent.glob(f"{_PREFIX}*"):
        _remove_unless_used(other)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent) as name:
        folder = Path(name)
        with (folder / "new").open("w") as used:
            fcntl.flock(used, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _USED)
            yield folder


def _remove_unless_used(folder: Path) -> None:
    with suppress(OSError), (folder / _USED).open() as used:
        fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started(folder: Path, config: str = CONFIG) -> Iterator[BrokerNode]:
    """A node whose queues report their numbers only where a test asks for it."""
    node = BrokerNode(folder, extra_config=config)
    start(node)
    try:
        lean_server.remember_modules(node)
        yield node
    finally:
        # An orderly stop takes seconds, to save what nobody will read.
        node.kill()


def start(node: BrokerNode) -> None:
    """Start it, also after a crash, and let it do no more than the tests need."""
    node.start()
    usual_ticks(node)
    # Nobody reads of each connection and queue: the log is gone with the node.
    evaluate(node, "logger:set_primary_config(level, notice)")


class _Elsewhere(BrokerNode):
    """The node, in a process that neither starts nor ends it."""

    @property
    def info(self) -> NodeInfo:
        found = read_info(self.data_dir)
        assert found, f"no node runs in {self.data_dir}"
        return found


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What every test that starts a node asks for: a skip on a laptop without RabbitMQ, a failure in CI.

    Further nodes wait for the one, whose modules they load: without them they would take twice as much of the
    processor, and most of them start first of all.
    """
    if folder := _folder(request):
        eventually("the node has started, or has failed to", Path(folder, _OUTCOME).exists)
    else:
        folder = str(tmp_path_factory.mktemp("rabbitmq-server"))
    try:
        lean_server.put_on_path(Path(folder, _SERVER))
    except BrokerNodeError as error:
        missing(str(error))


@pytest.fixture(scope="session")
def node(rabbitmq: None, request: pytest.FixtureRequest) -> Iterator[BrokerNode]:
    folder = _folder(request)
    if folder is None:
        with quick_folder() as data, started(data) as own:
            yield own
    else:
        assert not Path(folder, _OUTCOME).read_text()
        yield _Elsewhere(Path(folder, "node"))


def _folder(request: pytest.FixtureRequest) -> str | None:
    """What the process that controls this one has told it."""
    folder: str | None = getattr(request.config, "workerinput", {}).get(_INPUT)
    return folder


# --- The process that controls the others


class _Node:
    """Starts while the test processes look for their tests."""

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self.folder = self._cleanup.enter_context(quick_folder())
        # One test starts a node as another user, who is let through to the server. The node's data is closed.
        self.folder.chmod(0o711)
        with suppress(BrokerNodeError):  # as each test that needs it will say
            lean_server.put_on_path(self.folder / _SERVER)
        self._thread = threading.Thread(target=self._start)
        self._thread.start()

    def _start(self) -> None:
        reason = ""
        try:
            self._cleanup.enter_context(started(self.folder / "node"))
        except (AssertionError, BrokerNodeError) as error:
            reason = str(error)
        new = self.folder / "new"
        new.write_text(reason)
        new.rename(self.folder / _OUTCOME)

    def end(self) -> None:
        self._thread.join()
        self._cleanup.close()


_NODE = pytest.StashKey[_Node]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a test process of the node, before it begins."""
    config: pytest.Config = node.config
    if _NODE not in config.stash:
        ports.take_share(ports.CONTROLLER)
        config.stash[_NODE] = _Node()
        config.add_cleanup(config.stash[_NODE].end)
    node.workerinput[_INPUT] = str(config.stash[_NODE].folder)
