"""Virtual hosts that go from test to test: to declare the topology in a new one costs 0.4 s of CPU.

A test gets one in which the topology is declared and all queues are empty, as after a worker's first start.
Only what a test has left as it found it is lent again, after a rest in which the broker has counted its
messages anew. All else stays until the node ends, and a new virtual host takes its place.
"""

import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prometheus_client.parser import text_string_to_metric_families

from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle

#: Seconds of rest: a quorum queue counts its messages each 5 seconds, and says so in the broker's metrics.
#: Those that are being dead-lettered are in no other count.
REST = 6.0

#: What Celery's programs declare in passing, and its type. Their queues go with their connections.
PASSING = {"celeryev": "topic", "celery.pidbox": "fanout", "reply.celery.pidbox": "direct"}


@dataclass
class _Resting:
    bundle: Bundle
    since: float
    #: The work of each queue's process: what has changed since then has counted since then.
    work: dict[str, float]


class VirtualHosts:
    """Those of one node, for the tests of one process."""

    def __init__(self, node: BrokerNode, name: str) -> None:
        self._node = node
        self._name = name
        self._made = 0
        self.resting: list[_Resting] = []
        self._usual: Any = None

    @contextmanager
    def lend(self, folder: Path) -> Iterator[Bundle]:
        """A bundle of a test's own, whose virtual host has the topology and no message."""
        used = next(filter(self.is_rested, self.resting), None)
        if used:
            self.resting.remove(used)
        else:
            self._made += 1
        vhost = used.bundle.vhost if used else f"{self._name}-{self._made}"
        with Bundle(self._node, vhost=vhost, folder=folder) as bundle:
            if not used:
                bundle.declare()
                self._usual = self._usual or declared(bundle)
            yield bundle
        if declared(bundle) == self._usual:
            self._rest(bundle)

    def is_rested(self, resting: _Resting) -> bool:
        """Whether it is as new. Where messages are left, they are purged, and it rests once more."""
        if time.monotonic() < resting.since + REST:
            return False
        bundle = resting.bundle
        work, messages = _metrics(bundle)
        if any(work[queue] == resting.work.get(queue) for queue in work):
            return False  # a busy broker is late
        if bundle.of_vhost("vhosts", "/connections") or declared(bundle) != self._usual:
            self.resting.remove(resting)
            return False
        left = [queue for queue, count in messages.items() if count]
        if left:
            self.resting.remove(resting)
            _purge(bundle, left)
            self._rest(bundle)
        return not left

    def _rest(self, bundle: Bundle) -> None:
        work, messages = _metrics(bundle)
        # Usually it is these.
        _purge(bundle, {"proj.tasks", "proj.dead"} | {queue for queue, count in messages.items() if count})
        self.resting.append(_Resting(bundle, time.monotonic(), work))


def _purge(bundle: Bundle, queues: Any) -> None:
    with bundle.channel() as channel:
        for queue in queues:
            channel.queue_purge(queue)


def declared(bundle: Bundle) -> Any:
    """All that is declared and configured in the virtual host."""
    definitions = bundle.of_vhost("definitions")
    del definitions["rabbit_version"]
    definitions["exchanges"] = [
        each for each in definitions["exchanges"] if PASSING.get(each["name"]) != each["type"]
    ]
    definitions["operator_policies"] = bundle.of_vhost("operator-policies")
    definitions["limits"] = [each["value"] for each in bundle.of_vhost("vhost-limits")]
    for kind in ("permissions", "topic-permissions"):
        definitions[kind] = [each | {"vhost": ""} for each in bundle.of_vhost("vhosts", f"/{kind}")]
    return {kind: sorted(map(repr, things)) for kind, things in definitions.items()}


def _metrics(bundle: Bundle) -> tuple[dict[str, float], dict[str, float]]:
    """By queue: how much its process has worked, and its messages, of every kind."""
    url = f"{bundle.node.info.metrics_url}/detailed?family=queue_coarse_metrics&vhost={quote(bundle.vhost)}"
    with urllib.request.urlopen(url) as response:
        families = text_string_to_metric_families(response.read().decode())
    found: dict[str, dict[str, float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, {})[sample.labels.get("queue", "")] = sample.value
    return (
        found.get("rabbitmq_detailed_queue_process_reductions_total", {}),
        found.get("rabbitmq_detailed_queue_messages", {}),
    )
