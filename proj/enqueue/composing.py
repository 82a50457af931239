"""Turns a call into the message that Celery would publish for it, without publishing it."""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import amqp
import celery
import kombu
from celery import Celery
from celery.canvas import Signature
from celery.exceptions import NotRegistered, QueueNotFound
from kombu.exceptions import EncodeError
from kombu.transport import pyamqp

from proj import queues
from proj.enqueue import checks
from proj.enqueue.arguments import check_call, given_arguments
from proj.enqueue.options import check_options
from proj.enqueue.routing import unknown_queue
from proj.errors import BadArguments, BadInput
from proj.logs.printable import shown
from proj.rabbitmq import encoded, failures
from proj.rabbitmq.encoded import EncodedMessage

if TYPE_CHECKING:
    from proj.enqueue.app import App
    from proj.enqueue.template import Template

#: What a canvas publishes in several steps, while its parts run.
_CANVAS: Final = frozenset({"celery.chain", "celery.group", "celery.chord"})

#: The options of a call that a template can have.
_TEMPLATE_OPTIONS: Final = frozenset({"task_id", "queue", "priority", "ignore_result"})

#: Options that name a connection.
_CONNECTIONS: Final = frozenset({"connection", "producer", "publisher"})

#: The task of a request. The property itself takes a lock, and keeps what it has found.
_type_of: Final = Signature.type.func

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
    message: amqp.Message | EncodedMessage
    exchange: str
    routing_key: str
    mandatory: bool = True
    #: Seconds for which the broker delays it, if any.
    delay: int | None = None
    priority: int = 0

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

    def __init__(self, app: "App", *, awaits_results: bool = True) -> None:
        """`awaits_results` says whether this program has a use for the results of its messages.

        The messages of a composer that is made in a task are the task's children.
        """
        self._app = app
        self._in_task = bool(app.current_worker_task)
        self._awaits_results = awaits_results
        self._tasks = app.tasks
        self._templates = app.templates
        self._recorder = Recorder(app.connection_for_write())
        self._new_ids = checks.new_ids()

    @cached_property
    def _has_results(self) -> bool:
        """Whether results are kept; else they travel as messages to a queue of whoever has published."""
        return bool(self._app.backend.persistent)

    def compose(self, request: Signature, task_id: str | None = None, *, repeat: bool = False) -> Composed:
        """The message for this signature.

        A message whose id the signature gives, and a `repeat`, is marked as one that may have been executed
        before. `task_id` is an id that is not by itself a reason to mark it. Raises `BadInput`.
        """
        if not isinstance(request, Signature):
            raise BadInput(f"a request is a signature such as add.s(1, 2), got {shown(request)}")
        name = str(request["task"])
        if name in _CANVAS:
            raise BadInput(f"{name} is more than one message", "enqueue its tasks, or call its delay()")
        task = self._tasks.get(name)
        if not self._is_own(request, task):
            raise BadInput(f"{name}: the request belongs to another application")
        options = request["options"]
        if self._awaits_results and not self._has_results and not _ignores_result(task, options):
            raise BadInput(
                f"{name}: many messages at once have no results over {self._app.backend.as_uri()}",
                "keep results in a database, or give ignore_result=True",
            )
        given = options.get("task_id")
        repeat = repeat or given is not None
        task_id = task_id if given is None else given
        composed = None
        if task is not None:
            composed = self._from_template(task, request, options, task_id, repeat)
        return composed or self._as_celery_does(request, options, task_id, repeat)

    def template(self, task: celery.Task, **options: Any) -> "Template | None":
        """The template for calls of this task (`Templates.find`), whose `apply_async` must not be its own."""
        if not self._app.publishes_as_usual(task):
            return None
        return self._templates.find(task, **options, in_task=self._in_task)

    def _is_own(self, request: Signature, task: celery.Task | None) -> bool:
        if task is not None:
            try:
                if _type_of(request) is task:  # a request's application takes longer to find out
                    return True
            except NotRegistered:
                pass
        return bool(request.app == self._app)  # one of them may be a proxy

    def _from_template(
        self,
        task: celery.Task,
        request: Signature,
        options: dict[str, Any],
        task_id: str | None,
        repeat: bool,
    ) -> Composed | None:
        """The message, or None when only Celery itself can make it."""
        name = task.name
        usual = {}
        if options:
            if not options.keys() <= _TEMPLATE_OPTIONS:
                return None
            usual = {option: value for option, value in options.items() if option != "task_id"}
            if not isinstance(usual.get("queue"), str | None):
                return None
            check_options(name, usual)
        template = self.template(task, **usual)
        if template is None:
            return None
        args, kwargs = given_arguments(name, request["args"], request["kwargs"])
        check_call(name, args, kwargs, task.parameters)
        task_id = next(self._new_ids) if task_id is None else checks.checked_id(task_id)
        try:
            message = template.message(task_id, args, kwargs, repeat=repeat)
        except EncodeError:
            return None
        exchange, routing_key = template.exchange, template.routing_key
        return Composed(name, task_id, message, exchange, routing_key, priority=template.common.priority)

    def _as_celery_does(
        self, request: Signature, options: dict[str, Any], task_id: str | None, repeat: bool
    ) -> Composed:
        name = request["task"]
        args, kwargs = request["args"], request["kwargs"]
        if task_id is not None:
            options = {**options, "task_id": task_id}
        if given := _CONNECTIONS & options.keys():
            raise BadInput(f"{name}: many messages share one connection", f"leave out {min(given)}")
        self._recorder.recorded.clear()
        options = {**options, "producer": self._recorder, "declare": [], "add_to_parent": False}
        task = self._tasks.get(name)
        result_travels = not self._has_results and not _ignores_result(task, options)
        if result_travels:
            options["ignore_result"] = True  # else Celery would declare the queue that it travels to
        try:
            if task:
                published = task.apply_async(args, kwargs, **options)
            else:
                published = self._app.send_task(name, args, kwargs, **options)
        except UNSENDABLE as error:
            raise unsendable(self._app, name, error) from error
        if not self._recorder.recorded:
            raise BadInput(f"{name}: its apply_async publishes no message")
        [(message, address), *_] = self._recorder.recorded
        headers = message.properties.get("application_headers") or {}
        if result_travels:
            headers["ignore_result"] = False
        if not repeat:
            headers.pop(queues.REPEAT_HEADER, None)
        exchange, routing_key = address["exchange"], address["routing_key"]
        return Composed(
            name,
            published.id,
            message,
            exchange,
            routing_key,
            address["mandatory"],
            _delay(exchange, routing_key),
            message.properties.get("priority") or 0,
        )


def _ignores_result(task: celery.Task | None, options: dict[str, Any]) -> bool:
    given = options.get("ignore_result")
    return bool(getattr(task, "ignore_result", False) if given is None else given)


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
