"""Virtual hosts that go from test to test.

To declare the topology in a new one costs 0.2 s of CPU. To make one costs RabbitMQ a transaction for each
exchange of the node: 0.1 s among a hundred others. So one in which nothing was declared is lent as new again.

A test gets one in which the topology is declared and all queues are empty, as after a worker's first start.
What a test has added is deleted. One that is not as new then is lent to nobody, and stays until the end.
So does one in which a queue was deleted, though it may be declared again: delayed messages once did not come
to such a queue. Why is not known; what forwards them may know the old queue only. And so does one that had a
policy: on RabbitMQ 3.10 a queue that was full when its limit was cleared refuses delayed messages for ever
(docs/queues.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import quote

from proj.private_node.node import BrokerNode
from tests.lib.bundle import Bundle, shared_vhost
from tests.lib.erlang import evaluate

#: How often messages are looked for that are on their way: a consumer was lost, or they are dead letters.
_LOOKS = 10

#: What Celery's programs declare in passing, and its type. Their queues go with their connections.
PASSING = {"celeryev": "topic", "celery.pidbox": "fanout", "reply.celery.pidbox": "direct"}

#: How many quorum queues hold something, or are consumed: they are purged. Those whose messages are being
#: dead-lettered are in no other count. And a number for which queues they are, and for the limits they obey.
#: Twice: a message may move from a queue that is looked at late to one that was looked at before.
_PURGE = """
    Limits = [delivery_limit, expires, max_bytes, max_length, msg_ttl, overflow_strategy],
    Look = fun() ->
        Seen = [
            begin
                Leader = amqqueue:get_pid(Queue),
                {{ok, {{_, Overview}}, _}} = ra:leader_query(Leader, {{rabbit_fifo, overview, []}}),
                {{Queue, Overview}}
            end || Queue <- rabbit_amqqueue:list(<<"{vhost}">>)
        ],
        {{
            length([
                rabbit_amqqueue:purge(Queue) || {{Queue, Overview}} <- Seen,
                0 < lists:sum([maps:get(What, Overview, 0) || What <- [
                    num_messages, num_consumers, num_discarded, num_discard_checked_out
                ]])
            ]),
            erlang:phash2(lists:sort([
                {{
                    ra_directory:uid_of(quorum_queues, element(1, amqqueue:get_pid(Queue))),
                    maps:with(Limits, maps:get(config, Overview))
                }}
                || {{Queue, Overview}} <- Seen
            ]))
        }}
    end,
    [Look(), Look()]
"""

#: What is deleted that a test has added, and what tells it from others: what would be in the way first.
_IN_THE_WAY: Final = {"vhost-limits": "limit", "permissions": "user"}
_DELETED: Final = {"queues": "name", "exchanges": "name"}

_Things = dict[str, list[dict[str, Any]]]


class VirtualHosts:
    """Those of one node, for the tests of one process."""

    def __init__(self, node: BrokerNode, name: str) -> None:
        self._node = node
        self._name = shared_vhost(name)
        self._made = 0
        #: The one that has rested longest comes first.
        self.resting: list[Bundle] = []
        #: Those that may still be empty.
        self.empty: list[Bundle] = []
        #: What is there without a declaration, and with the topology.
        self._nothing: _Things = {}
        self._usual: _Things = {}
        #: How the queues of each were when it was new.
        self._new: dict[str, str] = {}

    @contextmanager
    def lend(self, folder: Path) -> Iterator[Bundle]:
        """A bundle of a test's own, whose virtual host has the topology and no message."""
        used = self.rested()
        with Bundle(self._node, vhost=used.vhost if used else self._empty(), folder=folder) as bundle:
            if not used:
                bundle.declare()
                self._usual = self._usual or declared(bundle)
                self._new[bundle.vhost] = self._purged(bundle)
            yield bundle
        if not bundle.had_policy:
            self.resting.append(bundle)

    @contextmanager
    def lend_empty(self, folder: Path) -> Iterator[Bundle]:
        """A bundle of a test's own, in whose virtual host nothing was declared."""
        with Bundle(self._node, vhost=self._empty(), folder=folder) as bundle:
            self._nothing = self._nothing or everything(bundle)
            yield bundle
        self.empty.append(bundle)

    def rested(self) -> Bundle | None:
        """One that is as new, with the topology, and rests no more."""
        return next(filter(self._is_as_new, _quiet(self.resting)), None)

    def _empty(self) -> str:
        """The name of one that is empty, or is not there yet."""
        for bundle in _quiet(self.empty):
            if everything(bundle) == self._nothing:
                return bundle.vhost
        self._made += 1
        return f"{self._name}-{self._made}"

    def _is_as_new(self, bundle: Bundle) -> bool:
        """Whether it has what a new one has and no message, after what was added is deleted and purged."""
        found = declared(bundle)
        if found != self._usual:
            _delete_added(bundle, found, self._usual)
            if declared(bundle) != self._usual:
                return False
        new = self._new[bundle.vhost]
        return bool(new) and any(self._purged(bundle) == new for _ in range(_LOOKS))

    def _purged(self, bundle: Bundle) -> str:
        """How the queues were before they were purged; nothing when one does not answer."""
        with suppress(AssertionError):
            return evaluate(self._node, _PURGE.format(vhost=bundle.vhost))
        return ""


def _quiet(bundles: list[Bundle]) -> Iterator[Bundle]:
    """Take out one after the other, but those with a program that has just ended, or still runs."""
    for bundle in bundles.copy():
        if not bundle.of_vhost("vhosts", "/connections"):
            bundles.remove(bundle)
            yield bundle


def declared(bundle: Bundle) -> _Things:
    """All that is declared and configured in the virtual host, but in passing."""
    found = everything(bundle)
    found["exchanges"] = [each for each in found["exchanges"] if PASSING.get(each["name"]) != each["type"]]
    return found


def everything(bundle: Bundle) -> _Things:
    """All that is declared and configured in the virtual host."""
    found: _Things = bundle.of_vhost("definitions")
    del found["rabbit_version"]
    # They are below, and an empty one stays when the last limit is deleted.
    found["parameters"] = [each for each in found["parameters"] if each["component"] != "vhost-limits"]
    found["operator-policies"] = bundle.of_vhost("operator-policies")
    found["vhost-limits"] = [
        {"limit": limit, "value": value}
        for each in bundle.of_vhost("vhost-limits")
        for limit, value in each["value"].items()
    ]
    for kind in ("permissions", "topic-permissions"):
        found[kind] = [each | {"vhost": ""} for each in bundle.of_vhost("vhosts", f"/{kind}")]
    return {kind: sorted(things, key=repr) for kind, things in found.items()}


def _delete_added(bundle: Bundle, found: _Things, usual: _Things) -> None:
    """Delete the queues, exchanges, rights and limits that a test has added."""
    vhost = quote(bundle.vhost, safe="")

    def delete(kinds: dict[str, str]) -> None:
        for kind, key in kinds.items():
            for thing in found[kind]:
                if thing not in usual[kind]:
                    # What is gone already, or is a connection's own.
                    with suppress(HTTPError):
                        bundle.management("DELETE", f"{kind}/{vhost}/{quote(thing[key], safe='')}")

    delete(_IN_THE_WAY)
    for thing in usual["permissions"]:
        bundle.management("PUT", f"permissions/{vhost}/{thing['user']}", thing)
    delete(_DELETED)
