"""How full the queues are: each number from the best source there is, and nothing changed by looking.

Ready messages and consumers are told over AMQP, and are current. Unacknowledged messages and rates come from
the management API, up to 5 seconds late; where it does not answer, the workers are asked what they hold.
What nobody tells is None, never 0.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

from amqp.exceptions import NotFound, ResourceLocked

from proj import dead_letters, queues
from proj.dead_letters.letter import Wanted
from proj.depths import statistics as queue_statistics
from proj.depths.statistics import Statistics
from proj.enqueue.app import App
from proj.errors import BadInput, BrokerRefused, ManagementUnavailable, ProjError
from proj.queues import Topology
from proj.rabbitmq import connection, topology
from proj.rabbitmq.management import Management
from proj.rabbitmq.remote_control import held_by_workers

N = TypeVar("N", int, float)

#: The row of all messages that the broker holds until their time has come. All Celery applications of a
#: virtual host share their queues.
DELAYED: Final = "delayed"

#: Seconds for all questions to the broker over AMQP. They take milliseconds.
TIMEOUT: Final = 10.0

#: Dead letters up to which the oldest is looked at. To keep their order, a look reads all that were looked
#: at before, and holds up `proj dead` meanwhile.
_FEW: Final = 1000

#: Seconds until it is looked at anew.
_LOOK_AGAIN: Final = 60.0


@dataclass(frozen=True)
class Depth:
    """One queue, or all delayed messages. Rates are messages a second; what is not known is None."""

    queue: str
    #: None when there is no such queue.
    ready: int | None = None
    unacknowledged: int | None = None
    consumers: int | None = None
    #: Seconds that the oldest ready message has waited: of dead letters exact, of others at least. None also
    #: when none waits.
    oldest: float | None = None
    published: float | None = None
    delivered: float | None = None
    acknowledged: float | None = None

    @property
    def exact(self) -> bool:
        """Whether `oldest` is no lower bound: a dead letter says when it died."""
        return bool(self.queue == queues.dead_queue.name)


@dataclass(frozen=True)
class Snapshot:
    """The queues at one moment."""

    depths: tuple[Depth, ...]
    #: Where `Depth.unacknowledged` comes from: `management`, `workers`, or None.
    unacknowledged_from: str | None = None
    #: Why something is not known, or goes wrong, a sentence each.
    problems: tuple[str, ...] = ()
    #: ISO 8601, UTC.
    at: str = field(default_factory=lambda: f"{datetime.now(UTC):%FT%TZ}")


@dataclass(frozen=True)
class Declared:
    """What the broker tells of a queue over AMQP."""

    ready: int
    consumers: int


@dataclass(frozen=True)
class _Look:
    """A look at the oldest dead letter: how many there were, when it had died, and when that was seen."""

    ready: int
    died: datetime
    at: datetime


class Reader:
    """Takes snapshots over one connection, which it makes anew when it was lost."""

    def __init__(self, app: App, names: Sequence[str] = ()) -> None:
        """`names` are any queues of the virtual host, and `delayed`; without, all that are ours."""
        self._app = app
        self._topology = app.settings.topology
        self._names = tuple(dict.fromkeys(names)) or ours(self._topology)
        self._broker = app.connection_for_read()
        self._management = Management.from_settings(app.settings)
        self._dead: _Look | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        connection.abandon(self._broker)

    def snapshot(self) -> Snapshot:
        """The queues now. Takes at most a few times `TIMEOUT`, when nothing answers.

        What the management API lacks is a problem of the snapshot. Raises `BadInput` for a name that is
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
            problems.append(f"rates, and how long messages wait, are not known: {error}")
            return None
        # A user who may see queues and not nodes hears nothing of alarms.
        with suppress(ManagementUnavailable):
            problems += queue_statistics.alarms(self._management)
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
                problems.append(f"unacknowledged messages of {queue.name} are not known: {error}")
        return held

    def _ages(
        self,
        declared: dict[str, Declared | None],
        statistics: dict[str, Statistics],
        problems: list[str],
    ) -> dict[str, float]:
        ages = {}
        for name, found in declared.items():
            if not found or not found.ready or name == DELAYED:
                if name == queues.dead_queue.name:
                    self._dead = None
                continue
            try:
                if name == queues.dead_queue.name:
                    ages[name] = self._age_of_dead(found.ready)
                elif name in statistics and statistics[name].delivered is not None:
                    ages[name] = queue_statistics.oldest(self._management, name)
            except ProjError as error:
                problems.append(f"the age of the oldest message of {name} is not known: {error}")
        return ages

    def _age_of_dead(self, ready: int) -> float:
        now, look = datetime.now(UTC), self._dead
        # Dead letters leave from anywhere and arrive at the end, so the oldest stays while none has left.
        if look is None or ready < look.ready or (now - look.at).total_seconds() > _LOOK_AGAIN:
            look = self._dead = _Look(ready, self._first_death(ready), now)
        return max(0.0, (now - look.died).total_seconds())

    def _first_death(self, ready: int) -> datetime:
        see = "see: proj dead list --limit 1"
        if ready > _FEW:
            raise BrokerRefused(f"there are more than {_FEW}", see)
        all_of_ours = [queue.name for queue in self._topology.queues]
        declared = read_declared(self._broker, self._topology, all_of_ours)
        if not all(declared.values()):  # whoever reads dead letters declares the whole topology
            raise BrokerRefused("part of the topology is missing", "a worker that starts declares it")
        first = dead_letters.listing(self._app, Wanted(), limit=1, patience=0)
        last = first[0].last if first else None
        if not last:
            raise BrokerRefused("the broker has not written when it died", see)
        return datetime.fromisoformat(last)


def ours(topology: Topology) -> tuple[str, ...]:
    """What is shown when nothing else is asked for."""
    return (*(queue.name for queue in topology.work_queues), DELAYED, queues.dead_queue.name)


def read_declared(broker: Any, wanted: Topology, names: Sequence[str]) -> dict[str, Declared | None]:
    """Ready messages and consumers of these queues, over a connection that is made when there is none.

    None for one of ours that does not exist. Ends within `TIMEOUT`, and declares nothing. Raises `BadInput`,
    `BrokerUnreachable` and `BrokerRefused`.
    """
    with connection.bounded(broker, TIMEOUT):
        return {name: _read(broker.default_channel, wanted, name) for name in names}


def _read(channel: Any, wanted: Topology, name: str) -> Declared | None:
    if name == DELAYED:
        states = [_declared(channel, each) for each in queues.DELAY_QUEUES]
        return Declared(sum(s.ready for s in states if s), sum(s.consumers for s in states if s))
    found = _declared(channel, name)
    if found is None and name not in ours(wanted):
        raise BadInput(f"there is no queue {name!r}", f"without a name, it shows {', '.join(ours(wanted))}")
    return found


def _declared(channel: Any, name: str) -> Declared | None:
    if not queues.can_be_name(name):
        return None
    try:
        found = topology.look(channel, name)
    except NotFound:  # py-amqp has opened the channel again
        return None
    except ResourceLocked as error:
        raise BrokerRefused(f"queue {name!r} is exclusive: only who declared it may look at it") from error
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
    if name == DELAYED:
        each = [statistics[level] for level in queues.DELAY_QUEUES if level in statistics]
        # What leaves a delay is not delivered to anybody.
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
    # Of what comes in by a dead-letter exchange, RabbitMQ counts nothing.
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
    """Unknown when one of them is."""
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)
