"""Sends the messages of a batch until each has its outcome, some of them more than once."""

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from amqp import spec
from amqp.exceptions import ConnectionError as BrokerClosed
from amqp.exceptions import ConnectionForced, FrameSyntaxError
from celery.canvas import Signature

from proj.enqueue import priorities
from proj.enqueue.app import App
from proj.enqueue.composing import UNSENDABLE, Composed, unsendable
from proj.enqueue.pipeline import Pipeline
from proj.enqueue.published import FULL, Status, full_queue, no_route, unknown
from proj.errors import BrokerRefused, BrokerUnreachable, OutcomeUnknown, ProjError
from proj.logs import events, spans
from proj.rabbitmq import connection, failures
from proj.rabbitmq.publishing import Nacked, Sent

log = logging.getLogger("proj.enqueue")

#: Bytes of a body from which on a message is sent alone: over one that is too large for it the broker closes
#: the channel, and what was in flight would have to be sent again.
_LARGE: Final = 2**20

#: Bytes that are written to the socket at once.
_WRITE: Final = 2**16

#: How many messages are put together, unless there is more time between them.
_AT_ONCE: Final = 16

#: Seconds between two looks for answers while there is room for more messages.
_LOOK: Final = 0.005

#: Seconds until a refused message, or a connection, is tried again: first, and at most.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


@dataclass(eq=False, slots=True, kw_only=True)
class Entry(Sent):
    """A request that was taken, and its message."""

    request: Signature
    key: Any
    composed: Composed
    #: Bytes of its body.
    size: int
    #: When it was taken (`time.time`).
    began: float
    #: Whether it is sent when nothing else is in flight.
    alone: bool = False
    #: Whether it may be in a queue from an attempt before, such as one whose connection was lost.
    may_be_queued: bool = False
    #: Whether the broker has closed the channel over it or another one. If over another, it may be queued.
    is_suspect: bool = False
    #: Whether everything was declared again for it.
    redeclared: bool = False
    status: Status | None = None
    error: ProjError | None = None


class Sender:
    """Takes entries, and gives each its status and error. For one thread.

    Errors of the broker are outcomes. After any other exception, such as `KeyboardInterrupt`, what was not
    confirmed stays without an outcome, and the sender is over.
    """

    def __init__(self, app: App, window: int) -> None:
        """Connects with the first entry."""
        self._app = app
        self._window = window
        self._patience = app.settings.proj_publish_timeout
        #: How many entries have no outcome, and the bytes of their bodies.
        self.open = 0
        self.bytes = 0
        self._pipeline: Pipeline | None = None
        self._was_connected = False
        self.is_over = False
        #: Those to be sent, or to be sent again.
        self._unsent: deque[Entry] = deque()
        #: Whether the message in flight was sent alone.
        self._is_alone = False
        #: Whether a message was returned, so that everything is to be declared again.
        self._is_stale = False
        #: Those that a full queue has refused, and when they are sent again.
        self._nacked: list[Entry] = []
        self._again_at = 0.0
        self._pause = _FIRST_PAUSE
        #: Addresses of queues that were full for too long: until one takes a message, nobody waits for it.
        self._full: set[tuple[str, str]] = set()
        # Of `time.monotonic`: the last confirm, and the last answer of any kind, to which the time is added
        # that the caller has spent since; the last look for answers; and the end of the last call.
        self._confirmed_at = self._answered_at = self._looked_at = self._left_at = time.monotonic()
        #: Since when each look has found all written and nothing answered.
        self._silent_since: float | None = None
        #: Until when nobody tries to connect, and why.
        self._down_until = 0.0
        self._down: ProjError | None = None

    def add(self, entry: Entry) -> None:
        """Take an entry, which `work` sends."""
        if not self.open:
            self._confirmed_at = self._answered_at = self._left_at = time.monotonic()
        self.open += 1
        self.bytes += entry.size
        entry.alone = entry.size >= _LARGE
        self._unsent.append(entry)

    @property
    def is_due(self) -> bool:
        """Whether `work` has something to do that should not wait for the next entry."""
        if self._pipeline is None or len(self._unsent) >= _AT_ONCE:
            return True
        return time.monotonic() - self._looked_at > _LOOK

    def work(self, *, wait: bool = False, look: bool = False) -> None:
        """Send what there is room for, and read answers.

        With `wait` the next answer is waited for, and with `look` those are read that are there. Otherwise
        both the writing and the reading may be left for a later call.
        """
        now = time.monotonic()
        self._answered_at += now - self._left_at
        # Until `_again_at` there was nothing to do for what full queues have refused.
        self._confirmed_at += max(0.0, now - max(self._left_at, self._again_at if self._nacked else 0))
        try:
            self._send(now)
            if wait:
                self._wait()
            elif self._pipeline and (look or now - self._looked_at > _LOOK):
                self._looked_at = now
                self._pipeline.window.flush(self._deadline)
                while self._pipeline.window.read(now):
                    pass
                if look:
                    self._end_silence(now)
            if self._is_stale and self._pipeline and not len(self._pipeline.window):
                self._abandon()
        except failures.ERRORS as error:
            self._recover(failures.root(error))
        except BaseException:
            self._abandon()
            self.open, self.is_over = 0, True
            raise
        self._left_at = time.monotonic()

    def close(self) -> None:
        """Give the connection back. Nothing may be open, or it is lost with the connection."""
        if self._pipeline and not self.open:
            self._pipeline.close(time.monotonic() + self._patience)
            self._pipeline = None
        self._abandon()

    def forget(self) -> None:
        """Leave the connection to the process that this one was forked from."""
        if self._pipeline:
            self._pipeline.forget()
        self._pipeline = None

    @property
    def _deadline(self) -> float:
        """Until when the broker may answer nothing."""
        return self._answered_at + self._patience

    @property
    def _room_deadline(self) -> float:
        """Until when what full queues have refused is sent again. Not after `_deadline`."""
        return self._confirmed_at + self._patience

    def _send(self, now: float) -> None:
        if self._nacked and now >= self._room_deadline:
            self._refuse_nacked()
        elif self._nacked:
            if now < self._again_at:
                return
            self._unsent.extendleft(reversed(self._nacked))
            self._nacked.clear()
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if not self._unsent or not (self._pipeline or self._connect(now)) or self._is_stale:
            return
        assert self._pipeline is not None
        window = self._pipeline.window
        while self._unsent and len(window) < self._window:
            entry = self._unsent[0]
            # To declare takes round trips, in which an error of what is in flight might come.
            declares = bool(entry.composed.delay) and not self._pipeline.delays_are_declared
            if len(window) and (entry.alone or self._is_alone or declares):
                break
            try:
                if declares:
                    self._pipeline.declare_delays(self._deadline)
                if entry.composed.priority:
                    priorities.warn_if_ignored(self._pipeline.broker)
                entry.answered, entry.refusal = False, None
                window.put(entry, mandatory=entry.composed.mandatory)
                self._is_alone = entry.alone
            except BrokerRefused as error:
                self._end(entry, error)
            except (*UNSENDABLE, FrameSyntaxError) as error:
                self._end(entry, unsendable(self._app, entry.composed.task, error))
            self._unsent.popleft()
            if window.unwritten >= _WRITE:
                window.flush(self._deadline)

    def _connect(self, now: float) -> bool:
        """Connect; when it returns False, all entries have their outcome."""
        pause = _FIRST_PAUSE
        if self._down and now < self._down_until:
            self._end_all(self._down)
            return False
        while True:
            try:
                self._pipeline = Pipeline(self._app, self._deadline, self._on_answer)
            except (BrokerUnreachable, BrokerRefused) as error:
                may_pass = isinstance(error, BrokerUnreachable) and self._was_connected
                if may_pass and time.monotonic() + pause < self._deadline:
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                # For as long as it has taken: else each request that follows would take as long.
                self._down, self._down_until = error, 2 * time.monotonic() - now
                self._end_all(error)
                return False
            self._was_connected, self._down = True, None
            self._is_stale = self._is_alone = False
            return True

    def _wait(self) -> None:
        """Wait for the next answer, until a refused message is sent again, or until the deadline."""
        if not self.open:
            return
        until = min(self._room_deadline, self._again_at) if self._nacked else self._deadline
        if self._pipeline:
            if self._pipeline.window.read(until):
                return
        elif self._nacked:
            time.sleep(max(0, until - time.monotonic()))
        if not self._nacked and time.monotonic() >= self._deadline:
            self._give_up()

    def _end_silence(self, now: float) -> None:
        """Give up when looks have found no answer for as long as one would be waited for."""
        if self._pipeline is None or not len(self._pipeline.window):
            self._silent_since = None
        elif self._silent_since is None:
            self._silent_since = now
        elif now >= self._silent_since + self._patience:
            self._give_up()

    def _on_answer(self, entry: Entry) -> None:
        self._answered_at, self._silent_since = time.monotonic(), None
        if entry.refusal is None:
            self._confirmed_at, self._pause = self._answered_at, _FIRST_PAUSE
            if self._full:
                self._full.discard((entry.exchange, entry.routing_key))
            self._end(entry)
        elif isinstance(entry.refusal, Nacked):
            if entry.refusal.may_be_queued:
                entry.may_be_queued = True
                entry.composed.mark_repeat()
            if (entry.exchange, entry.routing_key) in self._full:
                self._end(entry, full_queue(entry.composed.task), FULL)
                return
            if not self._nacked:
                self._again_at = self._answered_at + self._pause
            self._nacked.append(entry)
        elif entry.redeclared:
            self._end(entry, no_route(entry.composed.task))
        else:
            # Its queue may have been deleted: everything is declared on the next connection.
            entry.redeclared = self._is_stale = True
            self._unsent.append(entry)

    def _recover(self, error: BaseException) -> None:
        """After an error of the connection or the channel, let what it leaves open be sent again."""
        pipeline = self._pipeline
        if pipeline is None or (isinstance(error, TimeoutError) and error.errno is None):
            self._give_up()
            return
        is_over_message = getattr(error, "method_sig", None) == spec.Basic.Publish or (
            # Such as over a frame that it cannot read. Without a method, py-amqp has raised it.
            isinstance(error, BrokerClosed) and error.method_sig and not isinstance(error, ConnectionForced)
        )
        written = self._abandon()
        if is_over_message and len(written) == 1:
            self._answer_error(written[0], error, pipeline)
            return
        for entry in written:
            # Over which of several messages the broker closed the channel becomes clear when each is alone.
            entry.alone = entry.alone or is_over_message
            if is_over_message:
                entry.is_suspect = True
            else:
                entry.may_be_queued = True
            entry.composed.mark_repeat()
            words = "published once more: the broker did not confirm it"
            self._say(logging.WARNING, events.PUBLISH_REPEATED, entry, words)
        if written and not is_over_message:
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _answer_error(self, entry: Entry, error: BaseException, pipeline: Pipeline) -> None:
        """The broker has closed the channel, or the connection, over this message."""
        self._unsent.remove(entry)
        if failures.is_missing(error) and not entry.redeclared:
            entry.redeclared = True
            self._unsent.appendleft(entry)
        elif failures.is_refusal(error):
            entry.is_suspect = False
            self._end(entry, failures.explain(error, pipeline.broker))
        else:
            entry.may_be_queued = True
            self._end(entry, BrokerUnreachable(failures.words(error)))

    def _give_up(self) -> None:
        """Nothing was answered until the deadline: all that is open gets its outcome."""
        self._silent_since = None
        why = connection.ALARM if self._pipeline and self._pipeline.is_blocked else ""
        for entry in self._abandon():
            entry.may_be_queued = True
        self._down_until = time.monotonic() + self._patience
        self._down = BrokerUnreachable(
            f"the broker does not confirm what was sent before{f', {why}' if why else ''}",
            "this message was not sent",
        )
        self._end_all(self._down, why)

    def _refuse_nacked(self) -> None:
        """Nothing was confirmed for too long: refuse what full queues have refused, and will refuse."""
        nacked, self._nacked = self._nacked, []
        for entry in nacked:
            self._full.add((entry.exchange, entry.routing_key))
            self._end(entry, full_queue(entry.composed.task), FULL)

    def _abandon(self) -> list[Entry]:
        """Drop the connection; returns those that it leaves open and that may have arrived."""
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is None:
            return []
        written, unwritten = pipeline.window.in_flight
        pipeline.abandon()
        self._unsent.extendleft(reversed([*written, *unwritten]))
        return written

    def _end_all(self, error: ProjError, why: str = "") -> None:
        entries: Iterable[Entry] = [*self._unsent, *self._nacked]
        self._unsent.clear()
        self._nacked.clear()
        for entry in entries:
            self._end(entry, error, why)

    def _end(self, entry: Entry, error: ProjError | None = None, why: str = "") -> None:
        """Give the entry its outcome: refused with this error, unless it may be in a queue."""
        composed = entry.composed
        if error and (entry.may_be_queued or entry.is_suspect):
            error = unknown(composed.task, composed.id, why)
        entry.error = error
        self.open -= 1
        self.bytes -= entry.size
        if error is None:
            entry.status = Status.CONFIRMED
            self._mark(entry)
            if not log.isEnabledFor(logging.INFO):  # most programs; `say` would find it out later
                return
            words = f"published, to be executed in {composed.delay} s" if composed.delay else "published"
            self._say(logging.INFO, events.PUBLISHED, entry, words, at=entry.began)
            return
        is_unknown = isinstance(error, OutcomeUnknown)
        entry.status = Status.UNKNOWN if is_unknown else Status.REFUSED
        self._mark(entry)
        event = events.PUBLISH_UNKNOWN if is_unknown else events.PUBLISH_REFUSED
        self._say(logging.WARNING, event, entry, f"not published: {error}")

    def _mark(self, entry: Entry) -> None:
        spans.published(entry.message, entry.composed.task, entry.composed.id, str(entry.status))

    def _say(self, level: int, event: str, entry: Entry, words: str, at: float | None = None) -> None:
        composed = entry.composed
        events.say(log, level, event, composed.id, composed.task, words, at=at, delay=composed.delay)
