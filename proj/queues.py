"""The topology as data: exchanges, queues, their arguments, and headers.

A queue's arguments cannot change after its declaration: RabbitMQ refuses with 406. Before you change one
here, move the messages of the old queue (docs/migration.md).
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

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

#: Seconds that a worker has to store and acknowledge the end of a task that its time limit has ended.
_END_TIME: Final = 10

#: Type of the delay queues: `at-least-once` dead-lettering, which moves a message from level to level, exists
#: only for quorum queues.
DELAY_QUEUE_TYPE: Final = "quorum"

#: kombu declares it last of the delay topology, so if it exists, all of the topology does.
DELAY_EXCHANGE: Final = "celery_delayed_delivery"

#: The delay queues: a message waits in each for a power of two of seconds.
DELAY_QUEUES: Final = tuple(level_name(level) for level in range(MAX_LEVEL + 1))

#: Bytes that AMQP allows for the name of a queue, and for a routing key.
MAX_NAME: Final = 255

#: Bytes of the name of a work queue: a delay adds 28 words of one digit to the routing key.
MAX_WORK_QUEUE_NAME: Final = MAX_NAME - 2 * len(DELAY_QUEUES)

#: The words that a delay puts before a routing key, one for each level.
_DELAY_WORDS: Final = ("0", "1")

#: Name of the row of `proj queues` for all delayed messages. The Celery applications of a virtual host share
#: the delay queues.
DELAYED: Final = "delayed"

#: How names of queues begin that are RabbitMQ's, Celery's, or ours for something else.
_RESERVED: Final = ("amq.", "celery_delayed_", "proj.dead", "proj.beat")

#: An exclusive queue that serves as a lock for `celery beat`: whoever has declared it leads.
BEAT_LEADER: Final = "proj.beat"

#: An exclusive queue that serves as a lock for readers of dead letters: the broker deletes it with the
#: reader's connection.
DEAD_READER: Final = "proj.dead.reader"

#: Header: how often the message was redriven.
REDRIVES_HEADER: Final = "x-proj-redrives"

#: Header: when the message was redriven last, in seconds since 1970.
REDRIVEN_HEADER: Final = "x-proj-redriven"

#: Header of a message that may be a repeat: published twice, retried, or redriven. Only for these does a
#: worker query the result store for a success before it executes the task.
REPEAT_HEADER: Final = "x-proj-repeat"

#: Header: when the task may be executed first, in seconds since 1970: when it was published, and its delay.
DUE_HEADER: Final = "x-proj-due"

#: Header of a copy that has got its turn under a rate limit: when that is, in seconds since 1970.
TURN_HEADER: Final = "x-proj-turn"

#: Header of a copy: how often its originals were given back. The broker counts only the copy's own returns.
DELIVERIES_HEADER: Final = "x-proj-deliveries"

#: Header: the queue to which a worker sends how the task ended, and the `correlation_id` of that reply. They
#: come from a foreign message, since every Celery message has a `reply_to` and a `correlation_id` of its own.
REPLY_HEADER: Final = "x-proj-reply-to"
REPLY_ID_HEADER: Final = "x-proj-reply-id"


class Binding(NamedTuple):
    """What moves messages from an exchange to a queue, or to another exchange."""

    source: str
    destination: str
    key: str


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

#: Takes messages that are not delayed. To route one through `task_exchange`, whose patterns have wildcards,
#: costs RabbitMQ as much CPU time as all else that it does for the message (docs/speed.md).
direct_exchange = Exchange("proj.direct", type="direct", durable=True, delivery_mode=PERSISTENT)

# Takes messages whose delay is over: they work only with topic and fanout exchanges.
task_exchange = Exchange("proj", type="topic", durable=True, delivery_mode=PERSISTENT)

#: The name of the work queue that there always is.
DEFAULT_QUEUE: Final = "proj.tasks"


def work_queue(name: str, consumer_timeout: int | None = None) -> Queue:
    """A queue that workers execute tasks from; all of them have the same guarantees.

    Workers ask the broker to take back no message within `consumer_timeout` seconds, the longest time of a
    task. RabbitMQ 4.3 obeys, whatever its own timeout is; older ones ignore it (tried on 3.10.8 and 4.0.5).
    As an argument of the queue it could never be changed.
    """
    return Queue(
        name,
        exchange=task_exchange,
        routing_key=name,
        durable=True,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": dead_exchange.name,
            # The broker keeps a dead letter until `proj.dead` has confirmed it. This requires that a
            # full queue refuses messages instead of dropping its oldest one.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
        consumer_arguments=consumer_timeout and {"x-consumer-timeout": (consumer_timeout + _END_TIME) * 1000},
    )


@dataclass(frozen=True)
class Topology:
    """The queues of one application; `further` are the names of its work queues besides `proj.tasks`."""

    further: tuple[str, ...] = ()
    #: Seconds; see `work_queue`.
    consumer_timeout: int | None = None

    @cached_property
    def work_queues(self) -> tuple[Queue, ...]:
        """The default one first."""
        return tuple(work_queue(name, self.consumer_timeout) for name in (DEFAULT_QUEUE, *self.further))

    @cached_property
    def queues(self) -> tuple[Queue, ...]:
        """All, in the order of their declaration: no message dies before there is a queue for it."""
        return (dead_queue, *self.work_queues)

    def work_queue_of(self, routing_key: str) -> Queue | None:
        """The work queue that a routing key is for: it ends with the queue's name, also after a delay."""
        fitting = (queue for queue in self.work_queues if f".{routing_key}".endswith(f".{queue.name}"))
        return next(fitting, None)

    @cached_property
    def bindings(self) -> tuple[Binding, ...]:
        """What declaring the queues binds."""
        topics = [Binding(queue.exchange.name, queue.name, queue.routing_key) for queue in self.queues]
        direct = [Binding(direct_exchange.name, queue.name, queue.name) for queue in self.work_queues]
        return (*topics, *direct)

    @cached_property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What declaring the queues declares."""
        return (dead_exchange, task_exchange, direct_exchange)

    @cached_property
    def delay_bindings(self) -> tuple[Binding, ...]:
        """What kombu binds for delays: delayed messages come from the first exchange, to the second."""
        keys = [(queue, f"#.{queue.routing_key}") for queue in self.work_queues]
        return tuple(Binding(DELAY_EXCHANGE, queue.exchange.name, key) for queue, key in keys) + tuple(
            Binding(queue.exchange.name, queue.name, key) for queue, key in keys
        )


def can_be_name(name: str) -> bool:
    """Whether AMQP allows this name for a queue: UTF-8, of 1 to `MAX_NAME` bytes."""
    try:
        return 0 < len(name.encode()) <= MAX_NAME
    except UnicodeEncodeError:
        return False


def problem_with(name: str, others: Collection[str]) -> str | None:
    """Why a work queue cannot have this name beside these others, as the end of a sentence."""
    if not name:
        return "is no name"
    if name in others:
        return "is there already"
    if name.startswith(_RESERVED):
        return f"cannot be a work queue: {', '.join(_RESERVED)} are not for tasks"
    if name == DELAYED:
        return "cannot be a work queue: that is what proj queues calls all delay queues"
    if not name.isprintable() or set(name) & set(" *#"):
        return "cannot be the name of a queue: it holds a space, * or #"
    if name.partition(".")[0] in _DELAY_WORDS:
        return "cannot be the name of a queue: delays are routed by the words 0 and 1"
    if len(name.encode()) > MAX_WORK_QUEUE_NAME:
        return f"is longer than {MAX_WORK_QUEUE_NAME} bytes"
    for other in others:
        short, long = sorted((name, other), key=len)
        if long.endswith(f".{short}"):
            return f"cannot be beside {other!r}: {short!r} would also get what is for {long!r}"
    return None
