"""Runs a cluster of private nodes on this machine, for development and tests.

One guard has the epmd through which the nodes find each other, and each node has a guard of its own. A node
that is killed takes nothing from the others, and all of them end with their owner.
"""

import fnmatch
import os
import shlex
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from proj.errors import BrokerNodeError
from proj.private_node import guard
from proj.private_node.guard import POLL_INTERVAL, Guard, NodeInfo
from proj.private_node.node import (
    START_TIMEOUT,
    BrokerNode,
    find_epmd,
    find_server_dir,
    stop_running,
    write_cookie,
)
from proj.private_node.ports import Claims
from proj.rabbitmq.management import Api, Management

#: Marker file of a cluster whose first start has not completed.
_UNFINISHED: Final = "first-start"

#: Settings of a node, which is told of itself and of the first one. The others start when the first is ready,
#: so that none can miss it and start alone. `rabbitmqctl join_cluster` needs four commands a node, with an
#: Erlang machine each.
_CONFIG: Final = """
cluster_formation.peer_discovery_backend = classic_config
{nodes}
# Before 4.3: a node without a majority closes its connections, so that clients go to another one.
cluster_partition_handling = pause_minority
"""


class Cluster:
    """RabbitMQ nodes that are one broker, until `stop`, or until the process that started them ends.

    The first node has the given ports, and the others the next ones; 0 picks free ones at the first start.
    `extra_config` holds lines of `rabbitmq.conf`. A context manager that starts the nodes, and stops them
    cleanly. Not thread-safe.
    """

    def __init__(
        self,
        data_dir: Path,
        size: int = 3,
        port: int = 0,
        management_port: int = 0,
        metrics_port: int = 0,
        *,
        server_dir: Path | None = None,
        extra_config: str = "",
    ) -> None:
        self.data_dir = data_dir.absolute()
        #: Empty until the first start.
        self.nodes: list[BrokerNode] = []
        self._size = size
        self._ports = (port, management_port, metrics_port)
        self._epmd_port = 0
        self._server_dir = server_dir
        self._extra_config = extra_config
        self._guard: Guard | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URLs of all nodes, separated by `;`."""
        return ";".join(node.url for node in self.nodes)

    @property
    def management_url(self) -> str:
        return ";".join(node.management_url for node in self.nodes)

    def start(self, timeout: float = START_TIMEOUT) -> None:
        """Start the nodes, and return when all accept connections and have joined.

        Raises `BrokerNodeError` as a node does, or when the folder holds something else; then no process is
        left.
        """
        self.stop()  # what is left when a node has ended by itself
        check_folder(self.data_dir, self._size)
        try:
            self._start_epmd()
            new = self._discard_unfinished()
            self.nodes = self.nodes or self._new_nodes()
            first, *others = self.nodes
            first.launch()
            if new:
                first.await_ready(timeout)
            # All at once: after a stop each waits for those that stopped later, which have newer tables.
            for node in others:
                node.launch()
            for node in others if new else self.nodes:
                node.await_ready(timeout)
            if new:
                self._check_joined()
        except BaseException:
            self.stop()
            raise
        (self.data_dir / _UNFINISHED).unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop all nodes cleanly at the same time; returns when all processes have ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all nodes with SIGKILL, to inject a fault; returns when all processes have ended."""
        self._end(signal.SIGUSR1)

    def detach(self) -> None:
        """Let the cluster outlive this process; `stop` and `stop_broker` still stop it."""
        for node in self.nodes:
            node.detach()
        if self._guard:
            self._guard.detach()

    def wait(self) -> None:
        """Block while a node runs, then raise `BrokerNodeError`, since all have ended by themselves."""
        for node in self.nodes:
            with suppress(BrokerNodeError):
                node.wait()
        raise BrokerNodeError("the nodes of the cluster ended", f"their logs are in {self.data_dir}")

    def _start_epmd(self) -> None:
        """Start epmd, which holds the lock of the cluster's folder."""
        server_dir = find_server_dir(self._server_dir)
        lock = guard.lock(self.data_dir)
        if lock is None:
            hint = f"stop it with: proj broker stop --dir {shlex.quote(str(self.data_dir))}"
            raise BrokerNodeError(f"a broker is already running in {self.data_dir}", hint)
        claims = Claims()
        try:
            guard.discard_info(self.data_dir)  # of a guard that was killed
            (self._epmd_port,) = claims.claim((self._epmd_port, "--port"))
            info = NodeInfo(self.data_dir, 0, 0, 0, self._epmd_port, 0)
            self._guard = Guard(info, server_dir, lock, epmd=find_epmd(info, server_dir), node=False)
            while guard.read_info(self.data_dir) is None:
                if self._guard.ended:
                    raise BrokerNodeError("Erlang's epmd did not start", f"its log is {info.log}")
                time.sleep(POLL_INTERVAL)
        finally:
            os.close(lock)
            claims.release()

    def _discard_unfinished(self) -> bool:
        """Whether this is the first start. What is left of one that was killed is deleted.

        A node may take another for a member that has not joined yet, or the other way round. Such tables have
        held no message.
        """
        mark, found = self.data_dir / _UNFINISHED, folders(self.data_dir)
        if mark.exists():
            for folder in found:
                shutil.rmtree(folder)
        elif found:
            return False
        mark.touch()
        return True

    def _new_nodes(self) -> list[BrokerNode]:
        names = [f"proj{number}@localhost" for number in range(1, self._size + 1)]
        write_cookie(self.data_dir)
        nodes = []
        for number, name in enumerate(names):
            # RabbitMQ 4.3 fails on a name that is there twice.
            told = dict.fromkeys((names[0], name))
            lines = [f"cluster_formation.classic_config.nodes.{n} = {one}" for n, one in enumerate(told, 1)]
            folder = self.data_dir / name.partition("@")[0]
            folder.mkdir(mode=0o700, exist_ok=True)
            if not (folder / ".erlang.cookie").exists():
                shutil.copy2(self.data_dir / ".erlang.cookie", folder)
            nodes.append(
                BrokerNode(
                    folder,
                    *(port and port + number for port in self._ports),
                    server_dir=self._server_dir,
                    extra_config=_CONFIG.format(nodes="\n".join(lines)) + self._extra_config,
                    name=name,
                    epmd_port=self._epmd_port,
                )
            )
        return nodes

    def _check_joined(self) -> None:
        apis = [Api(node.management_url, "guest", "guest") for node in self.nodes]
        known = Management(apis, "/").get("nodes")
        if len(known) < self._size:
            alone = ", ".join({node.name for node in self.nodes} - {each["name"] for each in known})
            raise BrokerNodeError(f"not joined: {alone}", f"the logs are in {self.data_dir}")

    def _end(self, how: signal.Signals) -> None:
        for node in self.nodes:
            node.ask_to_end(how)
        for node in self.nodes:
            node.end(how)
        if self._guard:
            self._guard.end(how)
            self._guard = None


def check_folder(data_dir: Path, size: int) -> None:
    """Check that a broker of `size` nodes may use the folder. Raises `BrokerNodeError`."""
    found = len(folders(data_dir)) or (1 if (data_dir / "mnesia").exists() else size)
    unfinished = (data_dir / _UNFINISHED).exists()
    if found != size and not unfinished:
        what = f"a cluster of {found} nodes" if found > 1 else "a single node"
        raise BrokerNodeError(
            f"the folder {data_dir} holds {what}",
            f"start it with --nodes {found}, or choose another folder with --dir",
        )


def stop_broker(data_dir: Path) -> bool:
    """Stop the node or the cluster in a data folder cleanly, and wait for its end; False when none runs."""
    nodes, epmd = stop_running(*folders(data_dir)), stop_running(data_dir)
    return nodes or epmd


def folders(data_dir: Path) -> list[Path]:
    """The data folders of the nodes of a cluster, or none. Raises `BrokerNodeError`."""
    try:
        names = os.listdir(data_dir)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise guard.unusable(data_dir, error) from None
    return sorted(data_dir / name for name in fnmatch.filter(names, "proj[1-9]"))
