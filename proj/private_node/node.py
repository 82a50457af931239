"""Runs a private RabbitMQ node without root, for development and tests.

A guard (`proj.private_node.guard`) ends the node's processes with their owner. All that the node writes is in
its data folder.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from proj.errors import BrokerNodeError
from proj.private_node import guard, start_log
from proj.private_node.guard import (
    HOST,
    NODE_NAME,
    POLL_INTERVAL,
    PROBE_TIMEOUT,
    Guard,
    NodeInfo,
    environment,
)
from proj.private_node.ports import Claims

#: Seconds for a node to be ready; 4 to 10 on two idle cores, several times that on a busy machine.
START_TIMEOUT: Final = 180.0

#: Seconds for one `rabbitmqctl` command, which starts an Erlang machine: half a second to 5 on two cores.
CTL_TIMEOUT: Final = 120.0

#: Folders of RabbitMQ's scripts that are not on every PATH: Debian and Ubuntu, Homebrew on Apple and Intel
#: processors, the generic build and the Docker image.
SERVER_DIRS: Final = (
    "/usr/lib/rabbitmq/bin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/opt/homebrew/sbin",
    "/usr/local/opt/rabbitmq/sbin",
    "/usr/local/sbin",
    "/opt/rabbitmq/sbin",
)

#: Milliseconds until dead letters are forwarded again after a failure; the default is three minutes. A busy
#: RabbitMQ 4 may start its queues before its exchanges (its log: "Cannot forward any dead-letter messages"),
#: and expired messages wait so long; tried on 4.0.5. Only this format has the setting.
ADVANCED_CONFIG: Final = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 10000}]}]."

INSTALL_HINT: Final = (
    "install it with `sudo apt-get install rabbitmq-server` (Debian, Ubuntu) or `brew install rabbitmq`"
    " (macOS), set PROJ_RABBITMQ_DIR to the folder of its scripts, or run it in Docker:"
    " `docker run -p 5672:5672 -p 15672:15672 rabbitmq:4-management`"
)

#: Marker file of a data folder whose first start has not completed.
_UNFINISHED: Final = "first-start"


class BrokerNode:
    """A RabbitMQ node that runs until `stop`, or until the process that started it ends.

    Port 0 picks a free one at the first start, and keeps it. `extra_config` holds lines of `rabbitmq.conf`
    that override ours. A member of a cluster has a `name` of its own, and uses the epmd that listens on
    `epmd_port`. A context manager that starts the node, and stops it cleanly. For Linux and macOS; only Linux
    ends the node at once when the guard is killed. Not thread-safe.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        management_port: int = 0,
        metrics_port: int = 0,
        *,
        server_dir: Path | None = None,
        extra_config: str = "",
        name: str = NODE_NAME,
        epmd_port: int = 0,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.extra_config = extra_config
        self.name = name
        self._server_dir = server_dir
        self._epmd_port = epmd_port
        self._ports = (port, management_port, metrics_port)
        self._claims = Claims()
        self._launched = 0.0
        self._log_start = 0
        self._info: NodeInfo | None = None
        self._guard: Guard | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def info(self) -> NodeInfo:
        """The node at its last start. Raises `BrokerNodeError` before the first one."""
        if self._info is None:
            raise BrokerNodeError(f"the node on {self.data_dir} was not started")
        return self._info

    @property
    def url(self) -> str:
        return self.info.url

    @property
    def management_url(self) -> str:
        return self.info.management_url

    @property
    def pid(self) -> int:
        """Process id of RabbitMQ itself."""
        return self.info.pid

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the node, and return when it accepts AMQP, management and metrics connections.

        A node that was started before keeps its data and ports. Raises `BrokerNodeError` when RabbitMQ is
        missing, a port is in use, a node runs in the folder already, the node ends while it starts, or after
        `timeout` seconds; then none of its processes is left.
        """
        self.launch()
        self.await_ready(timeout)

    def launch(self) -> None:
        """Begin a start that `await_ready` completes. Raises `BrokerNodeError`."""
        self._launched = time.monotonic()
        if self._guard and self._guard.ended:
            self.stop()  # it ended by itself
        server_dir = self._server_dir = find_server_dir(self._server_dir)
        lock = _lock(self.data_dir)
        try:
            guard.discard_info(self.data_dir)  # of a guard that was killed
            info = self._info = self._claim()
            self._ports = (info.port, info.management_port, info.metrics_port)
            _write_config(info, self.extra_config)
            _discard_unfinished(info)
            self._log_start = info.log.stat().st_size if info.log.exists() else 0
            own_epmd = None if self._epmd_port else find_epmd(info, server_dir)
            self._guard = Guard(info, server_dir, lock, epmd=own_epmd)
        except BaseException:
            self._claims.release()
            raise
        finally:
            os.close(lock)

    def await_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until the node accepts connections, and stop it when it ends or `timeout` seconds are over.

        Raises `BrokerNodeError`.
        """
        try:
            self._await_ready(timeout)
        except BaseException:
            self.stop()
            raise
        finally:
            self._claims.release()

    def stop(self) -> None:
        """Stop the node cleanly, or kill it after `guard.STOP_TIMEOUT` seconds.

        Returns when all its processes have ended. Does nothing when it is not running.
        """
        self.end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill RabbitMQ with SIGKILL, to inject a fault; returns when all its processes have ended."""
        self.end(signal.SIGUSR1)

    def detach(self) -> None:
        """Let the node outlive this process; `stop` and `stop_running` still stop it."""
        if self._guard:
            self._guard.detach()

    def wait(self) -> None:
        """Block while the node runs, then raise `BrokerNodeError`, since it ended by itself."""
        if self._guard:
            self._guard.wait()
        raise BrokerNodeError(f"the node {self.info.safe_url} ended", f"its log is {self.info.log}")

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl -q` against this node, and return its output.

        Raises `BrokerNodeError` when it fails, or takes longer than `CTL_TIMEOUT` seconds.
        """
        server_dir = find_server_dir(self._server_dir)
        try:
            done = subprocess.run(
                [server_dir / "rabbitmqctl", "-q", *arguments],
                env=environment(self.info, server_dir),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=CTL_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise BrokerNodeError(f"rabbitmqctl {arguments[0]} took over {CTL_TIMEOUT:g} s") from None
        if done.returncode:
            output = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
            reason = output.removeprefix("Error:").strip().splitlines()[0]
            raise BrokerNodeError(f"rabbitmqctl {arguments[0]} failed: {reason}")
        return done.stdout

    def ask_to_end(self, how: signal.Signals) -> None:
        """Begin an end that `end` completes."""
        if self._guard:
            self._guard.ask_to_end(how)

    def end(self, how: signal.Signals) -> None:
        """Stop the node cleanly (SIGTERM) or kill it (SIGUSR1); returns when all its processes have ended."""
        if self._guard:
            self._guard.end(how)
            self._guard = None

    def _claim(self) -> NodeInfo:
        port, management_port, metrics_port = self._ports
        epmd = [] if self._epmd_port else [(0, "--port")]
        port, management_port, metrics_port, distribution_port, *own = self._claims.claim(
            (port, "--port"),
            (management_port, "--management-port"),
            (metrics_port, "--metrics-port"),
            (0, "--port"),
            *epmd,
        )
        (epmd_port,) = own or [self._epmd_port]
        return NodeInfo(
            self.data_dir, port, management_port, metrics_port, epmd_port, distribution_port, name=self.name
        )

    def _await_ready(self, timeout: float) -> None:
        assert self._guard is not None
        info = self.info
        hint = f"its log is {info.log}"
        # A virtual host that is created in a cluster while a member's start is not over never comes up on it.
        while not (answers(info) and start_log.is_complete(info.log, self._log_start)):
            if self._guard.ended:
                reason = start_log.reason(info.log, self._log_start)
                raise BrokerNodeError(f"the node ended while it started: {reason}", hint)
            if time.monotonic() > self._launched + timeout:
                raise BrokerNodeError(f"the node was not ready after {timeout:g} s", hint)
            time.sleep(POLL_INTERVAL)
        self._info = guard.read_info(info.data_dir) or info
        (info.data_dir / _UNFINISHED).unlink(missing_ok=True)


def running(data_dir: Path) -> NodeInfo | None:
    """The node that runs in a data folder, whichever process started it; None without one."""
    while guard.is_locked(data_dir):
        if info := guard.read_info(data_dir):
            return info
        time.sleep(POLL_INTERVAL)  # while a node starts or ends, there is no record yet, or none any more
    return None


def stop_running(*data_dirs: Path) -> bool:
    """Stop the nodes in these data folders cleanly, at the same time, and wait for their end.

    Returns False when none runs. Raises `BrokerNodeError` when a folder belongs to another user.
    """
    infos = [info for info in map(running, data_dirs) if info]
    for info in infos:
        with suppress(ProcessLookupError):
            os.kill(info.guard_pid, signal.SIGTERM)
    for info in infos:
        guard.await_unlocked(info.data_dir, info.guard_pid)
    return bool(infos)


def answers(info: NodeInfo) -> bool:
    """Whether the node has started: it accepts AMQP, management and metrics connections.

    A refused login counts as accepted, since the user guest can be deleted.
    """
    try:
        for port in (info.port, info.management_port, info.metrics_port):
            socket.create_connection((HOST, port), PROBE_TIMEOUT).close()
    except OSError:
        return False
    import amqp  # here, since its import takes longer than all the rest

    timeouts = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), PROBE_TIMEOUT)
    try:
        with amqp.Connection(f"{HOST}:{info.port}", **timeouts):
            return True
    except (amqp.exceptions.AccessRefused, amqp.exceptions.NotAllowed):
        return True
    except (OSError, amqp.exceptions.AMQPError):
        return False


def find_server_dir(server_dir: Path | None = None) -> Path:
    """The folder of RabbitMQ's scripts: `server_dir`, else the first one on PATH or in the usual folders.

    Skips Debian's wrapper on PATH, which refuses ordinary users. Raises `BrokerNodeError` with a hint how to
    install RabbitMQ.
    """
    on_path = os.environ.get("PATH", "").split(os.pathsep)
    for folder in [server_dir] if server_dir else map(Path, filter(None, [*on_path, *SERVER_DIRS])):
        script = (folder / "rabbitmq-server").resolve()
        # Debian keeps its wrapper beside the scripts and links to it: only the name distinguishes them.
        if script.name == "rabbitmq-server" and os.path.isfile(script.parent / "rabbitmq-env"):
            return script.parent
    where = f"in {server_dir}" if server_dir else "on PATH or in the usual folders"
    raise BrokerNodeError(f"RabbitMQ's scripts were not found {where}", INSTALL_HINT)


def find_epmd(info: NodeInfo, server_dir: Path) -> str:
    """Erlang's port mapper, on the node's PATH. Raises `BrokerNodeError`."""
    epmd = shutil.which("epmd", path=environment(info, server_dir)["PATH"])
    if epmd is None:
        raise BrokerNodeError("Erlang's epmd was not found on PATH", INSTALL_HINT)
    return epmd


def _write_config(info: NodeInfo, extra_config: str) -> None:
    conf = info.data_dir / "conf"
    (conf / "conf.d").mkdir(parents=True, exist_ok=True)
    ours = (
        f"listeners.tcp.1 = {HOST}:{info.port}",
        f"management.tcp.ip = {HOST}",
        f"management.tcp.port = {info.management_port}",
        f"prometheus.tcp.ip = {HOST}",
        f"prometheus.tcp.port = {info.metrics_port}",
        f"distribution.listener.interface = {HOST}",
        # Relative to the memory's size, the alarm would go off on laptops.
        "disk_free_limit.absolute = 50MB",
    )
    for name, text in {
        "rabbitmq.conf": "\n".join(ours),
        "conf.d/90-extra.conf": extra_config,
        "advanced.config": ADVANCED_CONFIG,
        "enabled_plugins": "[rabbitmq_management,rabbitmq_prometheus].",
        "rabbitmq-env.conf": "",
    }.items():
        (conf / name).write_text(text + "\n", encoding="utf-8")
    write_cookie(info.data_dir)


def write_cookie(data_dir: Path) -> None:
    """Write Erlang's cookie, the password between nodes and `rabbitmqctl`, unless there is one."""
    cookie = data_dir / ".erlang.cookie"
    if not cookie.exists():
        cookie.touch(0o600)
        cookie.write_text(os.urandom(16).hex(), encoding="ascii")
        cookie.chmod(0o400)


def _discard_unfinished(info: NodeInfo) -> None:
    # RabbitMQ 3.10 that is killed during its first start leaves incomplete tables, and never starts on them
    # again. Only tables of such a start are deleted; they have held no message.
    mark, tables = info.data_dir / _UNFINISHED, info.data_dir / "mnesia"
    if mark.exists():
        shutil.rmtree(tables, ignore_errors=True)
    elif not tables.exists():
        mark.touch()


def _lock(data_dir: Path) -> int:
    lock = guard.lock(data_dir)
    if lock is None:
        info = guard.read_info(data_dir)
        where = f" at {info.safe_url}" if info else ""
        hint = f"stop it with: proj broker stop --dir {shlex.quote(str(data_dir))}"
        raise BrokerNodeError(f"a node is already running in {data_dir}{where}", hint)
    return lock
