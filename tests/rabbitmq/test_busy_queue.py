"""A queue of RabbitMQ that has no time to answer."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from proj.rabbitmq import topology
from tests.lib.bundle import Bundle
from tests.lib.erlang import evaluate
from tests.lib.waiting import PATIENCE


def test_busy_queue_is_not_taken_for_an_empty_one(bundle: Bundle) -> None:
    """RabbitMQ says 0 for a queue that has no time to answer; it is asked again, until it has."""
    bundle.enqueue("add", "1", "2", "--count", "3")
    process = f"whereis('{bundle.vhost}_proj.tasks')"  # Erlang's, of the queue

    with bundle.channel() as channel, ThreadPoolExecutor(1) as background:
        evaluate(bundle.node, f"sys:suspend({process})")
        try:
            assert channel.queue_declare("proj.tasks", passive=True).message_count == 0
            found = background.submit(topology.look, channel, "proj.tasks", PATIENCE)
        finally:
            evaluate(bundle.node, f"sys:resume({process})")
        assert found.result().message_count == 3


def test_queue_that_stays_busy_is_no_empty_one(bundle: Bundle) -> None:
    """When it does not answer in time, its number is not known."""
    bundle.enqueue("add", "1", "2")
    process = f"whereis('{bundle.vhost}_proj.tasks')"

    with bundle.channel() as channel:
        evaluate(bundle.node, f"sys:suspend({process})")
        try:
            with pytest.raises(TimeoutError, match=r"proj\.tasks is too busy"):
                topology.look(channel, "proj.tasks", patience=0)
        finally:
            evaluate(bundle.node, f"sys:resume({process})")
