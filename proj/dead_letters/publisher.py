"""Sending dead letters back to their queues, and predicting which ones cannot be sent."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from amqp import spec
from amqp.exceptions import AccessRefused, ChannelError, MessageNacked, NotFound

from proj import queues
from proj.dead_letters.letter import DeadLetter
from proj.rabbitmq import failures
from proj.rabbitmq.publishing import Sent, Window, can_be_written

#: Most unconfirmed messages: a crash sends at most so many twice.
WINDOW: Final = 100

#: Bytes of a body from which on a message is sent alone. The broker closes the channel over a message above
#: its limit, so that the outcome of unconfirmed ones before it stays unknown.
_LARGE: Final = 2**16

#: The reasons to stay that lie in the message itself.
NOWHERE: Final = "its queue is unknown, and it is not a Celery message"
UNSENDABLE: Final = "a property of it is not UTF-8, and too long to be sent again"
IN_ITSELF: Final = frozenset({NOWHERE, UNSENDABLE})


def windows(letters: list[DeadLetter]) -> Iterator[list[DeadLetter]]:
    """Split the letters into windows of at most `WINDOW`, large ones alone."""
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
    """Publishes a window of messages at a time, confirmed and mandatory."""

    def __init__(self, open_channel: Callable[[], Any], patience: float) -> None:
        """`patience` is the timeout in seconds for each confirm; then `TimeoutError` is raised."""
        self._open, self._patience = open_channel, patience
        self._window = Window(open_channel())
        self._gone: set[str] = set()

    def send(self, window: list[DeadLetter]) -> dict[DeadLetter, str]:
        """Send the letters; returns those that no queue accepted, each with the reason.

        When the broker closes the channel over one letter, the unconfirmed ones are sent again, one by one on
        a new channel: they may be in their queues twice.
        """
        kept: dict[DeadLetter, str] = {}
        sent: dict[DeadLetter, Sent] = {}
        try:
            for letter in window:
                queue, again = target(letter), letter.again()
                if not queue or queue in self._gone:
                    kept[letter] = _gone(queue) if queue else NOWHERE
                elif not can_be_written(again):
                    kept[letter] = UNSENDABLE
                else:
                    sent[letter] = self._window.send(again, "", queue)
            while self._window:
                self._window.wait(time.monotonic() + self._patience, room=len(self._window) - 1)
        except ChannelError as error:
            if isinstance(error, AccessRefused) or error.method_sig != spec.Basic.Publish:
                raise
            self._window.channel.close()  # py-amqp reopened it without confirm mode
            self._window = Window(self._open())
            unknown = [letter for letter in window if letter not in kept and not _answered(sent, letter)]
            kept |= self._refused(sent)
            if len(unknown) == 1:
                return {**kept, unknown[0]: _reason(error)}
            for letter in unknown:
                kept |= self.send([letter])
            return kept
        return kept | self._refused(sent)

    def _refused(self, sent: dict[DeadLetter, Sent]) -> dict[DeadLetter, str]:
        """Letters that were nacked or returned, each with the reason."""
        kept = {}
        for letter, each in sent.items():
            queue = each.routing_key
            if isinstance(each.refusal, MessageNacked):
                kept[letter] = f"queue {queue!r} refused it"
            elif each.refusal:
                self._gone.add(queue)
                kept[letter] = _gone(queue)
        return kept


class DryRun:
    """Predicts which letters have no queue to go to, without sending any."""

    def __init__(self, open_channel: Callable[[], Any]) -> None:
        self._open = open_channel
        self._gone: dict[str, bool] = {}

    def send(self, window: list[DeadLetter]) -> dict[DeadLetter, str]:
        """Letters that could not be sent, each with the reason."""
        kept = {}
        for letter in window:
            queue = target(letter)
            if not queue:
                kept[letter] = NOWHERE
            elif self._is_gone(queue):
                kept[letter] = _gone(queue)
            elif not can_be_written(letter.again()):
                kept[letter] = UNSENDABLE
        return kept

    def _is_gone(self, queue: str) -> bool:
        if queue not in self._gone:
            self._gone[queue] = False  # also when this user may not see it
            with self._open() as channel, suppress(ChannelError):
                try:
                    channel.queue_declare(queue, passive=True)
                except NotFound:
                    self._gone[queue] = True
        return self._gone[queue]


def target(letter: DeadLetter) -> str | None:
    """The queue to send the letter to; None when unknown."""
    return letter.queue or (queues.DEFAULT_QUEUE if letter.task else None)


def _answered(sent: dict[DeadLetter, Sent], letter: DeadLetter) -> bool:
    return letter in sent and sent[letter].answered


def _gone(queue: str) -> str:
    return f"queue {queue!r} is gone"


def _reason(error: ChannelError) -> str:
    words = failures.words(error)
    # Without the sizes, so that equal reasons are counted together.
    return "it is larger than the broker accepts" if "message size" in words else words
