"""Tests get virtual hosts that others have used; what these left must never meet them."""

from pathlib import Path
from urllib.parse import quote

from proj.private_node.node import BrokerNode
from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.vhosts import VirtualHosts, declared
from tests.lib.waiting import eventually


def test_virtual_host_is_lent_again_without_its_messages(node: BrokerNode, tmp_path: Path) -> None:
    """Messages that wait, that were given back by a lost consumer, or that are delayed, are gone."""
    vhosts = VirtualHosts(node, "again")
    with vhosts.lend(tmp_path) as bundle:
        first = bundle.vhost
        dead.publish_task(bundle, "dead", 1, 2, expiration="0")
        dead.await_count(bundle, 1)
        bundle.enqueue("add", "1", "2", "--count", "3")
        bundle.enqueue("add", "1", "2", "--countdown", "3000")
        with bundle.channel() as channel:
            assert channel.basic_get("proj.tasks")

    used = eventually("it has rested", vhosts.rested)
    assert used
    assert used.vhost == first
    with used as bundle:
        assert {name: bundle.depth(name) for name in ("proj.tasks", "proj.dead", "celery_delayed_11")} == {
            "proj.tasks": 0,
            "proj.dead": 0,
            "celery_delayed_11": 0,
        }


def _queue(bundle: Bundle) -> None:
    with bundle.channel() as channel:
        channel.queue_declare("more", durable=True, auto_delete=False)


def _no_queue(bundle: Bundle) -> None:
    with bundle.channel() as channel:
        channel.queue_delete("celery_delayed_3")


def _binding(bundle: Bundle) -> None:
    with bundle.channel() as channel:
        channel.queue_bind("proj.dead", "proj", "more")


def _rights(bundle: Bundle) -> None:
    rights = {"configure": "", "write": ".*", "read": ".*"}
    bundle.management("PUT", f"permissions/{quote(bundle.vhost)}/guest", rights)


def _policy(bundle: Bundle) -> None:
    policy = {"pattern": "x", "definition": {"max-length": 1}}
    bundle.management("PUT", f"policies/{quote(bundle.vhost)}/more", policy)


def _operator_policy(bundle: Bundle) -> None:
    policy = {"pattern": "x", "definition": {"max-length": 1}}
    bundle.management("PUT", f"operator-policies/{quote(bundle.vhost)}/more", policy)


def _limit(bundle: Bundle) -> None:
    bundle.management("PUT", f"vhost-limits/{quote(bundle.vhost)}/max-connections", {"value": 1000})


def _user(bundle: Bundle) -> None:
    name = f"user-{bundle.vhost}"
    bundle.management("PUT", f"users/{quote(name)}", {"password": "s3cret", "tags": ""})
    rights = {"configure": "", "write": ".*", "read": ".*"}
    bundle.management("PUT", f"permissions/{quote(bundle.vhost)}/{quote(name)}", rights)


def _no_exchange(bundle: Bundle) -> None:
    with bundle.channel() as channel:
        channel.exchange_delete("proj.dead")


def _other_queue(bundle: Bundle) -> None:
    with bundle.channel() as channel:
        channel.queue_delete("proj.tasks")
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False)


def _no_binding(bundle: Bundle) -> None:
    with bundle.channel() as channel:
        channel.exchange_unbind("celery_delayed_4", "celery_delayed_5", "*." * 22 + "0.#")


CHANGES = (
    _queue, _no_queue, _other_queue, _no_exchange, _binding, _no_binding,
    _policy, _operator_policy, _user, _rights, _limit,
)  # fmt: skip


def test_changed_virtual_host_is_put_back(node: BrokerNode, tmp_path: Path) -> None:
    """Whatever a test adds, takes away or configures is noticed, and is as before for the next one."""
    vhosts = VirtualHosts(node, "changed")
    with vhosts.lend(tmp_path) as bundle:
        first = bundle.vhost
        seen = [declared(bundle)]
        for change in CHANGES:
            change(bundle)
            assert declared(bundle) not in seen, change.__name__
            seen.append(declared(bundle))

    used = eventually("it has rested", vhosts.rested)
    assert used
    assert used.vhost == first
    assert declared(used) == seen[0]
    with used as bundle, bundle.channel() as channel:
        dead.publish_task(bundle, "dead", 1, 2, expiration="0")
        dead.await_count(bundle, 1)
        bundle.enqueue("add", "1", "2", "--countdown", "1")
        eventually("it has passed the delay queues", lambda: channel.basic_get("proj.tasks"))


def test_virtual_host_that_cannot_be_put_back_is_lent_to_nobody(node: BrokerNode, tmp_path: Path) -> None:
    """It is not as new: the next test gets another."""
    vhosts = VirtualHosts(node, "spoilt")
    with vhosts.lend(tmp_path) as bundle:
        rights = {"exchange": "proj", "write": "", "read": ".*"}
        bundle.management("PUT", f"topic-permissions/{quote(bundle.vhost)}/guest", rights)
    assert vhosts.rested() is None
    assert vhosts.resting == []


def test_virtual_host_that_a_program_is_connected_to_is_lent_to_nobody(
    node: BrokerNode, tmp_path: Path
) -> None:
    """What it publishes would be the next test's. Once it has ended, another test may have it."""
    vhosts = VirtualHosts(node, "connected")
    with vhosts.lend(tmp_path) as bundle:
        pass
    with bundle.channel():
        eventually("the broker counts it", lambda: bundle.of_vhost("vhosts", "/connections"))
        assert vhosts.rested() is None
    eventually("it is as new", vhosts.rested)
