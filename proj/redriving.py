"""Sending dead letters back to the queues they came from, and foreseeing which of them must stay."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import amqp
from amqp import spec
from amqp.exceptions import AccessRefused, ChannelError, NotFound

from proj import broker_errors, queues
from proj.dead_letter import DeadLetter

#: Messages under way without a confirm: as many as a crash may send twice at most.
WINDOW: Final = 100

#: Bytes of a body from which on a message is sent alone. The broker closes the channel over one that is
#: larger than it takes, and then does not say what became of those before it.
_LARGE: Final = 2**16

#: Why a message that came from nowhere stays: all other reasons are to be mended outside of the messages.
NOWHERE: Final = "not known where it came from, and no Celery message"


def windows(letters: list[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """What is to be sent at once: at most `WINDOW` letters, a large one alone."""
    window: list[DeadLetter] = []
    for letter in letters:
        large = len(letter.body) >= _LARGE
        if window and (large or len(window) == WINDOW):
            yield window
            window = []
        window.append(letter)
        if large:
            yield window
            window = []
    if window:
        yield window


class Publisher:
    """Publishes confirmed and mandatory, a window of messages at a time."""

    def __init__(self, open_channel: Callable[[], Any], patience: float) -> None:
        """`patience` is seconds without an answer, after which a `TimeoutError` is raised."""
        self._open, self._patience = open_channel, patience
        self._start()

    def send(self, window: list[DeadLetter]) -> dict[DeadLetter, str]:
        """Those that no queue has taken, each with the reason.

        One over which the broker closes the channel stays too. Those beside it that were not confirmed are
        sent again, on another channel, each alone: they may be in their queues twice.
        """
        self._kept: dict[DeadLetter, str] = {}
        self._open_ends = dict.fromkeys(window)
        try:
            self._publish(window)
        except ChannelError as error:
            if isinstance(error, AccessRefused) or error.method_sig != spec.Basic.Publish:
                raise
            self._channel.close()  # py-amqp has opened it anew, without confirms
            self._start()
            kept, open_ends = self._kept, list(self._open_ends)
            if len(open_ends) == 1:
                return {**kept, open_ends[0]: _reason(error)}
            for letter in open_ends:
                kept |= self.send([letter])
            return kept
        return self._kept

    def _start(self) -> None:
        self._channel = self._open()
        self._tag = 0
        self._waiting: dict[int, tuple[DeadLetter, str]] = {}
        self._gone: set[str] = set()
        self._channel.confirm_select()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)

    def _publish(self, window: list[DeadLetter]) -> None:
        for letter in window:
            queue = target(letter)
            if not queue:
                self._settle(letter, NOWHERE)
            elif queue in self._gone:
                self._settle(letter, _gone(queue))
            else:
                self._tag += 1
                self._waiting[self._tag] = letter, queue
                # Not the channel's own method, which would wait for each confirm.
                amqp.Channel.basic_publish(
                    self._channel, letter.again(), exchange="", routing_key=queue, mandatory=True
                )
        while self._waiting:
            self._channel.connection.drain_events(timeout=self._patience)

    def _settle(self, letter: DeadLetter, reason: str | None) -> None:
        del self._open_ends[letter]
        if reason:
            self._kept[letter] = reason

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for letter, queue in self._answered(tag, multiple):
            self._settle(letter, _gone(queue) if queue in self._gone else None)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for letter, queue in self._answered(tag, multiple):
            self._settle(letter, f"queue {queue!r} refused it")

    def _on_return(self, _error: Exception, _exchange: str, queue: str, _message: Any) -> None:
        self._gone.add(queue)

    def _answered(self, tag: int, multiple: bool) -> list[tuple[DeadLetter, str]]:
        tags = [waiting for waiting in self._waiting if waiting <= tag] if multiple else [tag]
        return [self._waiting.pop(each) for each in tags]


class Rehearsal:
    """Foresees which messages have no queue to go to, and sends nothing."""

    def __init__(self, open_channel: Callable[[], Any]) -> None:
        self._open = open_channel
        self._gone: dict[str, bool] = {}

    def send(self, window: list[DeadLetter]) -> dict[DeadLetter, str]:
        """Those that would stay, as far as can be told, each with the reason."""
        kept = {}
        for letter in window:
            queue = target(letter)
            if not queue:
                kept[letter] = NOWHERE
            elif self._is_gone(queue):
                kept[letter] = _gone(queue)
        return kept

    def _is_gone(self, queue: str) -> bool:
        if queue not in self._gone:
            self._gone[queue] = False  # also when this user may not look at it
            with self._open() as channel, suppress(ChannelError):
                try:
                    channel.queue_declare(queue, passive=True)
                except NotFound:
                    self._gone[queue] = True
        return self._gone[queue]


def target(letter: DeadLetter) -> str | None:
    """The queue that it is sent to; None when that is not known."""
    return letter.queue or (queues.task_queue.name if letter.task else None)


def _gone(queue: str) -> str:
    return f"queue {queue!r} is gone"


def _reason(error: ChannelError) -> str:
    words = broker_errors.words(error)
    # With the sizes, each message would have a reason of its own.
    return "it is larger than the broker takes" if "message size" in words else words
