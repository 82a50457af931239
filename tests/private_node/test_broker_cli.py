"""`proj broker`: a node in the foreground or in the background, and how both end."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest

from proj.errors import ExitCode
from proj.private_node import node
from tests.lib import fork_server
from tests.lib.bundle import BIN, COMMAND_TIMEOUT
from tests.lib.node_processes import STOPPED, alive, left, logged_since, processes

REPOSITORY = Path(__file__).parents[2]

#: No other node is in the way of one that is told this.
FREE_PORTS = ("--port", 0, "--management-port", 0, "--metrics-port", 0)

pytestmark = pytest.mark.usefixtures("rabbitmq")


def start_cli(*arguments: object, closed: str = "", **env: str) -> subprocess.Popen[str]:
    """In a process group of its own."""
    command = [sys.executable, "-m", "proj", "broker", *map(str, arguments)]
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
        cwd=REPOSITORY,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def cli(*arguments: object, **env: str) -> tuple[int, str, str]:
    command = [str(BIN / "proj"), "broker", *map(str, arguments)]
    done = fork_server.run(command, cwd=REPOSITORY, env=os.environ | env, timeout=COMMAND_TIMEOUT)
    return done.returncode, done.stdout, done.stderr


@dataclass(frozen=True)
class Run:
    """A `proj broker run` that was ended by a signal."""

    printed: dict[str, str]
    exit_code: int
    stderr: str
    left: list[psutil.Process]
    #: What RabbitMQ logged after the signal.
    log: str


def run_and_end(end: signal.Signals, folder: Path) -> Run:
    with start_cli("run", "--dir", folder, *FREE_PORTS) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(7)]
            assert all(lines), process.communicate(timeout=COMMAND_TIMEOUT)
            info = node.running(folder)
            assert info is not None
            found = processes(info)
            log_start = info.log.stat().st_size
            os.killpg(process.pid, end)  # to the whole group, as a terminal does for Ctrl-C
            _, stderr = process.communicate(timeout=COMMAND_TIMEOUT)
        finally:
            process.kill()
    stayed = left(found) if end == signal.SIGKILL else alive(found)
    return Run(dict(map(str.split, lines)), process.returncode, stderr, stayed, logged_since(info, log_start))


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, ExitCode.DONE),
        (signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_run_leaves_nothing_behind(end: signal.Signals, exit_code: int, tmp_path: Path) -> None:
    """However `proj broker run` is ended, even by SIGKILL, its node stops in good order and all is gone.

    It has printed the AMQP and management URLs, the data folder and the log, no password.
    """
    run = run_and_end(end, tmp_path)
    assert run.exit_code == exit_code
    assert run.left == []
    assert "Traceback" not in run.stderr
    assert STOPPED in run.log
    printed = run.printed
    assert list(printed) == ["state", "amqp", "management", "metrics", "data", "log", "pid"]
    assert printed["amqp"].startswith("amqp://127.0.0.1:")
    assert printed["management"].startswith("http://127.0.0.1:")
    assert printed["metrics"].startswith("http://127.0.0.1:")
    assert Path(printed["log"]).parent == Path(printed["data"])


def test_start_status_stop(tmp_path: Path) -> None:
    """`start` leaves a node that `status` finds and `stop` ends; both are right when there is none."""
    # In a folder of the user's home, written as no shell expands it.
    cli_at_home = partial(cli, HOME=str(tmp_path))
    in_folder, folder = "--dir=~/node", tmp_path / "node"
    code, stdout, _ = cli_at_home("status", in_folder)
    assert (code, stdout.split()[:2]) == (ExitCode.UNREACHABLE, ["state", "stopped"])
    arguments = ("start", in_folder, *FREE_PORTS)
    # Without a stdin, whose number the lock of the node must not get.
    with start_cli(*arguments, closed="<&-", HOME=str(tmp_path)) as process:
        stdout, stderr = process.communicate(timeout=COMMAND_TIMEOUT)
    assert process.returncode == ExitCode.DONE, stderr
    info = node.running(folder)
    assert info is not None
    found = processes(info)
    try:
        assert stderr == f"Stop it with: proj broker stop --dir {folder}\n"
        assert f"amqp        {info.safe_url}\n" in stdout
        code, stdout, _ = cli_at_home("status", "--json", in_folder)
        assert code == ExitCode.DONE
        assert json.loads(stdout) == {
            "state": "running",
            "amqp": info.safe_url,
            "management": info.management_url,
            "metrics": info.metrics_url,
            "data": str(folder),
            "log": str(info.log),
            "pid": info.pid,
        }
        code, stdout, stderr = cli_at_home(*arguments)
        assert (code, stdout) == (ExitCode.UNREACHABLE, "")
        assert stderr.startswith("Error: a node is already running in")
        assert stderr.count("\n") == 1
    finally:
        code, _, stderr = cli("stop", "--dir", folder)
    assert (code, stderr) == (ExitCode.DONE, f"Stopped the node in {folder}.\n")
    assert alive(found) == []
    assert cli_at_home("stop", in_folder) == (ExitCode.DONE, "", f"No node is running in {folder}.\n")
