"""Publishes many messages over one connection, with many confirms awaited at a time.

`enqueue_many` publishes what an iterable yields; `Batch` is for a program that has a loop of its own.

A publish ends as a single one does (`proj.enqueue.publish`), except that `PROJ_PUBLISH_TIMEOUT` bounds the
time without progress, and not the whole.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from celery.canvas import Signature

from proj.enqueue.app import App
from proj.enqueue.composing import Composer
from proj.enqueue.published import Published, Status
from proj.enqueue.sender import Entry, Sender
from proj.enqueue.task import default_app
from proj.errors import BadInput
from proj.logs import events
from proj.logs.printable import shown

log = logging.getLogger("proj.enqueue")

#: Most unconfirmed messages. More are not faster: RabbitMQ confirms some hundreds at a time.
WINDOW: Final = 1000

#: Bytes of unconfirmed bodies from which on no more are sent, so that large messages need no more memory.
_MAX_BYTES: Final = 4 * 2**20

#: Seconds that the iterable takes for a request, from which on its outcome is awaited before the next one.
_SLOW: Final = 0.05

#: Seconds up to which it is quick: one outcome is yielded for each request.
_QUICK: Final = 0.001


def enqueue_many(requests: Iterable[Signature], *, window: int = WINDOW) -> Iterator[Published]:
    """Enqueue what the signatures request; yields for each how its publish ended, in their order.

    Nothing is sent before the first outcome is asked for. At most `window` messages are unconfirmed at a
    time, and memory does not grow with the number of requests.

    A request that cannot be sent, such as one with wrong arguments, is refused, and the others go on. When
    the broker is lost, blocks publishers, or refuses since a queue is full, the batch tries again until
    nothing was confirmed for `PROJ_PUBLISH_TIMEOUT` seconds. What may have been lost with a connection is
    sent again under its id, marked as a repeat.

    An error of the iterable is raised after the outcomes of the requests before it. Who stops early, such as
    by `break`, has enqueued a few requests more than were yielded. Raises `BadInput` when the requests are no
    iterable of signatures.
    """
    if isinstance(requests, dict | str | bytes) or not isinstance(requests, Iterable):
        raise BadInput(f"requests are an iterable of signatures, got {shown(requests)}", "as [add.s(1, 2)]")
    if window < 1:
        raise BadInput(f"a window has room for 1 or more messages, got {window}")
    return _each(iter(requests), window)


def _each(requests: Iterator[Signature], window: int) -> Iterator[Published]:
    failure: BaseException | None = None
    batch: Batch | None = None
    try:
        while True:
            asked = time.monotonic()
            try:
                request = next(requests)
            except StopIteration:
                break
            except BaseException as error:
                failure = error
                break
            took = time.monotonic() - asked
            if batch is None:
                app = getattr(request, "app", None)
                batch = Batch(app if isinstance(app, App) else default_app(), window=window)
            try:
                batch.put(request)
            except Exception as error:  # such as of a task's own `apply_async`
                if batch.is_over:
                    raise
                failure = error
                break
            if took > _SLOW:
                yield from batch.settle()
            elif took > _QUICK:
                yield from batch.ended()
            else:
                # One for one, so that the objects of a message are freed before those of the next one are
                # made. With hundreds at once, Python looks for garbage, which takes a sixth of the time.
                yield from batch.ended(1)
        if batch is not None:
            yield from batch.settle()
    finally:
        if batch is not None:
            batch.close()
    if failure:
        raise failure


class Batch:
    """Takes requests one after the other, and returns how the publish of each ended. For one thread.

    Errors of the broker are outcomes. Any other exception while messages are sent, such as
    `KeyboardInterrupt`, ends the batch, and what was not confirmed may be in its queue.
    """

    def __init__(self, app: App, *, window: int = WINDOW) -> None:
        """Connects with the first message. In a task, the messages are the task's children, as in Celery."""
        self._window = window
        #: Celery's `task_always_eager`: the caller executes the tasks itself.
        self._is_eager = bool(app.conf.task_always_eager)
        self._composer = Composer(app)
        self._sender = Sender(app, window)
        self._process = os.getpid()
        #: Those whose outcome was not yet returned, in their order.
        self._taken: deque[Entry | Published] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def open(self) -> int:
        """The number of requests whose outcome is not known yet."""
        return self._sender.open

    @property
    def is_over(self) -> bool:
        """Whether an exception has ended the batch."""
        return self._sender.is_over

    def put(
        self, request: Signature, *, key: Any = None, task_id: str | None = None, repeat: bool = False
    ) -> bool:
        """Take a request, and send it soon; waits while the window is full.

        Its outcome will have the `key`. `task_id` is the id of its message; unlike one that the signature
        gives, it does not mark the message as a repeat, which `repeat` does. Returns whether it can be sent;
        otherwise its outcome is that it is refused.
        """
        self._check()
        try:
            if self._is_eager and isinstance(request, Signature):
                executed = request.apply_async()
                ended = Published(request, Status.CONFIRMED, request["task"], executed.id, None, key)
                self._taken.append(ended)
                return True
            composed = self._composer.compose(request, task_id, repeat=repeat)
        except BadInput as error:
            self.refuse(request, error, key=key)
            return False
        entry = Entry(
            message=composed.message,
            exchange=composed.exchange,
            routing_key=composed.routing_key,
            request=request,
            key=key,
            composed=composed,
            size=len(composed.message.body),
            began=time.time(),
        )
        self._taken.append(entry)
        self._sender.add(entry)
        if self._exceeds(self._window - 1, _MAX_BYTES):
            while self._exceeds(self._window * 3 // 4, _MAX_BYTES * 3 // 4):
                self._sender.work(wait=True)
        elif self._sender.is_due:
            self._sender.work()
        return True

    def refuse(self, request: Any, error: BadInput, *, key: Any = None) -> None:
        """Take what is no request, for this reason; its outcome has its place among the others."""
        name = str(request.get("task", "")) if isinstance(request, dict) else ""
        self._taken.append(Published(request, Status.REFUSED, name, None, error, key))
        events.say(log, logging.WARNING, events.PUBLISH_REFUSED, None, name, f"not published: {error}")

    def ended(self, most: int | None = None) -> list[Published]:
        """The outcomes that are known, each once, in the order of the requests; at most so many of them."""
        taken = self._taken
        known: list[Published] = []
        while taken and len(known) != most:
            head = taken[0]
            if isinstance(head, Entry):
                if head.status is None:
                    break
                composed = head.composed
                head = Published(head.request, head.status, composed.task, composed.id, head.error, head.key)
            taken.popleft()
            known.append(head)
        return known

    def poll(self) -> list[Published]:
        """Send what was put, and return the outcomes that are known.

        Waits for nothing but a new connection, when there is none.
        """
        self._check()
        if self._sender.open:
            self._sender.work(look=True)
        return self.ended()

    def settle(self) -> list[Published]:
        """Wait until all outcomes are known, and return them."""
        self._check()
        while self._sender.open:
            self._sender.work(wait=True)
        return self.ended()

    def close(self) -> None:
        """Wait until all outcomes are known, and give the connection back."""
        if os.getpid() != self._process:
            self._sender.forget()
            return
        while self._sender.open:
            self._sender.work(wait=True)
        self._sender.close()

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("a batch cannot be used in a process that was forked from its own")
        if self._sender.is_over:
            raise RuntimeError("the batch was ended by an exception, make another one")

    def _exceeds(self, count: int, size: int) -> bool:
        """Whether more messages than `count`, or more bytes, are without an outcome."""
        sender = self._sender
        if sender.open > count or (sender.bytes > size and sender.open):
            return True
        # Others may overtake the first one, and their outcomes have to be kept until it has its own.
        if len(self._taken) < 2 * self._window:
            return False
        head = self._taken[0]
        return isinstance(head, Entry) and head.status is None
