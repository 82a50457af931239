"""Declares the topology on a broker, and inspects it."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from amqp.exceptions import AccessRefused, NotFound
from kombu.common import maybe_declare
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from proj import queues
from proj.queues import Topology

#: Seconds after which RabbitMQ reports 0 for a queue that has not answered (`rabbit_quorum_queue:stat`).
_SILENCE: Final = 0.25

#: Seconds for which the request is repeated when a queue does not answer.
LOOK_PATIENCE: Final = 10.0


def look(channel: Any, name: str, patience: float = LOOK_PATIENCE) -> Any:
    """The `message_count` and `consumer_count` of a queue, by a passive declare.

    RabbitMQ waits a quarter of a second for a quorum queue, and then reports 0; such an answer is discarded.
    Raises `TimeoutError` when no other came within `patience` seconds, and `amqp.exceptions.NotFound` (404).
    """
    deadline = time.monotonic() + patience
    while True:
        asked = time.monotonic()
        found = channel.queue_declare(name, passive=True)
        if found.message_count or found.consumer_count or time.monotonic() - asked < _SILENCE:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"queue {name} is too busy to report how many messages it has")


def declare(channel: Any, topology: Topology) -> None:
    """Declare every exchange, queue and binding; on one connection, only the first call reaches the broker.

    Raises `amqp.exceptions.PreconditionFailed` (406) when a queue exists with different arguments.
    """
    for queue in topology.queues:
        maybe_declare(queue, channel)
    if maybe_declare(queues.direct_exchange, channel):
        for queue in topology.work_queues:  # of which kombu binds a queue to one exchange only
            queue(channel).bind_to(queues.direct_exchange, routing_key=queue.name)


def declare_permitted(connection: Any, channel: Any, topology: Topology) -> None:
    """Declare what messages need, as far as the user has the permission.

    For a user who may only publish, the publish itself shows whether something is missing.
    """
    try:
        declare(channel, topology)
    except AccessRefused:
        connection.declared_entities.update(map(hash, (*topology.queues, queues.direct_exchange)))


def ensure(connection: Any, topology: Topology) -> None:
    """Declare all that a consumer needs, or check that it exists when the user may not declare it.

    Raises `amqp.exceptions.NotFound` (404) for what is missing then, as far as the user may look, and the
    errors of `declare`.
    """
    for queue in topology.queues:
        queue.no_declare = False
    channel = connection.channel()  # a new one, since a refusal closes it
    try:
        declare(channel, topology)
    except AccessRefused:
        channel = connection.channel()
        for queue in topology.queues:
            with suppress(AccessRefused):  # see `_exists`
                channel.queue_declare(queue.name, passive=True)
            queue.no_declare = True  # Celery, too, declares what it consumes
        for exchange in topology.exchanges:
            with suppress(AccessRefused):
                exchange(channel).declare(passive=True)
    channel.close()


def ensure_delays(connection: Any, topology: Topology) -> None:
    """Declare what is missing of the delay queues and their exchanges and bindings.

    What a user may neither declare nor look at counts as there. Raises `amqp.exceptions.AccessRefused` (403)
    when some is missing and the user may not declare it.
    """
    try:
        if not _delays_are_complete(connection):
            _declare_all_delays(connection)
        _bind_delays(connection, topology)
    except AccessRefused:
        if not _delays_are_complete(connection):
            raise


def declare_delays(connection: Any, topology: Topology) -> None:
    """Declare the delay queues, unless they exist, and bind them to every work queue.

    All Celery applications of a virtual host share the 28 delay queues. The bindings are ours and are always
    declared: without them, a message whose delay is over would reach no queue.
    """
    with connection.channel() as channel:
        # It is declared last of all the delay topology. A look at the rest would cost each publish 28 round
        # trips; a worker looks at its start.
        there = _exchange_exists(channel, queues.DELAY_EXCHANGE)
    if not there:
        _declare_all_delays(connection)
    _bind_delays(connection, topology)


def _declare_all_delays(connection: Any) -> None:
    with connection.channel() as channel:
        connection_like = _SharedChannel(channel)
        declare_native_delayed_delivery_exchanges_and_queues(connection_like, queues.DELAY_QUEUE_TYPE)


def _bind_delays(connection: Any, topology: Topology) -> None:
    with connection.channel() as channel:
        for queue in topology.work_queues:
            bind_queue_to_native_delayed_delivery_exchange(_SharedChannel(channel), queue)


class _SharedChannel:
    """Stands in for a connection: kombu would open channels on a real one and never close them."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def channel(self) -> Any:
        return self._channel


def _delays_are_complete(connection: Any) -> bool:
    with connection.channel() as channel:
        return _exchange_exists(channel, queues.DELAY_EXCHANGE) and all(
            _queue_exists(channel, name) for name in queues.DELAY_QUEUES
        )


def _exchange_exists(channel: Any, name: str) -> bool:
    return _exists(partial(channel.exchange_declare, name, type="topic"))


def _queue_exists(channel: Any, name: str) -> bool:
    return _exists(partial(channel.queue_declare, name))


def _exists(declare: Callable[..., Any]) -> bool:
    """Whether there is such a thing, or the user may not know.

    Since RabbitMQ 4.3.1 a passive declaration requires some right on what it looks at
    (https://github.com/rabbitmq/rabbitmq-server/issues/16085). When it fails, the broker closes its channel,
    and py-amqp reopens it.
    """
    try:
        with suppress(AccessRefused):
            declare(passive=True)
    except NotFound:
        return False
    return True
