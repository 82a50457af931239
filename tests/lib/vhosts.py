"""Virtual hosts that go from test to test: to declare the topology in a new one costs 0.3 s of CPU.

A test gets one in which the topology is declared and all queues are empty, as after a worker's first start.
What a test has left otherwise than it found it is lent to nobody, and stays until the node ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle, shared_vhost
from tests.lib.erlang import evaluate

#: How often messages are looked for that are on their way: a consumer was lost, or they are dead letters.
_LOOKS = 20

#: What Celery's programs declare in passing, and its type. Their queues go with their connections.
PASSING = {"celeryev": "topic", "celery.pidbox": "fanout", "reply.celery.pidbox": "direct"}

#: How many quorum queues hold something, or are consumed; they are purged. Those that are being dead-lettered
#: are in no other count.
_PURGE = """
    length([
        rabbit_amqqueue:purge(Queue) || Queue <- rabbit_amqqueue:list(<<"{vhost}">>),
        begin
            {{ok, {{_, Seen}}, _}} = ra:leader_query(amqqueue:get_pid(Queue), {{rabbit_fifo, overview, []}}),
            0 < lists:sum([maps:get(What, Seen, 0) || What <- [
                num_messages, num_consumers, num_discarded, num_discard_checked_out
            ]])
        end
    ])
"""


class VirtualHosts:
    """Those of one node, for the tests of one process."""

    def __init__(self, node: BrokerNode, name: str) -> None:
        self._node = node
        self._name = shared_vhost(name)
        self._made = 0
        #: The one that has rested longest comes first.
        self.resting: list[Bundle] = []
        self._usual: Any = None

    @contextmanager
    def lend(self, folder: Path) -> Iterator[Bundle]:
        """A bundle of a test's own, whose virtual host has the topology and no message."""
        used = self.rested()
        self._made += not used
        vhost = used.vhost if used else f"{self._name}-{self._made}"
        with Bundle(self._node, vhost=vhost, folder=folder) as bundle:
            if not used:
                bundle.declare()
                self._usual = self._usual or declared(bundle)
            yield bundle
        self.resting.append(bundle)

    def rested(self) -> Bundle | None:
        """One that is as new, and rests no more."""
        for bundle in self.resting.copy():
            # Else a program that has just ended, or still runs.
            if not bundle.of_vhost("vhosts", "/connections"):
                self.resting.remove(bundle)
                if declared(bundle) == self._usual and self._is_empty(bundle.vhost):
                    return bundle
        return None

    def _is_empty(self, vhost: str) -> bool:
        """Whether no message is left, after some purges."""
        found = (evaluate(self._node, _PURGE.format(vhost=vhost)) for _ in range(_LOOKS))
        # Twice: a message may move from a queue that is looked at late to one that was looked at before.
        return any(one == another == "0" for one, another in pairwise(found))


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
