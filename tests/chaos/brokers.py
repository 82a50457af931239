"""The broker of a run: a private node, a cluster of them, or one that somebody else runs."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from proj.private_node.cluster import Cluster
from proj.private_node.guard import NodeInfo
from proj.private_node.node import BrokerNode

#: Seconds between two heartbeats that a node asks for: it gives up a silent program after twice as many.
HEARTBEAT: Final = 5

#: Lines of `rabbitmq.conf` for every node.
CONFIG: Final = f"heartbeat = {HEARTBEAT}\ncollect_statistics_interval = 1000"

#: The virtual host of a run on nodes of its own.
VHOST: Final = "chaos"


@dataclass(frozen=True)
class Broker:
    """Where the programs of a stage connect to."""

    #: One, or three that are a cluster; the first one answers what is asked of the management API.
    nodes: list[BrokerNode]
    vhost: str = VHOST
    #: The URL of a broker that somebody else runs.
    elsewhere: str = ""

    @property
    def private(self) -> bool:
        return not self.elsewhere

    def url(self, port: int | None = None) -> str:
        """The URL of all nodes; or that of one at this port, where something stands before it."""
        if self.elsewhere:
            if port is None:
                return self.elsewhere
            parts = urlsplit(self.elsewhere)
            login = parts.netloc.rpartition("@")[0]
            return parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()
        ports = [port] if port else [node.info.port for node in self.nodes]
        return ";".join(f"amqp://guest:guest@127.0.0.1:{each}/{quote(self.vhost, safe='')}" for each in ports)


@contextmanager
def started(count: int = 1, config: str = "") -> Iterator[Broker]:
    """A broker of so many nodes, on a disk as users have it; all is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        private: BrokerNode | Cluster
        if count > 1:
            private = Cluster(Path(folder) / "cluster", count, extra_config=f"{CONFIG}\n{config}")
        else:
            private = BrokerNode(Path(folder) / "node", extra_config=f"{CONFIG}\n{config}")
        try:
            private.start()
            yield Broker(private.nodes if isinstance(private, Cluster) else [private])
        finally:
            private.kill()


class _Elsewhere(BrokerNode):
    """A broker that this run neither starts nor ends."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(Path(tempfile.gettempdir()) / "nowhere", port)
        self._at = (host, port)

    @property
    def info(self) -> NodeInfo:
        return NodeInfo(self.data_dir, self._at[1], 15672, 0, 0, 0)


def elsewhere(url: str) -> Broker:
    """The broker of this URL."""
    parts = urlsplit(url)
    node = _Elsewhere(parts.hostname or "localhost", parts.port or 5672)
    vhost = unquote(parts.path.removeprefix("/")) or "/"
    return Broker([node], vhost, parts._replace(path=f"/{quote(vhost, safe='')}").geturl())
