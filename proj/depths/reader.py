"""Reads how full the queues are, without changing them.

Ready messages and consumers come over AMQP and are current. Unacknowledged messages and rates come from the
management API, up to 5 seconds late. When it is unavailable, the workers report the messages that they hold.
Unknown numbers are None, never 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

from amqp.exceptions import NotFound, ResourceLocked

from proj import dead_letters, queues
from proj.dead_letters.letter import Wanted
from proj.depths import statistics as queue_statistics
from proj.depths.statistics import Statistics
from proj.enqueue.app import App
from proj.errors import BadInput, BrokerRefused, ManagementRefused, ManagementUnavailable, ProjError
from proj.queues import Topology
from proj.rabbitmq import connection, topology
from proj.rabbitmq.management import Management
from proj.rabbitmq.remote_control import held_by_workers

N = TypeVar("N", int, float)

#: Seconds for all requests of a snapshot over AMQP; milliseconds are usual.
TIMEOUT: Final = 10.0

#: Most dead letters with which the oldest one is read. Reading it may have to read all of them, to keep their
#: order, and blocks `proj dead` meanwhile.
_MAX_DEAD: Final = 1000

#: Seconds for which the age of the oldest dead letter is cached.
_DEAD_AGE_TTL: Final = 60.0


@dataclass(frozen=True)
class Depth:
    """The depth of one queue, or of all delayed messages.

    Rates are messages per second. None means unknown.
    """

    queue: str
    #: None when the queue is missing.
    ready: int | None = None
    unacknowledged: int | None = None
    consumers: int | None = None
    #: Age of the oldest ready message in seconds: exact for dead letters, else a lower bound. None also when
    #: no message is ready.
    oldest: float | None = None
    published: float | None = None
    delivered: float | None = None
    acknowledged: float | None = None

    @property
    def exact(self) -> bool:
        """Whether `oldest` is exact: dead letters carry the time of their death."""
        return bool(self.queue == queues.dead_queue.name)


@dataclass(frozen=True)
class Snapshot:
    """The depths of the queues at one moment."""

    depths: tuple[Depth, ...]
    #: Where `Depth.unacknowledged` comes from: `management`, `workers`, or None.
    unacknowledged_from: str | None = None
    #: Why something is unknown or wrong, one sentence each.
    problems: tuple[str, ...] = ()
    #: ISO 8601, UTC.
    at: str = field(default_factory=lambda: f"{datetime.now(UTC):%FT%TZ}")


@dataclass(frozen=True)
class Declared:
    """The numbers of a queue that AMQP reports."""

    ready: int
    consumers: int


@dataclass(frozen=True)
class _OldestDead:
    """A cached reading of the oldest dead letter: the queue's length, its death, and the time of reading."""

    ready: int
    died: datetime
    at: datetime


class Reader:
    """Takes snapshots over one connection, and reconnects when it is lost."""

    def __init__(self, app: App, names: Sequence[str] = ()) -> None:
        """`names` are queues of the virtual host or `delayed`; empty means `ours`."""
        self._app = app
        self._topology = app.settings.topology
        self._names = tuple(dict.fromkeys(names)) or ours(self._topology)
        self._broker = app.connection_for_read()
        self._management = Management.from_settings(app.settings)
        self._dead: _OldestDead | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        connection.abandon(self._broker)

    def snapshot(self) -> Snapshot:
        """The queues now; takes a few times `TIMEOUT` at most.

        Errors of the management API become problems of the snapshot. Raises `BadInput` for a name that is
        neither ours nor a queue, `BrokerUnreachable` and `BrokerRefused`.
        """
        declared = read_declared(self._broker, self._topology, self._names)
        problems: list[str] = []
        statistics = self._statistics(problems)
        source = None if statistics is None else "management"
        held: dict[str, int] = {}
        if statistics is None:
            held = self._held(declared, problems)
            source = "workers" if held else None
        ages = self._ages(declared, statistics or {}, problems)
        depths = tuple(
            _depth(name, declared[name], statistics, held.get(name), ages.get(name)) for name in self._names
        )
        return Snapshot(depths, source, tuple(problems))

    def _statistics(self, problems: list[str]) -> dict[str, Statistics] | None:
        try:
            statistics = queue_statistics.of_queues(self._management)
        except ManagementUnavailable as error:
            problems.append(f"rates and ages of messages are unknown: {error}")
            return None
        try:
            problems += queue_statistics.alarms(self._management)
        except ManagementRefused:
            pass  # a user may be allowed to see queues, but not nodes
        except ManagementUnavailable as error:
            problems.append(f"whether the broker has an alarm is unknown: {error}")
        return statistics

    def _held(self, declared: dict[str, Declared | None], problems: list[str]) -> dict[str, int]:
        held = {}
        for queue in self._topology.work_queues:
            found = declared.get(queue.name)
            if not found or not found.consumers:
                continue
            try:
                held[queue.name] = held_by_workers(self._app, queue, found.consumers)
            except ProjError as error:
                problems.append(f"unacknowledged messages of {queue.name} are unknown: {error}")
        return held

    def _ages(
        self,
        declared: dict[str, Declared | None],
        statistics: dict[str, Statistics],
        problems: list[str],
    ) -> dict[str, float]:
        ages = {}
        for name, found in declared.items():
            if not found or not found.ready or name == queues.DELAYED:
                if name == queues.dead_queue.name:
                    self._dead = None
                continue
            try:
                if name == queues.dead_queue.name:
                    ages[name] = self._age_of_dead(found.ready)
                elif name in statistics and statistics[name].delivered is not None:
                    ages[name] = queue_statistics.oldest(self._management, name)
            except ProjError as error:
                problems.append(f"the age of the oldest message of {name} is unknown: {error}")
        return ages

    def _age_of_dead(self, ready: int) -> float:
        now, look = datetime.now(UTC), self._dead
        # Dead letters arrive at the end, so the oldest stays the same while the queue does not shrink.
        if look is None or ready < look.ready or (now - look.at).total_seconds() > _DEAD_AGE_TTL:
            look = self._dead = _OldestDead(ready, self._first_death(ready), now)
        return max(0.0, (now - look.died).total_seconds())

    def _first_death(self, ready: int) -> datetime:
        hint = "see: proj dead list --limit 1"
        if ready > _MAX_DEAD:
            raise BrokerRefused(f"there are more than {_MAX_DEAD} messages", hint)
        all_of_ours = [queue.name for queue in self._topology.queues]
        declared = read_declared(self._broker, self._topology, all_of_ours)
        if not all(declared.values()):  # reading dead letters would declare the whole topology
            raise BrokerRefused("part of the topology is missing", "start a worker, which declares it")
        first = dead_letters.listing(self._app, Wanted(), limit=1, patience=0)
        last = first[0].last if first else None
        if not last:
            raise BrokerRefused("its death header has no time", hint)
        return datetime.fromisoformat(last)


def ours(topology: Topology) -> tuple[str, ...]:
    """The queues of a snapshot by default."""
    return (*(queue.name for queue in topology.work_queues), queues.DELAYED, queues.dead_queue.name)


def read_declared(broker: Any, wanted: Topology, names: Sequence[str]) -> dict[str, Declared | None]:
    """Ready messages and consumers of the queues; None for a missing queue of ours.

    Connects when needed, ends within `TIMEOUT`, and declares nothing. Raises `BadInput`, `BrokerUnreachable`
    and `BrokerRefused`.
    """
    with connection.bounded(broker, TIMEOUT):
        return {name: _read(broker.default_channel, wanted, name) for name in names}


def _read(channel: Any, wanted: Topology, name: str) -> Declared | None:
    if name == queues.DELAYED:
        states = [_declared(channel, each) for each in queues.DELAY_QUEUES]
        return Declared(sum(s.ready for s in states if s), sum(s.consumers for s in states if s))
    found = _declared(channel, name)
    if found is None and name not in ours(wanted):
        raise BadInput(f"there is no queue {name!r}", f"the default is {', '.join(ours(wanted))}")
    return found


def _declared(channel: Any, name: str) -> Declared | None:
    if not queues.can_be_name(name):
        return None
    try:
        found = topology.look(channel, name)
    except NotFound:  # py-amqp reopens the channel
        return None
    except ResourceLocked as error:
        raise BrokerRefused(f"queue {name!r} is exclusive to another connection") from error
    return Declared(found.message_count, found.consumer_count)


def _depth(
    name: str,
    found: Declared | None,
    statistics: dict[str, Statistics] | None,
    held: int | None,
    oldest: float | None,
) -> Depth:
    if found is None:
        return Depth(name)
    if statistics is None:
        return Depth(name, found.ready, held, found.consumers, oldest)
    if name == queues.DELAYED:
        each = [statistics[level] for level in queues.DELAY_QUEUES if level in statistics]
        # A delayed message is dead-lettered, never delivered, so these rates do not exist.
        return Depth(
            name,
            found.ready,
            _sum(of.unacknowledged for of in each),
            found.consumers,
            published=_sum(of.published for of in each),
        )
    of = statistics.get(name)
    if of is None:
        return Depth(name, found.ready, None, found.consumers, oldest)
    # RabbitMQ does not count messages that a dead-letter exchange publishes.
    published = None if name == queues.dead_queue.name else of.published
    return Depth(
        name,
        found.ready,
        of.unacknowledged,
        found.consumers,
        oldest,
        published,
        of.delivered,
        of.acknowledged,
    )


def _sum(numbers: Iterable[N | None]) -> N | int | None:
    """The sum; None when one of the numbers is unknown."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)
