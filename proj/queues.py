"""The topology as data: exchanges, queues, their arguments, and headers.

A queue's arguments cannot change after its declaration: RabbitMQ refuses with 406. Before you change one
here, move the messages of the old queue (docs/migration.md).
"""

from typing import Final

from kombu import Exchange, Queue
from kombu.transport.native_delayed_delivery import MAX_LEVEL, level_name

#: AMQP's delivery mode "written to disk". Quorum queues write every message, whatever its mode, but a message
#: may also pass other queues.
PERSISTENT: Final = 2

#: How often a message is delivered again after it was given back. At its sixth return it becomes a dead
#: letter, since it may kill its workers. Explicit, since 3.10 has no limit by default, and 4.x has 20.
DELIVERY_LIMIT: Final = 5

#: In effect unlimited: to read a message and requeue it counts as a delivery, and readers of dead letters
#: must never lose them. -1 does not work (3.10 drops a message at its first return), nor does no limit (4.x
#: drops it at its 21st); tried on 3.10.8 and 4.0.5.
NO_DELIVERY_LIMIT: Final = 2**31 - 1

#: Type of the delay queues: `at-least-once` dead-lettering, which moves a message from level to level, exists
#: only for quorum queues.
DELAY_QUEUE_TYPE: Final = "quorum"

#: kombu declares it last of the delay topology, so if it exists, all of the topology does.
DELAY_EXCHANGE: Final = "celery_delayed_delivery"

#: The delay queues: a message waits in each for a power of two of seconds.
DELAY_QUEUES: Final = tuple(level_name(level) for level in range(MAX_LEVEL + 1))

#: Bytes that AMQP allows for the name of a queue, and for a routing key.
MAX_NAME: Final = 255

#: An exclusive queue that serves as a lock for readers of dead letters: the broker deletes it with the
#: reader's connection.
DEAD_READER: Final = "proj.dead.reader"

#: Header: how often the message was redriven.
REDRIVES_HEADER: Final = "x-proj-redrives"

#: Header of a message that may be a repeat: published twice, retried, or redriven. Only for these does a
#: worker query the result store for a success before it executes the task.
REPEAT_HEADER: Final = "x-proj-repeat"

#: Header of a copy that has got its turn under a rate limit: when that is, in seconds since 1970.
TURN_HEADER: Final = "x-proj-turn"

#: Header of a copy: how often its originals were given back. The broker counts only the copy's own returns.
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

# A topic exchange, since delayed messages work only with topic and fanout exchanges.
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
        # The broker keeps a dead letter until `proj.dead` has confirmed it. This requires that a full queue
        # refuses messages instead of dropping its oldest one.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    },
)

#: The queues that workers consume by default. Only one: the prefetch count applies to each queue that a
#: worker consumes, so a worker with one slot on two queues would hold two messages.
work_queues: Final = (task_queue,)

#: In order of declaration: the dead-letter queue first, so that it exists before the first dead letter.
topology: Final = (dead_queue, *work_queues)

#: The bindings that `declare` makes: exchange, queue, routing key.
bindings: Final = tuple((queue.exchange.name, queue.name, queue.routing_key) for queue in topology)

#: The bindings that `declare_delays` makes with kombu: source, destination, routing key.
delay_bindings: Final = tuple(
    (DELAY_EXCHANGE, queue.exchange.name, f"#.{queue.routing_key}") for queue in work_queues
) + tuple((queue.exchange.name, queue.name, f"#.{queue.routing_key}") for queue in work_queues)


def can_be_name(name: str) -> bool:
    """Whether AMQP allows this name for a queue: UTF-8, of 1 to `MAX_NAME` bytes."""
    try:
        return 0 < len(name.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        return False
