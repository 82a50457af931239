"""`proj broker run --nodes 3`, and the application on it: one test, for a cluster costs 12 seconds of CPU."""

import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import psutil
import pytest

from proj.errors import ExitCode
from proj.private_node.guard import NodeInfo, read_info
from proj.private_node.node import BrokerNode, running
from tests.lib.bundle import COMMAND_TIMEOUT, Bundle
from tests.lib.erlang import evaluate
from tests.lib.findings import about, bad, doctor, follow
from tests.lib.node_processes import alive
from tests.lib.one_node import quick_folder
from tests.lib.waiting import eventually
from tests.private_node.test_broker_cli import FREE_PORTS, cli, start_cli

NAMES = ["proj1", "proj2", "proj3"]

pytestmark = pytest.mark.usefixtures("rabbitmq")


class _Member(BrokerNode):
    """A node of the cluster that the command runs."""

    @property
    def info(self) -> NodeInfo:
        found = read_info(self.data_dir)
        assert found, f"no node runs in {self.data_dir}"
        return found


def test_a_cluster_from_its_start_to_its_end(tmp_path: Path) -> None:
    """Three nodes are one broker: the application survives the loss of one, and Ctrl-C ends all of it."""
    with quick_folder() as folder, start_cli("run", "--dir", folder, "--nodes", 3, *FREE_PORTS) as process:
        try:
            printed = what_it_prints(process)
            nodes = [_Member(folder / name) for name in NAMES]
            assert printed["amqp"] == ";".join(node.info.safe_url for node in nodes)
            assert [printed[name].split(",")[0] for name in NAMES] == ["running"] * 3
            found = everything(folder, nodes)
            with Bundle(nodes[0], "cluster", tmp_path) as bundle:
                bundle.env["CELERY_BROKER_URL"] = ";".join(
                    bundle.url.replace(str(nodes[0].info.port), str(node.info.port)) for node in nodes
                )
                bundle.env["PROJ_MANAGEMENT_URL"] = printed["management"]
                bundle.declare()
                replicas_are_found_and_grown(bundle, nodes)
                one_node_is_lost(bundle, nodes)

            refused(folder)
            os.killpg(process.pid, signal.SIGINT)  # to the whole group, as a terminal does for Ctrl-C
            _, stderr = process.communicate(timeout=COMMAND_TIMEOUT)
        finally:
            process.kill()
        assert process.returncode == ExitCode.INTERRUPTED
        assert "Traceback" not in stderr
        assert alive(found) == []
        assert cli("status", "--dir", folder)[1].split()[:2] == ["state", "stopped"]


def what_it_prints(process: subprocess.Popen[str]) -> dict[str, str]:
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(8)]
    assert all(lines), process.communicate(timeout=COMMAND_TIMEOUT)
    printed = {name: value.strip() for name, _, value in (line.partition(" ") for line in lines)}
    assert list(printed) == ["state", "amqp", "management", "metrics", "data", *NAMES]
    return printed


def everything(folder: Path, nodes: list[_Member]) -> list[psutil.Process]:
    """All processes of the cluster. One epmd, in whose place no other is started, knows the three nodes."""
    epmd = running(folder)
    assert epmd is not None
    guard = psutil.Process(epmd.guard_pid)
    found = [guard, *guard.children(recursive=True)]
    for node in nodes:
        assert node.info.epmd_port == epmd.epmd_port
        guard = psutil.Process(node.info.guard_pid)
        found += [guard, *guard.children(recursive=True)]
    names = [process.name() for process in found]
    assert (names.count("epmd"), names.count("beam.smp")) == (1, 3)
    return found


def members(bundle: Bundle) -> set[int]:
    """How many replicas the queues have."""
    return {len(queue.get("members", ())) for queue in bundle.of_vhost("queues")}


def replicas_are_found_and_grown(bundle: Bundle, nodes: list[_Member]) -> None:
    """Queues that are on one node alone, as those that were declared before the others joined."""
    eventually("each queue has three", lambda: members(bundle) == {3})
    assert "replicas" not in [check for _, check in bad(doctor(bundle))]
    for node in nodes[1:]:
        evaluate(nodes[0], f"rabbit_quorum_queue:shrink_all('{node.info.name}')")
    eventually("each queue has one", lambda: members(bundle) == {1})

    finding = about(doctor(bundle), "replicas", "1 of 3 replicas", "and 27 more")
    assert finding["level"] == "warning"
    follow(bundle, finding)

    eventually("each queue has three", lambda: members(bundle) == {3})
    assert "replicas" not in [check for _, check in bad(doctor(bundle))]


def one_node_is_lost(bundle: Bundle, nodes: list[_Member]) -> None:
    """The one that all programs are connected to; each goes to another."""
    worker = bundle.worker(mingle=True).ready()
    bundle.enqueue("add", "1", "1", "--wait")
    lost, *others = nodes
    info = lost.info
    os.kill(info.guard_pid, signal.SIGUSR1)
    eventually("its node is gone", lambda: running(info.data_dir) is None)

    def executed(number: int) -> bool:
        done = bundle.proj("enqueue", "add", str(number), "1", "--wait", "--timeout=60")
        # While the queue elects its next leader, it refuses.
        assert (done.returncode, done.stdout) == (0, f"{number + 1}\n") or "refused" in done.stderr, done
        return done.returncode == 0

    for number in range(3):
        eventually("it is executed", partial(executed, number))
    bundle.worker("-n", "new@here", mingle=True, log="new.log").ready().stop()
    bundle.node = others[0]  # for what the test itself asks of the management API
    eventually("the cluster knows", lambda: sum(n["running"] for n in bundle.management("GET", "nodes")) == 2)
    finding = about(doctor(bundle), "nodes", "node proj1@localhost is not running")
    assert finding["level"] == "error"
    shown = bundle.proj("queues", "--json")
    assert (shown.returncode, '"management"' in shown.stdout) == (0, True), shown
    code, stdout, _ = cli("status", "--dir", info.data_dir.parent)
    assert (code, stdout.split()[:2]) == (ExitCode.UNREACHABLE, ["state", "degraded"])
    worker.stop()


def refused(folder: Path) -> None:
    """The folder of a cluster is no single node's, and is in use."""
    for arguments, words in (
        (["run"], "holds a cluster of 3 nodes (start it with --nodes 3"),
        (["start", "--nodes", 3, *FREE_PORTS], f"a broker is already running in {folder}"),
    ):
        code, _, stderr = cli(*arguments, "--dir", folder)
        assert (code, words in stderr, stderr.count("\n")) == (ExitCode.UNREACHABLE, True, 1), stderr
