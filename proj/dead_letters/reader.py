"""Dead letters: look at them, redrive them, drop them.

To look changes neither the messages nor their order, and only one program looks at a time. A quorum queue
hands out what was given back before what was never read, and takes what is given back in at the end
of that. So whoever reads a part must read all that was ever given back, or the order would turn.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import amqp
from amqp.exceptions import ResourceLocked

from proj import queues
from proj.dead_letters import publisher
from proj.dead_letters.letter import DeadLetter, Wanted
from proj.dead_letters.publisher import WINDOW
from proj.enqueue.app import App
from proj.errors import BrokerRefused, OutcomeUnknown
from proj.logs import events
from proj.rabbitmq import connection, failures, topology

log = logging.getLogger(__name__)

#: Messages read at a time when it is not known how many are needed.
CHUNK: Final = 500

#: Channels that a reader uses at most, roughly: RabbitMQ allows 2047 on a connection.
_MAX_CHUNKS: Final = 1000

#: The most messages that a consumer can hold: AMQP counts them in 16 bits.
_MAX_CHUNK: Final = 2**16 - 1

#: Share of what is read that is read on to find the end of what was given back. Each look makes that longer
#: by as much, so it is small; but not over `_MANY` messages, where each step would cost more than it saves.
_READ_ON, _READ_ON_OF_MANY, _MANY = 1 / 50, 1 / 10, 1000

#: Seconds that the broker may take to put back what was given back. It takes milliseconds.
_GIVE_BACK_TIMEOUT: Final = 10

#: Seconds that people wait while a worker looks, and seconds between two attempts. As a rule, a look takes
#: milliseconds.
_READER_PATIENCE, _READER_INTERVAL = 5.0, 0.25

Progress = Callable[[int], AbstractContextManager[Callable[[], None]]]

#: Sends dead letters on, and returns those that must stay, each with the reason.
Send = Callable[[list[DeadLetter]], dict[DeadLetter, str]]


@dataclass
class Report:
    """What became of the dead letters that were meant."""

    done: int = 0
    #: Why some stayed where they are, and how many.
    left: Counter[str] = field(default_factory=Counter)
    #: Ids that were met.
    ids: set[str] = field(default_factory=set)
    #: A queue that is gone, or a broker that refused: to be mended outside of the messages.
    undeliverable: bool = False


def listing(app: App, wanted: Wanted, limit: int, patience: float = _READER_PATIENCE) -> list[DeadLetter]:
    """The first dead letters that are meant, oldest first, at most `limit`.

    Reads no more than it must: with nothing to look for, `limit` messages and what was looked at before.
    Raises `Busy` when another program has been looking for `patience` seconds.
    """
    found: list[DeadLetter] = []
    with _reading(app, patience) as reader:
        for chunk in reader.chunks(limit if wanted == Wanted() else CHUNK):
            found += [letter for letter in chunk if letter in wanted]
            if len(found) >= limit:
                break
    return found[:limit]


def survey(app: App, limit: int, size: int, note: Callable[[DeadLetter], None]) -> None:
    """Call `note` with each of the oldest `limit` dead letters, `size` of which are in memory at a time.

    Raises `Busy` when another program is looking.
    """
    with _reading(app, patience=0) as reader:
        for chunk in reader.chunks(size, most=size):
            for letter in chunk:
                note(letter)
            limit -= len(chunk)
            if limit <= 0:
                break


def redrive(
    app: App,
    wanted: Wanted,
    limit: int | None = None,
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Send dead letters back to the queues they came from, each acknowledged once its copy is confirmed.

    Only those that are there at the start; one that dies again meanwhile waits for the next time. A crash
    in between leaves at most `WINDOW` messages in both queues, and loses none. What no queue takes stays,
    and the others go on. Raises `OutcomeUnknown` when the broker stops to answer.
    """

    def sender(reader: _Reader) -> Send:
        if dry_run:
            return publisher.Rehearsal(reader.channel).send
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
    """Delete dead letters for good; only those that are there at the start.

    Raises `OutcomeUnknown` when the broker stops to answer.
    """
    return _work(app, wanted, limit, dry_run, progress, lambda _: lambda _: {}, events.DROPPED)


def _work(
    app: App,
    wanted: Wanted,
    limit: int | None,
    dry_run: bool,
    progress: Progress | None,
    sender: Callable[["_Reader"], Send],
    event: str,
) -> Report:
    report = Report()
    with (
        _reading(app) as reader,
        _counting(reader, report, event),
        (progress or (lambda _: nullcontext(lambda: None)))(reader.total) as advance,
    ):
        send = sender(reader)
        for chunk in reader.chunks(CHUNK):
            room = None if limit is None else limit - report.done - report.left.total()
            meant = [letter for letter in chunk if letter in wanted][:room]
            report.ids |= {letter.id for letter in meant} if wanted.ids is not None else set()
            for window in publisher.windows(meant):
                began = time.time()
                kept = send(window)
                done = [letter for letter in window if letter not in kept]
                report.left.update(kept.values())
                report.undeliverable |= any(reason != publisher.NOWHERE for reason in kept.values())
                if not dry_run:
                    reader.settle(done)
                    for letter in done:
                        _log(event, letter, began)
                report.done += len(done)
            for _ in chunk:
                advance()
            if limit is not None and report.done + report.left.total() >= limit:
                break
    return report


@contextmanager
def _counting(reader: "_Reader", report: Report, event: str) -> Iterator[None]:
    """Say of a broker that goes away in the block after how many dead letters it did so."""
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
        return OutcomeUnknown(problem, f"repeat the command; up to {WINDOW} more may be gone")
    return OutcomeUnknown(
        f"{problem}; no dead letter is lost", f"repeat the command; up to {WINDOW} may have been sent twice"
    )


class _Reader:
    """Reads the queue from its front, a chunk a channel, and gives back in order what is not settled."""

    def __init__(self, app: App, broker: Any, patience: float) -> None:
        """Raises `Busy` when another program has been looking for `patience` seconds."""
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
        #: Each channel, how many messages it has read, and how many of them are settled.
        self._held: dict[Any, list[int]] = {}

    def _take(self, deadline: float) -> Any:
        """A channel, once this program is the one that looks."""
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

    def chunks(self, size: int, most: int | None = None) -> Iterator[list[DeadLetter]]:
        """All messages that were there at the start; the first chunk has `size`, the others `most`."""
        while self._read < self.total:
            yield self._chunk(size)
            size = most or max(CHUNK, self.total // _MAX_CHUNKS)

    def settle(self, letters: list[DeadLetter]) -> None:
        """Acknowledge letters of one chunk, the earlier ones first: the broker may forget them."""
        if not letters:
            return
        channel, last = letters[-1].message.channel, letters[-1].message.delivery_tag
        self._held[channel][1] += len(letters)
        # In a transaction, so that a quorum queue gets all of them in one command, before the channel is
        # closed. Of more than 32 single ones under way the broker would put some off, for milliseconds,
        # and forget them with the channel.
        channel.tx_select()
        if self._held[channel][1] == last:  # nothing before it stays
            channel.basic_ack(last, multiple=True)
        else:
            for letter in letters:
                channel.basic_ack(letter.message.delivery_tag)
        channel.tx_commit()

    def give_back(self) -> None:
        """Put back what is not settled, in the order it was in; returns when the broker has done so."""
        while self._read_before and self._read < self.total:
            share = _READ_ON if self._read < _MANY else _READ_ON_OF_MANY
            self._chunk(max(1, int(self._read * share)), keep=False)
        for channel, (read, settled) in self._held.items():
            expected = self._ready() + read - settled
            channel.close()
            deadline = time.monotonic() + _GIVE_BACK_TIMEOUT
            while settled < read and self._ready() < expected and time.monotonic() < deadline:
                pass  # each look is a round trip
        self._control.queue_delete(queues.DEAD_READER)

    def _chunk(self, size: int, *, keep: bool = True) -> list[DeadLetter]:
        size = min(size, self.total - self._read, _MAX_CHUNK)
        for over in [channel for channel, (read, settled) in self._held.items() if read == settled]:
            del self._held[over]
            over.close()
        channel = self.channel()
        channel.auto_decode = False  # a body is sent back byte by byte
        messages: list[amqp.Message] = []
        read = 0

        def take(message: amqp.Message) -> None:
            nonlocal read
            read += 1
            self._read_before = message.delivery_info["redelivered"]
            if keep:
                messages.append(message)

        channel.basic_qos(0, size, a_global=False)
        tag = channel.basic_consume(queues.dead_queue.name, callback=take)
        try:
            while read < size:
                self._drain(timeout=self.answer_timeout)
        except TimeoutError:
            if self._ready():
                raise
            raise Busy from None
        channel.basic_cancel(tag)  # so that what is settled is not made up for
        self._held[channel] = [size, 0]
        self._read += size
        return [DeadLetter(message, self._work_queues) for message in messages]

    def _ready(self) -> int:
        return int(topology.look(self._control, queues.dead_queue.name).message_count)


class Busy(BrokerRefused):
    """Another program is looking at the dead letters."""

    def __init__(self) -> None:
        super().__init__("another program is looking at the dead letters", "try again when it has ended")


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
        connection.abandon(broker)  # what was not given back in order is given back by the broker


def _answer_timeout(app: App) -> float:
    return float(app.conf.broker_transport_options["read_timeout"])
