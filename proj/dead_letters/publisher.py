"""Sending dead letters back to the queues they came from, and foreseeing which of them must stay."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from amqp import spec
from amqp.exceptions import AccessRefused, ChannelError, MessageNacked, NotFound

from proj import queues
from proj.dead_letters.letter import DeadLetter
from proj.rabbitmq import failures
from proj.rabbitmq.publishing import Sent, Window

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
        self._window = Window(open_channel())
        self._gone: set[str] = set()

    def send(self, window: list[DeadLetter]) -> dict[DeadLetter, str]:
        """Those that no queue has taken, each with the reason.

        One over which the broker closes the channel stays too. Those beside it that were not confirmed are
        sent again, on another channel, each alone: they may be in their queues twice.
        """
        kept: dict[DeadLetter, str] = {}
        sent: dict[DeadLetter, Sent] = {}
        try:
            for letter in window:
                queue = target(letter)
                if not queue or queue in self._gone:
                    kept[letter] = _gone(queue) if queue else NOWHERE
                else:
                    sent[letter] = self._window.send(letter.again(), "", queue)
            while self._window:
                self._window.wait(time.monotonic() + self._patience, room=len(self._window) - 1)
        except ChannelError as error:
            if isinstance(error, AccessRefused) or error.method_sig != spec.Basic.Publish:
                raise
            self._window.channel.close()  # py-amqp has opened it anew, without confirms
            self._window = Window(self._open())
            open_ends = [letter for letter in window if letter not in kept and not _answered(sent, letter)]
            kept |= self._refused(sent)
            if len(open_ends) == 1:
                return {**kept, open_ends[0]: _reason(error)}
            for letter in open_ends:
                kept |= self.send([letter])
            return kept
        return kept | self._refused(sent)

    def _refused(self, sent: dict[DeadLetter, Sent]) -> dict[DeadLetter, str]:
        """Those that the broker has answered and no queue has taken, each with the reason."""
        kept = {}
        for letter, each in sent.items():
            queue = each.routing_key
            if isinstance(each.refusal, MessageNacked):
                kept[letter] = f"queue {queue!r} refused it"
            elif each.refusal:
                self._gone.add(queue)
                kept[letter] = _gone(queue)
        return kept


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
    return letter.queue or (queues.DEFAULT_QUEUE if letter.task else None)


def _answered(sent: dict[DeadLetter, Sent], letter: DeadLetter) -> bool:
    return letter in sent and sent[letter].answered


def _gone(queue: str) -> str:
    return f"queue {queue!r} is gone"


def _reason(error: ChannelError) -> str:
    words = failures.words(error)
    # With the sizes, each message would have a reason of its own.
    return "it is larger than the broker takes" if "message size" in words else words
