"""Declaring the topology on a broker, and looking at it."""

import time
from typing import Any, Final

from amqp.exceptions import AccessRefused, NotFound
from kombu.common import maybe_declare
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from proj import queues

#: Seconds after which RabbitMQ says 0 for a queue that has not answered (`rabbit_quorum_queue:stat`).
_SILENCE: Final = 0.25

#: Seconds for which a queue is asked again that has not answered.
LOOK_PATIENCE: Final = 10.0


def look(channel: Any, name: str, patience: float = LOOK_PATIENCE) -> Any:
    """What the broker says of a queue, declaring nothing: its `message_count` and `consumer_count`.

    RabbitMQ asks a quorum queue for a quarter of a second, and says 0 when it had no time to answer; such an
    answer is not taken. Raises `TimeoutError` when there was no other for `patience` seconds, and
    `amqp.exceptions.NotFound` (404).
    """
    deadline = time.monotonic() + patience
    while True:
        asked = time.monotonic()
        found = channel.queue_declare(name, passive=True)
        if found.message_count or found.consumer_count or time.monotonic() - asked < _SILENCE:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"queue {name} is too busy to say how many messages it has")


def declare(channel: Any) -> None:
    """Declare every exchange, queue and binding; on one connection, only the first call asks the broker.

    Raises `amqp.exceptions.PreconditionFailed` (406) when a queue exists with other arguments.
    """
    for queue in queues.topology:
        maybe_declare(queue, channel)


def ensure(connection: Any) -> None:
    """Declare all that a consumer needs; where the user may not, see that an administrator has done so.

    Raises `amqp.exceptions.NotFound` (404) for a queue that is missing then, and what `declare` raises.
    """
    for queue in queues.topology:
        queue.no_declare = False
    channel = connection.channel()  # of its own: a refusal closes it
    try:
        declare(channel)
    except AccessRefused:
        channel = connection.channel()
        for queue in queues.topology:
            channel.queue_declare(queue.name, passive=True)
            queue.no_declare = True  # Celery, too, declares what it consumes
    channel.close()


def ensure_delays(connection: Any) -> None:
    """Do the same for the broker's side of delayed messages; what is missing of it is declared anew.

    Raises `amqp.exceptions.AccessRefused` (403) when some is missing and the user may not declare it.
    """
    try:
        if not _delays_are_complete(connection):
            _declare_all_delays(connection)
        _bind_delays(connection)
    except AccessRefused:
        if not _delays_are_complete(connection):
            raise


def declare_delays(connection: Any) -> None:
    """Declare the broker's side of delayed messages, and let it deliver to every work queue.

    The delay queues number 28 and are shared by all Celery applications of a virtual host, so they are
    declared only when they are missing. The binding is ours, and is always made: without it, a message
    whose delay is over would go nowhere.
    """
    with connection.channel() as channel:
        # Of all the delay topology it is declared last. To look at the rest too would cost each publish 28
        # round trips; a worker does so at its start.
        there = _exchange_exists(channel, queues.DELAY_EXCHANGE)
    if not there:
        _declare_all_delays(connection)
    _bind_delays(connection)


def _declare_all_delays(connection: Any) -> None:
    with connection.channel() as channel:
        declare_native_delayed_delivery_exchanges_and_queues(_OneChannel(channel), queues.DELAY_QUEUE_TYPE)


def _bind_delays(connection: Any) -> None:
    with connection.channel() as channel:
        for queue in queues.work_queues:
            bind_queue_to_native_delayed_delivery_exchange(_OneChannel(channel), queue)


class _OneChannel:
    """What kombu takes for a connection here: of one itself, it would open channels and close none."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def channel(self) -> Any:
        return self._channel


def _delays_are_complete(connection: Any) -> bool:
    with connection.channel() as channel:
        return _exchange_exists(channel, queues.DELAY_EXCHANGE) and all(
            _queue_exists(channel, name) for name in queues.DELAY_QUEUES
        )


# A passive declaration that fails closes its channel, and py-amqp opens it anew.
def _exchange_exists(channel: Any, name: str) -> bool:
    try:
        channel.exchange_declare(name, type="topic", passive=True)
    except NotFound:
        return False
    return True


def _queue_exists(channel: Any, name: str) -> bool:
    try:
        channel.queue_declare(name, passive=True)
    except NotFound:
        return False
    return True
