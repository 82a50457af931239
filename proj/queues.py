"""The topology as data: exchanges, queues and their arguments, each named here and nowhere else.

A queue's arguments cannot change after its declaration: RabbitMQ then answers 406. To change one here
means to move the messages of the old queue first.
"""

import time
from typing import Any, Final

from amqp.exceptions import AccessRefused, NotFound
from kombu import Exchange, Queue
from kombu.common import maybe_declare
from kombu.transport.native_delayed_delivery import (
    MAX_LEVEL,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

#: AMQP's delivery mode for "written to disk". RabbitMQ's quorum queues write every message, whatever
#: its mode; the mode is said all the same, for what reads the message on its way.
PERSISTENT: Final = 2

#: How often a message is delivered again after it was given back, before it is taken for one that kills its
#: workers and becomes a dead letter: at its sixth return. Said explicitly: 3.10 has no limit by default,
#: 4.x has 20.
DELIVERY_LIMIT: Final = 5

#: In effect none: to read a message and give it back counts as a delivery, and to look at dead letters must
#: never lose them. Neither -1 (3.10 drops a message at its first return) nor nothing (4.x drops it at its
#: 21st) will do; tried on 3.10.8 and 4.0.5.
NO_DELIVERY_LIMIT: Final = 2**31 - 1

#: The type that delay queues get; `at-least-once` dead-lettering, which moves a message from level to
#: level, exists for quorum queues only.
DELAY_QUEUE_TYPE: Final = "quorum"

#: Declared by kombu last of all the delay topology, so its presence means that all of it is there.
DELAY_EXCHANGE: Final = "celery_delayed_delivery"

#: Where delayed messages wait, each for a power of two of seconds.
DELAY_QUEUES: Final = tuple(level_name(level) for level in range(MAX_LEVEL + 1))

#: Bytes that AMQP allows for the name of a queue, and for a routing key.
MAX_NAME: Final = 255

#: An exclusive queue: whoever reads dead letters holds it, and the broker takes it away with the connection.
DEAD_READER: Final = "proj.dead.reader"

#: Seconds after which RabbitMQ says 0 for a queue that has not answered (`rabbit_quorum_queue:stat`).
_SILENCE: Final = 0.25

#: Seconds for which a queue is asked again that has not answered.
LOOK_PATIENCE: Final = 10.0

#: Header of a redriven message: how often it was.
REDRIVES_HEADER: Final = "x-proj-redrives"

#: Header of a message that may be a repeat: published twice, tried again, or redriven. Before its task is
#: executed, a success under its id is looked for; for every message that would cost too much.
REPEAT_HEADER: Final = "x-proj-repeat"

#: Header of a copy that waits for its turn under a rate limit: seconds since 1970. It is given no other.
TURN_HEADER: Final = "x-proj-turn"

#: Header of a copy: how often its originals were given back. The broker counts those of the copy alone.
DELIVERIES_HEADER: Final = "x-proj-deliveries"

dead_exchange = Exchange("proj.dead", type="topic", durable=True, delivery_mode=PERSISTENT)

dead_queue = Queue(
    "proj.dead",
    exchange=dead_exchange,
    routing_key="#",
    durable=True,
    queue_arguments={
        "x-queue-type": "quorum",
        "x-delivery-limit": NO_DELIVERY_LIMIT,
    },
)

# A topic exchange, since the broker holds delayed messages only for topic and fanout exchanges.
task_exchange = Exchange("proj", type="topic", durable=True, delivery_mode=PERSISTENT)

task_queue = Queue(
    "proj.tasks",
    exchange=task_exchange,
    routing_key="proj.tasks",
    durable=True,
    queue_arguments={
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": dead_exchange.name,
        # The broker keeps a dead letter until `proj.dead` has confirmed it. The strategy demands
        # that a full queue refuses instead of dropping its oldest message.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    },
)

#: The queues that workers consume by default. One: the prefetch count holds for each queue that a
#: worker consumes, so a worker with one slot on two queues would hold two messages.
work_queues: Final = (task_queue,)

#: In this order: with the dead-letter side in place first, no message dies with nowhere to go.
topology: Final = (dead_queue, *work_queues)

#: What `declare` binds: exchange, queue, routing key.
bindings: Final = tuple((queue.exchange.name, queue.name, queue.routing_key) for queue in topology)

#: What `declare_delays` binds, with kombu: delayed messages come from the first, to the second.
delay_bindings: Final = tuple(
    (DELAY_EXCHANGE, queue.exchange.name, f"#.{queue.routing_key}") for queue in work_queues
) + tuple((queue.exchange.name, queue.name, f"#.{queue.routing_key}") for queue in work_queues)


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


def can_be_name(name: str) -> bool:
    """Whether AMQP can carry it as the name of a queue: UTF-8, of 1 to `MAX_NAME` bytes."""
    try:
        return 0 < len(name.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        return False


def declare(channel: Any) -> None:
    """Declare every exchange, queue and binding; on one connection, only the first call asks the broker.

    Raises `amqp.exceptions.PreconditionFailed` (406) when a queue exists with other arguments.
    """
    for queue in topology:
        maybe_declare(queue, channel)


def ensure(connection: Any) -> None:
    """Declare all that a consumer needs; where the user may not, see that an administrator has done so.

    Raises `amqp.exceptions.NotFound` (404) for a queue that is missing then, and what `declare` raises.
    """
    for queue in topology:
        queue.no_declare = False
    channel = connection.channel()  # of its own: a refusal closes it
    try:
        declare(channel)
    except AccessRefused:
        channel = connection.channel()
        for queue in topology:
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
        there = _exchange_exists(channel, DELAY_EXCHANGE)
    if not there:
        _declare_all_delays(connection)
    _bind_delays(connection)


def _declare_all_delays(connection: Any) -> None:
    with connection.channel() as channel:
        declare_native_delayed_delivery_exchanges_and_queues(_OneChannel(channel), DELAY_QUEUE_TYPE)


def _bind_delays(connection: Any) -> None:
    with connection.channel() as channel:
        for queue in work_queues:
            bind_queue_to_native_delayed_delivery_exchange(_OneChannel(channel), queue)


class _OneChannel:
    """What kombu takes for a connection here: of one itself, it would open channels and close none."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def channel(self) -> Any:
        return self._channel


def _delays_are_complete(connection: Any) -> bool:
    with connection.channel() as channel:
        return _exchange_exists(channel, DELAY_EXCHANGE) and all(
            _queue_exists(channel, name) for name in DELAY_QUEUES
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
