"""The private RabbitMQ node: where it listens, how it ends, and that nothing of it stays behind."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import amqp
import psutil
import pytest
import vine

from proj.errors import BrokerNodeError
from proj.private_node import node as private_node
from proj.private_node.guard import NODE_NAME, NodeInfo
from proj.private_node.node import BrokerNode
from tests.lib.bundle import COMMAND_TIMEOUT, PACKAGE
from tests.lib.missing import missing
from tests.lib.node_processes import STOPPED, alive, left, logged_since, processes

#: Settings for some other RabbitMQ that a developer may have in the environment.
OTHER_SETTINGS = {
    "RABBITMQ_NODENAME": "other@localhost",
    "RABBITMQ_MNESIA_BASE": "/nonexistent",
    "RABBITMQ_SERVER_START_ARGS": "-nonsense",
    "ERL_EPMD_PORT": "1",
    "ERL_FLAGS": "-name other@nowhere.invalid",
    "NOTIFY_SOCKET": "/nonexistent",
}

pytestmark = pytest.mark.usefixtures("rabbitmq")


@pytest.fixture(scope="module")
def shared_node(rabbitmq: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    node = BrokerNode(tmp_path_factory.mktemp("shared") / "a folder")
    yield node
    node.kill()


@pytest.fixture
def node(shared_node: BrokerNode, monkeypatch: pytest.MonkeyPatch) -> BrokerNode:
    """A node that runs: started on the first use, and again after a test that has ended it."""
    if private_node.running(shared_node.data_dir) is None:
        for name, value in OTHER_SETTINGS.items():
            monkeypatch.setenv(name, value)
        shared_node.start()
    return shared_node


@pytest.fixture(scope="module")
def other_node(rabbitmq: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerNode]:
    """A second one, whose first start is killed before RabbitMQ is ready; it runs after `restarted`."""
    node = BrokerNode(tmp_path_factory.mktemp("other"))
    with pytest.raises(BrokerNodeError, match="not ready after 0 s"):
        node.start(timeout=0)
    half_made = node.data_dir / "mnesia" / NODE_NAME / "schema.DAT"
    half_made.parent.mkdir(parents=True, exist_ok=True)
    half_made.write_text("half made")
    yield node
    node.kill()


def restarted(node: BrokerNode) -> BrokerNode:
    if private_node.running(node.data_dir) is None:
        node.start()
    return node


def connect(info: NodeInfo) -> amqp.Connection:
    return amqp.Connection(f"127.0.0.1:{info.port}", connect_timeout=30, read_timeout=30)


def test_start_returns_when_amqp_and_management_answer(node: BrokerNode) -> None:
    """As soon as `start` returns, guest can log in over AMQP, and management and metrics are served."""
    with connect(node.info) as connection:
        assert connection.server_properties["product"] == "RabbitMQ"
    for url in (node.management_url, node.info.metrics_url):
        with urllib.request.urlopen(url, timeout=60) as page:
            assert page.status == 200
    assert node.url == f"amqp://guest:guest@127.0.0.1:{node.info.port}//"


def test_listens_on_loopback_only(node: BrokerNode) -> None:
    """No process of the node listens on an address that another machine can reach."""
    listening = {
        (process.name(), connection.laddr.port, connection.laddr.ip)
        for process in processes(node.info)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    info = node.info
    assert {(name, port) for name, port, _ in listening} == {
        ("beam.smp", info.port),
        ("beam.smp", info.management_port),
        ("beam.smp", info.metrics_port),
        ("beam.smp", info.distribution_port),
        ("epmd", info.epmd_port),
    }
    assert [ip for _, _, ip in listening if not ip_address(ip).is_loopback] == []


def test_settings_for_another_rabbitmq_do_not_reach_it(node: BrokerNode) -> None:
    """A node keeps its own name whatever the caller's environment says of another RabbitMQ."""
    assert node.ctl("eval", "node().").strip().strip("'") == NODE_NAME
    assert (
        psutil.Process(node.pid)
        .environ()
        .keys()
        .isdisjoint({"ERL_FLAGS", "NOTIFY_SOCKET", "RABBITMQ_SERVER_START_ARGS"})
    )


def test_ctl_says_in_one_line_why_it_failed(node: BrokerNode) -> None:
    """A command that rabbitmqctl does not know is an error of one line that names it."""
    with pytest.raises(BrokerNodeError, match=r"nonsense.* not found") as caught:
        node.ctl("nonsense")
    assert "\n" not in str(caught.value)


def test_second_run_on_a_folder_is_refused(node: BrokerNode) -> None:
    """A second node on the same folder is refused with one line that says where the first one is."""
    with pytest.raises(BrokerNodeError) as caught:
        BrokerNode(node.data_dir).start()
    message = str(caught.value)
    assert f"already running in {node.data_dir} at amqp://127.0.0.1:{node.info.port}//" in message
    assert "proj broker stop" in message
    assert "\n" not in message


def test_a_first_start_that_was_killed_is_begun_anew(other_node: BrokerNode) -> None:
    """Half-made tables of a first start that was killed do not keep the next start from working."""
    with connect(restarted(other_node).info) as connection:
        assert connection.server_properties["product"] == "RabbitMQ"


@pytest.mark.parametrize("option", ["port", "management_port", "metrics_port"])
def test_taken_port_is_named(option: str, tmp_path: Path) -> None:
    """A port that another program listens on is named in an error of one line, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        node = BrokerNode(tmp_path, **{option: taken})
        with pytest.raises(BrokerNodeError, match=f"port {taken} on 127.0.0.1 is in use") as caught:
            node.start()
    assert f"--{option.replace('_', '-')} 0" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert private_node.running(tmp_path) is None


def test_missing_rabbitmq_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without RabbitMQ the error's one line has the commands for Debian, macOS and Docker."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(private_node, "SERVER_DIRS", (str(tmp_path / "none"),))
    with pytest.raises(BrokerNodeError) as caught:
        BrokerNode(tmp_path / "data").start()
    message = str(caught.value)
    for command in ("apt-get install rabbitmq-server", "brew install rabbitmq", "docker run"):
        assert command in message
    assert "\n" not in message


def test_wrappers_on_path_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script that only calls the real one, as Debian has in /usr/sbin, is not taken for RabbitMQ."""
    lone, linked, real = (tmp_path / name for name in ("lone", "linked", "real"))
    for folder in (lone, linked, real):
        folder.mkdir()
    for script in (
        lone / "rabbitmq-server",
        real / "rabbitmq-script-wrapper",
        real / "rabbitmq-server",
        real / "rabbitmq-env",
    ):
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
    (linked / "rabbitmq-server").symlink_to(real / "rabbitmq-script-wrapper")
    monkeypatch.setattr(private_node, "SERVER_DIRS", (str(real),))
    monkeypatch.setenv("PATH", f"{lone}{os.pathsep}{linked}")
    assert private_node.find_server_dir() == real.resolve()
    for wrapper in (lone, linked):
        with pytest.raises(BrokerNodeError, match="not found in"):
            private_node.find_server_dir(wrapper)


def test_two_nodes_run_side_by_side(node: BrokerNode, other_node: BrokerNode) -> None:
    """Two nodes on two folders know nothing of each other."""
    other = restarted(other_node)
    with connect(other.info) as connection:
        connection.channel().queue_declare("only-here", durable=True, auto_delete=False)
    with connect(node.info) as connection, pytest.raises(amqp.exceptions.NotFound):
        connection.channel().queue_declare("only-here", passive=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_killing_the_guard_takes_the_node_down(node: BrokerNode, other_node: BrokerNode) -> None:
    """When the guard is killed with SIGKILL, RabbitMQ, its helpers and epmd end at once, no other node."""
    other = restarted(other_node)
    found = processes(other.info)
    os.kill(other.info.guard_pid, signal.SIGKILL)
    assert left(found) == []
    assert private_node.running(other.data_dir) is None
    assert private_node.answers(node.info)


def test_message_survives_an_orderly_stop(node: BrokerNode) -> None:
    """A persistent message in a durable queue is there after a stop and a start, on the same ports."""
    before = node.info
    with connect(before) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", durable=True, auto_delete=False)
        channel.confirm_select()
        channel.basic_publish_confirm(amqp.Message("still here", delivery_mode=2), routing_key="kept")
    found = processes(before)
    log_start = before.log.stat().st_size
    node.stop()
    assert alive(found) == []
    assert STOPPED in logged_since(before, log_start)
    node.start()
    assert node.url == before.url
    assert node.management_url == before.management_url
    with connect(node.info) as connection:
        assert connection.channel().basic_get("kept", no_ack=True).body == "still here"


def test_killing_rabbitmq_leaves_nothing_behind(node: BrokerNode) -> None:
    """When RabbitMQ itself is killed, epmd and the guard end too, and `wait` says so."""
    found = processes(node.info)
    os.kill(node.pid, signal.SIGKILL)
    with pytest.raises(BrokerNodeError, match="ended"):
        node.wait()
    assert left(found) == []
    assert private_node.running(node.data_dir) is None


def failed_start(node: BrokerNode) -> str:
    """The message of the error, which is in one line and followed by the path of the log."""
    with pytest.raises(BrokerNodeError) as caught:
        node.start()
    assert str(caught.value) == f"{caught.value.message} (its log is {node.info.log})"
    assert "\n" not in caught.value.message
    assert private_node.running(node.data_dir) is None
    return caught.value.message


def test_a_node_that_cannot_start_says_why(tmp_path: Path) -> None:
    """When RabbitMQ ends during its start, the error has the reason from its log."""
    assert "nonsense.key" in failed_start(BrokerNode(tmp_path, extra_config="nonsense.key = 1"))


def test_a_reason_under_a_heading_is_told(tmp_path: Path) -> None:
    """When the first error in RabbitMQ's log is only a heading, the line under it is told too, cut short."""
    schema = tmp_path / "mnesia" / NODE_NAME / "schema.DAT"
    schema.parent.mkdir(parents=True)
    schema.write_text("not from a start of ours that was killed, so it is kept")
    message = failed_start(BrokerNode(tmp_path))
    # RabbitMQ 4.3 ends before it has a logger: there it is the last line.
    assert re.search(r"Exception during startup: \S.*Cannot read schema|Mnesia\(.*ERROR", message)
    assert len(message) < 300


def test_runs_as_an_ordinary_user() -> None:
    """A user who is not root can run a node, and nothing of it stays: as `nobody`, if root tests."""
    program = """if True:
        import os, sys
        from pathlib import Path
        from proj.private_node.node import BrokerNode

        assert os.geteuid() != 0
        node = BrokerNode(Path(sys.argv[1]))
        node.start()
        print(os.stat(f"/proc/{node.pid}").st_uid if os.path.isdir("/proc") else os.geteuid(), flush=True)
        sys.stdin.read()
        node.kill()
    """
    identity: dict[str, Any] = {}
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folder is closed to others
        # All that it imports; where the tests are, nobody may be allowed to read.
        for package in (PACKAGE, Path(amqp.__file__).parent, Path(vine.__file__).parent):
            shutil.copytree(package, Path(folder, package.name))
        if os.geteuid() == 0:
            identity = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            for path in (Path(folder), *Path(folder).rglob("*")):
                shutil.chown(path, "nobody")
            python = next(filter(_nobody_can_run, (sys.executable, "/usr/bin/python3")), "")
            if not python:
                missing("a Python that nobody may run")
        with subprocess.Popen(
            [python, "-c", program, folder],
            cwd=folder,
            env={"PYTHONPATH": folder, "PATH": os.environ["PATH"]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **identity,
        ) as owner:
            assert owner.stdout is not None
            user = owner.stdout.readline()
            info = private_node.running(Path(folder)) if user else None
            found = processes(info) if info else []
            _, stderr = owner.communicate(timeout=COMMAND_TIMEOUT)
    assert owner.returncode == 0, stderr
    assert int(user) != 0
    assert found
    assert alive(found) == []


def _nobody_can_run(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", check], user="nobody", cwd="/").returncode == 0
    except OSError:
        return False
