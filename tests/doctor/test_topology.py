"""Queues, exchanges and bindings that are not as declared are found, and mended by what is said."""

import kombu
from kombu.transport.native_delayed_delivery import declare_native_delayed_delivery_exchanges_and_queues

from proj import queues
from proj.rabbitmq import topology
from tests.lib.bundle import MANAGEMENT_OFF, Bundle
from tests.lib.findings import about, doctor, finds, follow
from tests.lib.waiting import eventually


def test_drifted_queue_and_exchange(bundle: Bundle) -> None:
    """The arguments are told side by side, or in the broker's words, and the printed commands mend them."""
    with bundle.channel() as channel:
        arguments = queues.work_queue("proj.tasks").queue_arguments
        arguments |= {"x-delivery-limit": 3, "x-max-length": 9}
        channel.queue_declare("proj.tasks", durable=True, auto_delete=False, arguments=arguments)
        channel.exchange_declare("proj.dead", "direct", durable=True, auto_delete=False)

    found = doctor(bundle)
    alone = doctor(bundle, env=MANAGEMENT_OFF)

    queue, exchange = about(found, "queues", "proj.tasks"), about(found, "exchanges", "proj.dead")
    assert queue["level"] == exchange["level"] == "error"
    assert "x-delivery-limit is 3, not 5, x-max-length is 9, not unset" in queue["what"]
    assert "inequivalent arg 'x-" in about(alone, "queues", "proj.tasks")["what"]
    assert "inequivalent arg 'type'" in exchange["what"]
    assert "it is empty" in queue["fix"]
    follow(bundle, queue)
    follow(bundle, exchange)
    bundle.worker().ready()
    finds(bundle)


def test_drifted_queue_with_messages_is_not_to_be_deleted(bundle: Bundle) -> None:
    """It is to be moved."""
    with bundle.channel() as channel:
        channel.queue_declare("proj.dead", durable=True, auto_delete=False)
    bundle.publish({}, routing_key="proj.dead")

    finding = about(doctor(bundle), "queues", "proj.dead", "x-queue-type is classic, not quorum")
    assert finding["fix"] == "move its 1 message and declare it again, as in docs/migration.md"


def test_drifted_queue_whose_messages_are_held_is_not_to_be_deleted(bundle: Bundle) -> None:
    """The broker's count is of those that are ready: a consumer may hold some, or who fetched one."""
    with bundle.channel() as channel:
        channel.queue_declare("proj.dead", durable=True, auto_delete=False)
        bundle.publish({}, routing_key="proj.dead")
        assert channel.basic_get("proj.dead")
        eventually("it is held", lambda: bundle.unacknowledged("proj.dead") == 1)
        fetched = about(doctor(bundle), "queues", "proj.dead")
        channel.basic_consume("proj.dead")
        consumed = about(doctor(bundle, env=MANAGEMENT_OFF), "queues", "proj.dead")

    assert "stop them, and look again" in fetched["fix"]
    assert fetched["fix"] == consumed["fix"]


def test_what_is_unbound_or_gone_is_mended_by_a_worker(declared: Bundle) -> None:
    """Each is told by itself, and a worker's start mends all of them."""
    with declared.channel() as channel:
        channel.queue_unbind("proj.dead", "proj.dead", "#")
        channel.queue_unbind("proj.tasks", "proj", "proj.tasks")
        channel.queue_unbind("proj.tasks", "proj.direct", "proj.tasks")
        channel.exchange_unbind("proj", queues.DELAY_EXCHANGE, "#.proj.tasks")
    unbound = finds(
        declared,
        ("error", "bindings"),
        ("error", "bindings"),
        ("error", "bindings"),
        ("error", "delay_routes"),
        ("warning", "present_workers"),
    )
    with declared.channel() as channel:
        channel.queue_delete("celery_delayed_5")
        channel.exchange_delete("proj.dead")
        channel.exchange_delete("proj.direct")
    gone = doctor(declared)

    about(unbound, "bindings", "proj.dead is not bound")
    about(unbound, "bindings", "proj.tasks is not bound to exchange proj with")
    about(unbound, "bindings", "proj.tasks is not bound to exchange proj.direct")
    about(unbound, "delay_routes", "not bound to proj")
    about(gone, "exchanges", "proj.dead is missing")
    about(gone, "exchanges", "proj.direct is missing")
    finding = about(gone, "delays", "celery_delayed_5")
    follow(declared, finding)
    finds(declared)


def test_delay_queues_of_another_application(bundle: Bundle) -> None:
    """Classic ones work, and are not as safe."""
    with kombu.Connection(bundle.url) as connection:
        topology.declare(connection.default_channel, queues.Topology())
        declare_native_delayed_delivery_exchanges_and_queues(connection, "classic")

    finding = about(doctor(bundle), "delay_routes", "28", "classic")

    assert finding["level"] == "warning"
