"""Turns a call into the message that Celery would publish for it, without publishing it."""

import struct
from dataclasses import dataclass
from typing import Any, Final

import amqp
import kombu
from celery import Celery
from celery.canvas import Signature
from celery.exceptions import QueueNotFound
from kombu.exceptions import EncodeError
from kombu.transport import pyamqp

from proj import queues
from proj.enqueue.routing import unknown_queue
from proj.errors import BadArguments, BadInput
from proj.logs.printable import shown
from proj.rabbitmq import encoded, failures

#: What a canvas publishes in several steps, while its parts run.
_CANVAS: Final = frozenset({"celery.chain", "celery.group", "celery.chord"})

#: How the names of the exchanges begin that delay a message.
_DELAYED: Final = "celery_delayed_"

#: What Celery, kombu and py-amqp raise for a call that no message can carry.
UNSENDABLE: Final = (
    EncodeError,
    QueueNotFound,
    TypeError,
    ValueError,
    LookupError,
    OverflowError,
    struct.error,
)


@dataclass(slots=True)
class Composed:
    """A message with its address."""

    task: str
    id: str
    message: amqp.Message
    exchange: str
    routing_key: str
    mandatory: bool
    #: Seconds for which the broker delays it, if any.
    delay: int | None

    def mark_repeat(self) -> None:
        """Let a worker look for a stored success before it executes the message."""
        encoded.mark_repeat(self.message)


class Recorder(kombu.Producer):
    """A producer that keeps what is published with it; `App.send_task` sends nothing with it."""

    def __init__(self, connection: kombu.Connection) -> None:
        """The connection is not used; Celery asks it for its errors."""
        super().__init__(None, auto_declare=False)
        self._not_used = connection
        self.recorded: list[tuple[amqp.Message, dict[str, Any]]] = []
        self._channel = self

    @property
    def connection(self) -> kombu.Connection:
        return self._not_used

    #: Of `kombu.Producer`, for which this is its channel too.
    prepare_message = pyamqp.Channel.prepare_message

    def basic_publish(self, message: amqp.Message, **options: Any) -> None:
        self.recorded.append((message, options))


class Composer:
    """Composes the messages of one application."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._recorder = Recorder(app.connection_for_write())

    def compose(self, request: Signature, task_id: str | None = None, *, repeat: bool = False) -> Composed:
        """The message for this signature.

        A message whose id the signature gives, and a `repeat`, is marked as one that may have been executed
        before. `task_id` is an id that is not by itself a reason to mark it. Raises `BadInput`.
        """
        if not isinstance(request, Signature):
            raise BadInput(f"a request is a signature such as add.s(1, 2), got {shown(request)}")
        name = str(request.task)
        if name in _CANVAS:
            raise BadInput(f"{name} is more than one message", "enqueue its tasks, or call its delay()")
        if request.app != self._app:  # one of them may be a proxy
            raise BadInput(f"{name}: the request belongs to another application")
        options = dict(request.options)
        repeat = repeat or options.get("task_id") is not None
        if task_id is not None:
            options["task_id"] = task_id
        self._recorder.recorded.clear()
        options |= {"producer": self._recorder, "declare": [], "add_to_parent": False}
        try:
            if task := self._app.tasks.get(name):
                published = task.apply_async(request.args, request.kwargs, **options)
            else:
                published = self._app.send_task(name, request.args, request.kwargs, **options)
        except UNSENDABLE as error:
            raise unsendable(self._app, name, error) from error
        [(message, address), *_] = self._recorder.recorded
        if not repeat:
            (message.properties.get("application_headers") or {}).pop(queues.REPEAT_HEADER, None)
        return Composed(
            name,
            published.id,
            message,
            address["exchange"],
            address["routing_key"],
            address["mandatory"],
            _delay(address["exchange"], address["routing_key"]),
        )


def _delay(exchange: str, routing_key: str) -> int | None:
    """The delay in an address: its routing key begins with a binary digit for each level."""
    if not exchange.startswith(_DELAYED):
        return None
    return int("".join(routing_key.split(".")[: len(queues.DELAY_QUEUES)]), 2)


def unsendable(app: Celery, name: str, error: Exception) -> BadInput:
    """The error for a call that no message can carry."""
    if isinstance(error, EncodeError):
        return BadArguments(f"{name}: JSON cannot carry the arguments: {error}")
    if isinstance(error, QueueNotFound):
        # Of the `KeyError` that it comes from: Celery's own words hold the name in a sentence.
        problem = unknown_queue(app, getattr(error.__context__, "args", ("",))[0])
        return BadInput(f"{name}: {problem.message}", problem.hint)
    return BadInput(f"{name}: an option cannot be sent: {failures.words(error)}")
