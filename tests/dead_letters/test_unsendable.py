"""`proj dead redrive`: a message that cannot be sent stays, and the others go on."""

from collections.abc import Callable, Iterator

import pytest

from proj.dead_letters import publisher
from proj.private_node.node import BrokerNode
from tests.lib import dead
from tests.lib.bundle import Bundle
from tests.lib.erlang import evaluate

pytestmark = pytest.mark.used_vhost


@pytest.fixture
def max_size(own_node: BrokerNode) -> Iterator[Callable[[int], object]]:
    """Sets how many bytes of a message the broker takes, as its operator may at any time."""

    def set_to(size: int | str) -> object:
        # Where RabbitMQ 3.10 looks, and where 4 does.
        places = (
            "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})"
        )
        return evaluate(own_node, places.format(size))

    usual = evaluate(own_node, "application:get_env(rabbit, max_message_size, 16777216)")
    yield set_to
    set_to(usual)


@pytest.mark.parametrize("size", [2_000, 200_000])
def test_message_that_is_too_large_stays_and_the_others_go_on(
    own: Bundle, max_size: Callable[[int], object], size: int
) -> None:
    """The broker closes the channel over it: that ends neither the run nor loses what was sent before it."""
    names = [f"id-{number}" for number in range(9)]
    for number, name in enumerate(names):
        dead.publish_task(own, name, "x" * (size if number in {2, 6} else 1), expiration="0")
    dead.await_count(own, len(names))
    max_size(size)

    done = own.proj("dead", "redrive", "--all")

    assert done.stderr == "7 redriven, 2 left: it is larger than the broker accepts (2)\n"
    assert done.returncode == 69
    assert dead.ids(own) == ["id-2", "id-6"]
    sent = [message.properties["correlation_id"] for message in dead.take(own, "proj.tasks")]
    assert set(sent) == set(names) - {"id-2", "id-6"}
    # What was under way with a small one may be sent twice; a large one goes alone.
    assert len(sent) == len(set(sent)) or size < 2**16
    max_size(2 * size)
    assert own.proj("dead", "redrive", "--all").stderr == "2 redriven\n"


def test_message_that_cannot_be_written_stays_and_the_others_go_on(bundle: Bundle) -> None:
    """RabbitMQ takes any bytes as a property; escaped, they may be too long. A dry run foresees it."""
    names = [f"id-{number}" for number in range(5)]
    messages = [dead.task_message(name, 1, 2, type="o" * 70) for name in names]
    with bundle.channel() as channel, pytest.MonkeyPatch.context() as patch:
        for message in (messages[1], messages[3]):
            written = message._serialize_properties().replace(b"o" * 70, b"\xf6" * 70)
            patch.setattr(message, "_serialize_properties", lambda written=written: written)
        dead.send(channel, messages, "proj.dead")
    dead.await_count(bundle, len(names))

    foreseen = bundle.proj("dead", "redrive", "--all", "--dry-run")
    done = bundle.proj("dead", "redrive", "--all")

    assert foreseen.stderr == done.stderr.replace("redriven", "would be redriven")
    assert done.stderr == f"3 redriven, 2 left: {publisher.UNSENDABLE} (2)\n"
    assert foreseen.returncode == done.returncode == 65
    assert dead.ids(bundle) == ["id-1", "id-3"]
    assert bundle.depth("proj.tasks") == 3
