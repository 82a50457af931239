"""The private RabbitMQ that all contenders share, each in a virtual host of its own."""

import base64
import json
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import kombu

from benchmarks import program
from proj import queues
from proj.private_node.node import BrokerNode
from proj.rabbitmq import topology

#: Where our programs work: the only virtual host with the project's topology.
OURS: Final = "proj"

#: Seconds for an answer of the management API.
_TIMEOUT: Final = 60.0


@dataclass(frozen=True)
class Place:
    """A virtual host, and an empty folder."""

    url: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "BENCH_URL": self.url,
            "CELERY_BROKER_URL": self.url,
            "CELERY_RESULT_BACKEND": f"db+sqlite:///{self.folder}/results.sqlite3",
            "PROJ_STATE_DIR": str(self.folder / "state"),
            "PROJ_PUBLISH_TIMEOUT": "60",
        }

    def ours(self, module: str, *arguments: str, **env: str) -> program.Program:
        """One of our programs here."""
        return program.Program(program.OURS, f"ours.{module}", self.folder, self.env | env, arguments)

    def peer(self, module: str, *arguments: str, **env: str) -> program.Program:
        """One of the peers' programs here. Celery must not take its settings from our names."""
        env = {"BENCH_URL": self.url, "BENCH_BACKEND": self.env["CELERY_RESULT_BACKEND"], **env}
        return program.Program(program.PEERS, f"peers.{module}", self.folder, env, arguments)


def vhost_of(contender: str) -> str:
    """The name of a contender's virtual host."""
    return re.sub(r"\W+", "-", contender)


class Broker:
    """Virtual hosts of one node, made on first use, and emptied after each."""

    def __init__(self, node: BrokerNode, folder: Path) -> None:
        self.node = node
        self._folder = folder
        self._made: set[str] = set()

    @contextmanager
    def place(self, vhost: str) -> Iterator[Place]:
        """A virtual host without messages."""
        url = f"amqp://guest:guest@127.0.0.1:{self.node.info.port}/{vhost}"
        if vhost not in self._made:
            self.management("PUT", f"vhosts/{vhost}")
            self._made.add(vhost)
            if vhost == OURS:
                with kombu.Connection(url) as connection:
                    topology.declare(connection.default_channel, queues.Topology())
                    topology.declare_delays(connection, queues.Topology())
        with tempfile.TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as folder:
            yield Place(url, Path(folder))
        self._purge(vhost, url)

    def _purge(self, vhost: str, url: str) -> None:
        with kombu.Connection(url) as connection:
            for queue in self.management("GET", f"queues/{vhost}?columns=name,exclusive,auto_delete"):
                passing = queue.get("exclusive") or queue.get("auto_delete")
                if not passing and not queue["name"].startswith("celery_delayed_"):
                    connection.default_channel.queue_purge(queue["name"])

    def management(self, method: str, path: str) -> Any:
        request = urllib.request.Request(f"{self.node.management_url}/api/{path}", method=method)
        request.add_header("Authorization", "Basic " + base64.b64encode(b"guest:guest").decode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            return json.loads(response.read() or "null")

    @property
    def version(self) -> str:
        return str(self.management("GET", "overview")["rabbitmq_version"])
