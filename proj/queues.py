"""The topology as data: exchanges, queues and their arguments, each named here and nowhere else.

A queue's arguments cannot change after its declaration: RabbitMQ then answers 406. To change one here
means to move the messages of the old queue first.
"""

from typing import Final

from kombu import Exchange, Queue
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name

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


def can_be_name(name: str) -> bool:
    """Whether AMQP can carry it as the name of a queue: UTF-8, of 1 to `MAX_NAME` bytes."""
    try:
        return 0 < len(name.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        return False
