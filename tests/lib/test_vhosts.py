"""Tests get virtual hosts that others have used; what these left must never meet them."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

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


def _policy_that_was_cleared(bundle: Bundle) -> None:
    _policy(bundle)
    bundle.management("DELETE", f"policies/{quote(bundle.vhost)}/more")


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


_ADDED = (_queue, _user, _rights, _limit)
_ELSE = (_no_queue, _other_queue, _no_exchange, _binding, _no_binding, _policy, _operator_policy)


def test_what_a_test_has_added_is_deleted(node: BrokerNode, tmp_path: Path) -> None:
    """It is noticed, and the next test finds nothing of it."""
    vhosts = VirtualHosts(node, "added")
    with vhosts.lend(tmp_path) as bundle:
        first = bundle.vhost
        seen = [declared(bundle)]
        for change in _ADDED:
            change(bundle)
            assert declared(bundle) not in seen, change.__name__
            seen.append(declared(bundle))

    used = eventually("it has rested", vhosts.rested)
    assert used
    assert used.vhost == first
    assert declared(used) == seen[0]


def test_virtual_host_that_is_changed_otherwise_is_lent_to_nobody(node: BrokerNode, tmp_path: Path) -> None:
    """Whatever else a test adds, takes away or configures is noticed, and the next test gets another one."""
    vhosts = VirtualHosts(node, "changed")
    with vhosts.lend(tmp_path) as bundle:
        _queue(bundle)
        seen = [declared(bundle)]
        for change in _ELSE:
            change(bundle)
            assert declared(bundle) not in seen, change.__name__
            seen.append(declared(bundle))
    assert eventually("it has rested", lambda: vhosts.rested() or not vhosts.resting) is True


def test_virtual_host_that_had_a_policy_is_lent_to_nobody(node: BrokerNode, tmp_path: Path) -> None:
    """It looks the same, but a queue that was full may have told so what forwards messages to it."""
    vhosts = VirtualHosts(node, "had-policy")
    with vhosts.lend(tmp_path) as bundle:
        before = declared(bundle)
        _policy_that_was_cleared(bundle)
        assert declared(bundle) == before
    assert not vhosts.resting


def test_queue_that_was_declared_again_is_another_one(node: BrokerNode, tmp_path: Path) -> None:
    """It looks the same, but what forwards messages to it may not know that it is new."""
    vhosts = VirtualHosts(node, "again-declared")
    with vhosts.lend(tmp_path) as bundle:
        seen = declared(bundle)
        with bundle.channel() as channel:
            channel.queue_delete("proj.tasks")
        bundle.declare()
        assert declared(bundle) == seen
    assert eventually("it has rested", lambda: vhosts.rested() or not vhosts.resting) is True


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


def test_virtual_host_in_which_nothing_was_declared_is_lent_again(node: BrokerNode, tmp_path: Path) -> None:
    """Whether the next test wants an empty one, or one with the topology."""
    vhosts = VirtualHosts(node, "empty")
    with vhosts.lend_empty(tmp_path) as bundle, bundle.channel():
        first = bundle.vhost
    eventually("it is quiet", lambda: not bundle.of_vhost("vhosts", "/connections"))
    with vhosts.lend_empty(tmp_path) as bundle:
        assert bundle.vhost == first
    with vhosts.lend(tmp_path) as bundle:
        assert bundle.vhost == first
        assert bundle.has("celery_delayed_11")


def _passing_exchange(bundle: Bundle) -> None:
    with bundle.channel() as channel:
        channel.exchange_declare("celeryev", "topic", durable=False, auto_delete=False)


@pytest.mark.parametrize(
    "change", [_queue, _passing_exchange, _policy, _operator_policy, _rights, _limit, _user]
)
def test_virtual_host_in_which_something_was_declared_is_not_empty(
    node: BrokerNode, tmp_path: Path, change: Callable[[Bundle], None]
) -> None:
    vhosts = VirtualHosts(node, f"filled{change.__name__}")
    with vhosts.lend_empty(tmp_path) as bundle:
        first = bundle.vhost
        change(bundle)
    eventually("it is quiet", lambda: not bundle.of_vhost("vhosts", "/connections"))
    with vhosts.lend_empty(tmp_path) as bundle:
        assert bundle.vhost != first
    assert not vhosts.empty[1:]
