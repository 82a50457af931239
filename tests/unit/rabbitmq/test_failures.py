"""What goes wrong between a program and its broker, in words."""

import pytest
from kombu import Connection

from proj.rabbitmq import failures


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("amqp://rabbit.example", "rabbit.example:5672"),
        ("amqps://rabbit.example/v", "rabbit.example:5671"),
        ("amqp://rabbit.example:5673", "rabbit.example:5673"),
        ("amqp://user@/v", "localhost:5672"),
    ],
)
def test_the_broker_is_named_as_it_was_tried(url: str, where: str) -> None:
    """With what the URL leaves out, also before a first connection."""
    assert f"the broker at {where} " in str(failures.explain(TimeoutError(), Connection(url)))
