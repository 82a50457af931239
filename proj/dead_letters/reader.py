"""Reading the dead-letter queue in order: to list, redrive or drop its messages.

Only one program reads at a time, and listing changes neither the messages nor their order. A quorum queue
delivers requeued messages before those that were never read, and puts a requeued one behind the others. So
a reader must read all messages that were ever requeued, or requeueing would change the order.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import amqp
from amqp.exceptions import ResourceLocked

from proj import queues, results
from proj.dead_letters import publisher
from proj.dead_letters.end import End, is_stored_later
from proj.dead_letters.letter import DeadLetter, Wanted
from proj.dead_letters.publisher import WINDOW
from proj.enqueue import checks
from proj.enqueue.app import App
from proj.errors import BrokerRefused, OutcomeUnknown, ProjError
from proj.logs import events
from proj.rabbitmq import connection, failures, topology

log = logging.getLogger(__name__)

#: Messages read at a time when the needed number is unknown.
CHUNK: Final = 500

#: Roughly the most channels of a reader: RabbitMQ allows 2047 on a connection.
_MAX_CHUNKS: Final = 1000

#: The largest prefetch count: AMQP has 16 bits for it.
_MAX_CHUNK: Final = 2**16 - 1

#: Share of what was read to read on at a time, in search of the end of the requeued messages. Small, since
#: surplus messages are requeued too; larger above `_MANY` messages, where many steps would cost more.
_READ_ON, _READ_ON_OF_MANY, _MANY = 1 / 50, 1 / 10, 1000

#: Seconds for the broker to requeue the messages of a channel; milliseconds are usual.
_GIVE_BACK_TIMEOUT: Final = 10

#: Seconds to wait while another program reads, and between two attempts; milliseconds are usual.
_READER_PATIENCE, _READER_INTERVAL = 5.0, 0.25

Progress = Callable[[int], AbstractContextManager[Callable[[], None]]]

#: Gets each dead letter when it arrives. Only what it keeps stays in memory: each may have 16 MiB.
Take = Callable[[DeadLetter], None]

#: Sends dead letters and returns those that must stay, each with the reason.
Send = Callable[[list[DeadLetter]], dict[DeadLetter, str]]


@dataclass
class Report:
    """What became of the chosen dead letters."""

    done: int = 0
    #: Reasons why some stayed in the queue, with their number.
    left: Counter[str] = field(default_factory=Counter)
    #: The ids found, when ids were given.
    ids: set[str] = field(default_factory=set)
    #: Some stayed for a reason outside of the message: a missing queue, or a broker that refused.
    undeliverable: bool = False


def listing(app: App, wanted: Wanted, limit: int, patience: float = _READER_PATIENCE) -> list[DeadLetter]:
    """The first `limit` dead letters that match, oldest first.

    Reads no more than needed: without a filter `limit` messages, and all that were read before. Raises `Busy`
    when another program is still reading after `patience` seconds.
    """
    found: list[DeadLetter] = []

    def take(letter: DeadLetter) -> None:
        if len(found) < limit and letter in wanted:
            found.append(letter)

    with _reading(app, patience) as reader:
        for _ in reader.chunks(limit if wanted == Wanted() else CHUNK, take):
            if len(found) >= limit:
                break
    return found


@contextmanager
def survey(app: App, limit: int, take: Take) -> Iterator[None]:
    """Call `take` with each of the oldest `limit` dead letters, and then run the block.

    Nobody else reads, redrives or drops any until it ends. Raises `Busy` when another program is reading.
    """
    with _reading(app, patience=0) as reader:
        for _ in reader.chunks(CHUNK, take, limit):
            pass
        yield


def is_empty(app: App) -> bool:
    """Whether there is no dead letter, not even one that another program is reading.

    Raises `Busy` when another program is reading.
    """
    with _reading(app, patience=0) as reader:
        return bool(reader.total == 0)


def redrive(
    app: App,
    wanted: Wanted,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Send dead letters back to their queues, each acknowledged only after its copy is confirmed.

    Covers those in the queue at the start, not one that dies again meanwhile. A letter that no queue accepts
    stays. A crash loses none, and leaves at most `WINDOW` in both queues. Raises `OutcomeUnknown` when the
    broker stops answering.
    """

    def sender(reader: _Reader) -> Send:
        if dry_run:
            return publisher.DryRun(reader.channel).send
        return publisher.Publisher(reader.channel, reader.answer_timeout).send

    return _work(app, wanted, limit, dry_run, progress, sender, events.REDRIVEN)


def drop(
    app: App,
    wanted: Wanted,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Delete dead letters permanently, of those in the queue at the start.

    Raises `OutcomeUnknown` when the broker stops answering.
    """
    return _work(
        app, wanted, limit, dry_run, progress, lambda _: lambda _: {}, events.DROPPED, _Failures(app).forget
    )


class _Failures:
    """The stored failures of dropped letters; asks no more of a store that is down."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._is_up = app.settings.deletes_results

    def forget(self, letters: list[DeadLetter]) -> None:
        """Delete those of these letters, but none of a later life of a message."""
        if not self._is_up:
            return
        known = [letter for letter in letters if checks.is_id(letter.id)]
        try:
            late = results.failures(self._app, {letter.id for letter in known if is_stored_later(letter)})
            ends = {letter.id: _end(letter, *late.get(letter.id, (None, None))) for letter in known}
            results.forget_failures(self._app, {each: end for each, end in ends.items() if end})
        except ProjError as error:
            self._is_up = False
            log.warning("The failures of dropped dead letters are still stored: %s", error)


def _end(letter: DeadLetter, stored: datetime | None, error: str | None) -> datetime | None:
    """The time before which the letter's failure was stored; None when that is unknown."""
    if stored and End(letter).has(error):
        return stored + timedelta(seconds=1)
    # The broker records whole seconds.
    return datetime.fromisoformat(letter.last) + timedelta(seconds=1) if letter.last else None


def _work(
    app: App,
    wanted: Wanted,
    limit: int | None,
    dry_run: bool,
    progress: Progress | None,
    sender: Callable[["_Reader"], Send],
    event: str,
    after: Callable[[list[DeadLetter]], None] = lambda _: None,
) -> Report:
    report = Report()
    meant: list[DeadLetter] = []

    def has_room() -> bool:
        return limit is None or report.done + report.left.total() + len(meant) < limit

    def take(letter: DeadLetter) -> None:
        if has_room() and letter in wanted:
            meant.append(letter)

    with (
        _reading(app) as reader,
        _counting(reader, report, event),
        (progress or (lambda _: nullcontext(lambda: None)))(reader.total) as advance,
    ):
        send = sender(reader)
        for count in reader.chunks(CHUNK, take):
            report.ids |= {letter.id for letter in meant} if wanted.ids is not None else set()
            for window in publisher.windows(meant):
                began = time.time()
                kept = send(window)
                done = [letter for letter in window if letter not in kept]
                report.left.update(kept.values())
                report.undeliverable |= bool(set(kept.values()) - publisher.IN_ITSELF)
                if not dry_run:
                    reader.settle(done)
                    after(done)
                    for letter in done:
                        _log(event, letter, began)
                report.done += len(done)
            meant.clear()
            for _ in range(count):
                advance()
            if not has_room():
                break
    return report


@contextmanager
def _counting(reader: "_Reader", report: Report, event: str) -> Iterator[None]:
    """Add the number of letters already done to an error of the broker in the block."""
    try:
        yield
    except failures.ERRORS as error:
        raise _interrupted(error, reader, report, event) from error


def _log(event: str, letter: DeadLetter, at: float) -> None:
    queue = publisher.target(letter) if event == events.REDRIVEN else queues.dead_queue.name
    words = f"redriven to {queue}" if event == events.REDRIVEN else "dropped"
    named = letter.headers.get("task")
    name = named if isinstance(named, str) else None
    events.say(log, logging.INFO, event, letter.id, name, words, at=at, queue=queue, reason=letter.reason)


def _interrupted(error: BaseException, reader: "_Reader", report: Report, event: str) -> Exception:
    if failures.is_refusal(error):
        return BrokerRefused(f"after {report.done} dead letters the broker refused: {error}")
    why = f", {connection.ALARM}" if connection.is_blocked(reader.broker) else ""
    problem = f"after {report.done} dead letters the broker did not answer{why}"
    if event == events.DROPPED:
        return OutcomeUnknown(problem, f"repeat the command; up to {WINDOW} more may be dropped")
    return OutcomeUnknown(
        f"{problem}; no dead letter is lost", f"repeat the command; up to {WINDOW} may have been sent twice"
    )


class _Reader:
    """Reads the queue from its front, one chunk per channel, and requeues unsettled messages in order."""

    def __init__(self, app: App, broker: Any, patience: float) -> None:
        """Raises `Busy` when another program is still reading after `patience` seconds."""
        self.broker = broker
        self.channel: Callable[[], Any] = broker.channel
        self._drain = broker.drain_events
        self.answer_timeout = _answer_timeout(app)
        self._work_queues = frozenset(queue.name for queue in app.settings.topology.work_queues)
        topology.ensure(broker, app.settings.topology)
        self._control = self._take(time.monotonic() + patience)
        state = topology.look(self._control, queues.dead_queue.name)
        if state.consumer_count:
            raise Busy
        self.total = state.message_count
        self._read = 0
        self._read_before = False
        #: For each channel, the numbers of messages read and settled.
        self._held: dict[Any, list[int]] = {}

    def _take(self, deadline: float) -> Any:
        """A channel that holds the exclusive queue `DEAD_READER`, which is the lock."""
        while True:
            channel = self.channel()
            try:
                channel.queue_declare(queues.DEAD_READER, exclusive=True, durable=False, auto_delete=True)
            except ResourceLocked:
                if time.monotonic() > deadline:
                    raise Busy from None
                time.sleep(_READER_INTERVAL)
            else:
                return channel

    def chunks(self, size: int, take: Take, limit: int | None = None) -> Iterator[int]:
        """Read the messages that were in the queue at the start, or the first `limit` of them.

        The first chunk has `size`. Yields the number of messages of each chunk, all of which `take` got.
        """
        end = self.total if limit is None else min(limit, self.total)
        while self._read < end:
            yield self._chunk(min(size, end - self._read), take)
            size = max(CHUNK, self.total // _MAX_CHUNKS)

    def settle(self, letters: list[DeadLetter]) -> None:
        """Acknowledge letters of one chunk, in their order; the broker deletes them."""
        if not letters:
            return
        channel, last = letters[-1].message.channel, letters[-1].message.delivery_tag
        self._held[channel][1] += len(letters)
        # In a transaction, so that the quorum queue gets all of them in one command. The broker defers single
        # acknowledgements beyond 32 for milliseconds, and forgets them when the channel closes.
        channel.tx_select()
        if self._held[channel][1] == last:  # all before it are settled
            channel.basic_ack(last, multiple=True)
        else:
            for letter in letters:
                channel.basic_ack(letter.message.delivery_tag)
        channel.tx_commit()

    def give_back(self) -> None:
        """Requeue the unsettled messages in their order; returns when the broker has done so."""
        while self._read_before and self._read < self.total:
            share = _READ_ON if self._read < _MANY else _READ_ON_OF_MANY
            self._chunk(max(1, int(self._read * share)))
        for channel, (read, settled) in self._held.items():
            expected = self._ready() + read - settled
            channel.close()
            deadline = time.monotonic() + _GIVE_BACK_TIMEOUT
            while settled < read and self._ready() < expected and time.monotonic() < deadline:
                pass  # no busy loop: `_ready` is a round trip
        self._control.queue_delete(queues.DEAD_READER)

    def _chunk(self, size: int, take: Take | None = None) -> int:
        size = min(size, self.total - self._read, _MAX_CHUNK)
        for over in [channel for channel, (read, settled) in self._held.items() if read == settled]:
            del self._held[over]
            over.close()
        channel = self.channel()
        channel.auto_decode = False  # a redrive sends the body unchanged
        read = 0

        def on_message(message: amqp.Message) -> None:
            nonlocal read
            read += 1
            self._read_before = message.delivery_info["redelivered"]
            if take:
                take(DeadLetter(message, self._work_queues))

        channel.basic_qos(0, size, a_global=False)
        tag = channel.basic_consume(queues.dead_queue.name, callback=on_message)
        try:
            while read < size:
                self._drain(timeout=self.answer_timeout)
        except TimeoutError:
            if self._ready():
                raise
            raise Busy from None
        channel.basic_cancel(tag)  # or each acknowledgement would bring another message
        self._held[channel] = [size, 0]
        self._read += size
        return size

    def _ready(self) -> int:
        return int(topology.look(self._control, queues.dead_queue.name).message_count)


class Busy(BrokerRefused):
    """Raised when another program is reading the dead letters."""

    def __init__(self) -> None:
        super().__init__("another program is reading the dead letters", "try again when it has ended")


@contextmanager
def _reading(app: App, patience: float = _READER_PATIENCE) -> Iterator[_Reader]:
    broker = app.connection_for_write()
    try:
        connection.connect(broker, time.monotonic() + _answer_timeout(app))
        reader = _Reader(app, broker, patience)
        yield reader
        reader.give_back()
        broker.close()
    except failures.ERRORS as error:
        raise failures.explain(error, broker) from error
    finally:
        connection.abandon(broker)  # the broker requeues whatever is still unacknowledged


def _answer_timeout(app: App) -> float:
    return float(app.conf.broker_transport_options["read_timeout"])
