"""The Celery application. Every request to execute a task is published by `App.send_task`.

`.delay()`, signatures, groups, chords, retries, `celery call` and `celery beat` all call it, or
`App.send_from`, which is faster, when the call has no options. How a publish ends: see
`proj.enqueue.publish`. Events, remote control and results that travel as messages do not pass here.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, Literal, TypeVar, overload

import celery
from celery.app.registry import TaskRegistry
from celery.utils.imports import symbol_by_name
from kombu import Producer

from proj import queues
from proj.config import Settings
from proj.enqueue import checks, priorities, publish
from proj.enqueue.arguments import check_call, given_arguments
from proj.enqueue.composing import Recorder
from proj.enqueue.definition import check_function
from proj.enqueue.loader import Loader
from proj.enqueue.options import check_name, check_options, given_options
from proj.enqueue.template import Template, Templates
from proj.enqueue.typed import P, R
from proj.errors import BadTask, OutcomeUnknown, ProjError, with_transient
from proj.logs import events, spans
from proj.rabbitmq import encoded

if TYPE_CHECKING:
    from proj.enqueue.typed import TypedTask

log = logging.getLogger("proj.enqueue")

T = TypeVar("T")


def is_unchecked(options: Mapping[str, Any]) -> bool:
    """Whether only the worker checks the arguments of this message: for a next step, and for a retry.

    A refusal here would fail the task that publishes them, which has done its work or may still do it.
    """
    task = celery.current_task
    publishes_next = bool(task) and (
        task.name == events.CHORD_POLL or getattr(task.request, "returned", False)
    )
    return publishes_next or bool(options.get("retries"))


class App(celery.Celery):
    """A Celery application in which each publish ends in bounded time: confirmed, refused or unknown."""

    #: Celery imports these on first use.
    task_cls = "proj.worker.task:Task"
    log_cls = "proj.logs.formats:Logging"
    amqp_cls = "proj.enqueue.routing:Amqp"

    #: Set by `proj.worker.install`.
    settings: Settings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, loader=Loader, tasks=_CheckedTasks(self), **options)
        #: The module of each task that was given a name.
        self._modules: dict[str, str] = {}

    @overload
    def task(self, function: Callable[P, R], /, **options: Any) -> "TypedTask[P, R]": ...

    @overload
    def task(
        self, /, *, bind: Literal[True], **options: Any
    ) -> "Callable[[Callable[Concatenate[Any, P], R]], TypedTask[P, R]]": ...

    @overload
    def task(
        self, /, *, bind: Literal[False] = False, **options: Any
    ) -> "Callable[[Callable[P, R]], TypedTask[P, R]]": ...

    def task(self, /, *args: Any, **options: Any) -> Any:
        """Make a task of a function, as Celery does. Raises `BadTask` for one that cannot be a task."""

        def check(function: Any) -> None:
            name = options.get("name")
            check_function(str(name or getattr(function, "__qualname__", "a task")), function)
            if name:
                self._refuse_another(name, function)

        if "autoretry_for" in options:
            options["autoretry_for"] = with_transient(options["autoretry_for"])
        if len(args) == 1 and callable(args[0]):
            check(args[0])
            return super().task(*args, **options)
        decorate = super().task(*args, **options)

        def checked(function: Any) -> Any:
            check(function)
            return decorate(function)

        return checked

    def register_task(self, task: Any, **options: Any) -> Any:
        """Register a task that is a class, as Celery does."""
        task = task() if isinstance(task, type) else task
        self.guard(task)  # before Celery reads which errors it is retried for
        return super().register_task(task, **options)

    def guard(self, task: Any) -> None:
        """Let the task check its arguments, and store its end, whatever base it was made with."""
        ours = symbol_by_name(App.task_cls)  # an application may have another
        # upstream: not reported; remove when Celery registers shared tasks with the application's base
        task.__class__ = ours.guarded(type(task), self.Task)

    def _refuse_another(self, name: str, function: Any) -> None:
        """Raise `BadTask` for a name that another module has given: Celery would keep the first function."""
        mine = function.__module__
        first = self._modules.setdefault(name, mine)
        # A program that is also imported is two modules.
        if first != mine and "__main__" not in {first, mine}:
            raise BadTask(f"{name}: defined in {first} and in {mine}", "give each task a name of its own")

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Publish a request to execute the task of this name, and return once the broker has confirmed it.

        The options are those of `celery.Task.apply_async`. Those that are missing or None are the task's own,
        if this program knows the task. The broker delays by `countdown` (seconds) or until `eta` (a
        `datetime`, UTC without a zone), rounded up to whole seconds. A message with a given `task_id` is
        marked as a possible repeat. Raises the errors that `proj.enqueue.publish` lists.
        """
        check_name(name)
        args, kwargs = given_arguments(name, args, kwargs)
        if options.get("task_type") is None and not is_unchecked(options):  # else the task has checked them
            check_call(name, args, kwargs, getattr(self.tasks.get(name), "parameters", None))
        given = self._producer(options)
        options = self.checked_options(name, options)
        due = {queues.DUE_HEADER: time.time() + (options["countdown"] or 0)}
        # Before the caller's own headers, as in the messages of a template; and none of these can replace it.
        options["headers"] = due | (options.get("headers") or {}) | due
        send_task = super().send_task
        if isinstance(given, Recorder):
            return send_task(name, args, kwargs, producer=given, **options)

        def send(producer: Producer) -> Any:
            if options.get("priority"):
                priorities.warn_if_ignored(producer.connection)
            with spans.attempt(name, options["task_id"]):
                return send_task(name, args, kwargs, producer=producer, **options)

        task_id, countdown = options["task_id"], options["countdown"]
        one = publish.Publish(self, name, task_id, publish.deadline_of(self), delayed=bool(countdown))
        retries = options.get("retries") or None

        def run() -> Any:
            with spans.publishing(name, task_id):
                return one.run(send, functools.partial(_mark_repeat, options), given)

        return _logged(run, name, task_id, delay=countdown, retries=retries)

    def send_from(
        self, template: Template, args: tuple[Any, ...], kwargs: dict[str, Any], result: Callable[[str], T]
    ) -> T:
        """Publish the template's message for these checked arguments as `send_task` does.

        Returns the `result` of its id, which is made while the broker works. Raises
        `kombu.exceptions.EncodeError` for arguments that only `send_task` can send.
        """
        task_id = checks.new_id()
        message = template.message(task_id, args, kwargs)
        one = publish.Publish(self, template.task, task_id, publish.deadline_of(self))

        def send(producer: Producer) -> T:
            if template.common.priority:
                priorities.warn_if_ignored(producer.connection)
            if template.tells_store:
                self.backend.on_task_call(producer, task_id)
            meanwhile = functools.partial(result, task_id)
            address = template.exchange, template.routing_key
            made: T = one.send_message(message, *address, producer, meanwhile)
            return made

        run = functools.partial(one.run, send, functools.partial(encoded.mark_repeat, message))
        return _logged(run, template.task, task_id)

    def now(self) -> datetime:
        """The current time in the application's zone, in a tenth of the time that Celery takes."""
        return datetime.now(self.timezone)

    @functools.cached_property
    def Worker(self) -> Any:  # noqa: N802  (Celery's name)
        """What `celery worker` runs. By its name, since whoever only publishes need not import it."""
        return self.subclass_with_self("proj.worker.ending:Worker")

    def publishes_as_usual(self, task: celery.Task) -> bool:
        """Whether the task has no `apply_async` of its own, which may do anything."""
        return type(task).apply_async is self._apply_async

    @functools.cached_property
    def _apply_async(self) -> Any:
        return symbol_by_name(App.task_cls).apply_async

    @functools.cached_property
    def templates(self) -> Templates:
        """Templates of messages, for calls whose message Celery need not make."""
        return Templates(self)

    @contextmanager
    def producer_or_acquire(self, producer: Producer | None = None) -> Iterator[Producer]:
        """The given producer, or else one that connects on use.

        Groups, chords and chunks acquire a producer before they call `send_task`, which acquires its own
        connection within its deadline. Celery's pool of producers would make them wait without a timeout.
        """
        if producer is not None:
            yield producer
            return
        with self.connection_for_write() as connection:
            yield _LazyProducer(connection, auto_declare=False)

    def _producer(self, options: dict[str, Any]) -> Producer | None:
        """Remove the caller's own producer from the options and return it; None stands for the pool."""
        producer = options.pop("producer", None) or options.pop("publisher", None)
        if connection := options.pop("connection", None):
            producer = self.amqp.Producer(connection, auto_declare=False)
        return None if isinstance(producer, _LazyProducer) else producer

    def checked_options(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """The options as they are sent. Raises `BadInput`."""
        check_options(name, options)
        task = self.tasks.get(name)
        serializer = options.get("serializer") or getattr(task, "serializer", self.conf.task_serializer)
        checks.check_serializer(name, serializer, self.conf.accept_content)
        options = given_options(options)
        if queue := options.get("queue"):
            # The name only: Celery refuses an unknown name, but would declare an unknown `kombu.Queue`.
            options["queue"] = getattr(queue, "name", queue)
        options["countdown"] = checks.delay(
            options.pop("countdown", None), options.pop("eta", None), is_retry=bool(options.get("retries"))
        )
        if options["countdown"] and not options.get("retries"):
            checks.check_delayed_route(name, options)
        expires = options.get("expires")
        if expires is None and options.get("task_type") is None:  # else Celery has asked the task
            expires = getattr(task, "expires", None)
        options["expires"] = checks.lifetime(expires)
        if not is_unchecked(options):
            checks.check_may_start(name, options["countdown"], options["expires"])
        for limit in ("time_limit", "soft_time_limit"):
            # Celery puts the task's own limit, as this publisher has it, into the message, where it would
            # override the worker's.
            given = options.get(limit)
            options[limit] = None if given == getattr(task, limit, None) else given
            checks.check_time_limit(name, limit, options[limit], self.settings.known_consumer_timeout)
        # Without it, the broker confirms and drops a message that no queue takes.
        options["mandatory"] = True
        # Once a connection, by `proj.enqueue.publish`.
        options.setdefault("declare", [])
        # Kombu would retry without limit a publish that may have arrived, and not mark it as a repeat.
        options["retry"] = False
        if options.get("task_id") is not None or options.get("retries"):
            _mark_repeat(options)
        # Fixed here, so that a repeated publish has the same id and can be recognised.
        options["task_id"] = checks.checked_id(options.get("task_id"))
        return options


class _LazyProducer(Producer):
    """A producer on a connection that is not yet open; `send_task` uses one of the pool in its place."""


class _CheckedTasks(TaskRegistry):
    """A registry whose tasks all check their arguments, whatever `base` they were made with."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app

    def __setitem__(self, name: str, task: Any) -> None:
        self._app.guard(task)
        super().__setitem__(name, task)


def _logged(
    act: Callable[[], T], name: str, task_id: str, *, delay: int | None = None, retries: int | None = None
) -> T:
    """What a publish returns; its outcome is logged."""
    began = time.time()
    facts = {"retries": retries, "delay": delay}
    try:
        result = act()
    except ProjError as error:
        event = events.PUBLISH_UNKNOWN if isinstance(error, OutcomeUnknown) else events.PUBLISH_REFUSED
        events.say(log, logging.WARNING, event, task_id, name, f"not published: {error}", **facts)
        raise
    words = f"published, to be executed in {delay} s" if delay else "published"
    events.say(log, logging.INFO, events.PUBLISHED, task_id, name, words, at=began, **facts)
    return result


def _mark_repeat(options: dict[str, Any]) -> None:
    """Let the worker look for a stored success before it executes the task."""
    options["headers"] = {**(options.get("headers") or {}), queues.REPEAT_HEADER: True}
