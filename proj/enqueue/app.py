"""The door: every message that asks for a task leaves through `App.send_task`, whoever publishes it.

`.delay()`, signatures, groups, chords, retries, `celery call` and `celery beat` all come to it. How a publish
ends: `proj.enqueue.publish`. Events, remote control and results that travel as messages are no requests to
execute a task, and pass elsewhere.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, overload

import celery
from celery.app.amqp import AMQP
from celery.app.registry import TaskRegistry
from kombu import Producer

from proj import queues
from proj.config import Settings
from proj.enqueue import checks, publish
from proj.enqueue.arguments import check_call, given_arguments
from proj.enqueue.definition import check_function
from proj.enqueue.loader import Loader
from proj.enqueue.options import check_name, check_options
from proj.enqueue.typed import P, R
from proj.errors import OutcomeUnknown, ProjError
from proj.logs import events

if TYPE_CHECKING:
    from proj.enqueue.typed import TypedTask

log = logging.getLogger("proj.enqueue")

#: Set while a worker publishes the next step of a task that has succeeded.
_next_step: Final = ContextVar("_next_step", default=False)


def is_unchecked(options: Mapping[str, Any]) -> bool:
    """Whether arguments are checked only by the worker that is to execute the task.

    A next step or a retry that is refused would fail a task that has done its work, or may yet do it.
    """
    return _next_step.get() or bool(options.get("retries"))


class App(celery.Celery):
    """A Celery application whose every task message is confirmed, refused or unknown, in bounded time."""

    #: Celery imports these when it first needs them.
    task_cls = "proj.worker.task:Task"
    log_cls = "proj.logs.formats:Logging"

    #: Put here by `proj.worker.install`.
    settings: Settings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, amqp=_AMQP, loader=Loader, tasks=_Tasks(self), **options)

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
        """Make a task of a function, as Celery does. Raises `BadTask` at once for one that cannot work."""

        def check(function: Any) -> None:
            check_function(str(options.get("name") or getattr(function, "__qualname__", "a task")), function)

        if len(args) == 1 and callable(args[0]):
            check(args[0])
            return super().task(*args, **options)
        decorate = super().task(*args, **options)

        def checked(function: Any) -> Any:
            check(function)
            return decorate(function)

        return checked

    def send_task(
        self,
        name: str,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Publish a request to execute the task of this name, and return once the broker has confirmed it.

        The options are those of `celery.Task.apply_async`. `countdown` (seconds) and `eta` (a `datetime`, UTC
        when it has no zone) are held by the broker to the second, rounded up. A message whose `task_id` is
        given may be a repeat, and is marked as one. Raises the errors that `proj.enqueue.publish` lists.
        """
        check_name(name)
        args, kwargs = given_arguments(name, args, kwargs)
        if options.get("task_type") is None and not is_unchecked(options):  # else the task has checked them
            check_call(name, args, kwargs, getattr(self.tasks.get(name), "parameters", None))
        given = self._producer(options)
        options = self.checked_options(name, options)
        send_task = super().send_task

        def send(producer: Producer) -> Any:
            return send_task(name, args, kwargs, producer=producer, **options)

        one = publish.Publish(
            self, name, options["task_id"], publish.deadline_of(self), delayed=bool(options["countdown"])
        )
        with _logged(name, options):
            return one.run(send, functools.partial(_mark_repeat, options), given)

    @contextmanager
    def producer_or_acquire(self, producer: Producer | None = None) -> Iterator[Producer]:
        """A producer for the block; without one that is given, one that connects when it is used.

        Groups, chords and chunks ask for it before they come to `send_task`, which has a connection for each
        message in bounded time; Celery's pool of producers would let them wait without bound.
        """
        if producer is not None:
            yield producer
            return
        with self.connection_for_write() as connection:
            yield _OnDemand(connection, auto_declare=False)

    def _producer(self, options: dict[str, Any]) -> Producer | None:
        """The caller's own producer, taken out of the options; None stands for one of the pool."""
        producer = options.pop("producer", None) or options.pop("publisher", None)
        if connection := options.pop("connection", None):
            producer = self.amqp.Producer(connection, auto_declare=False)
        return None if isinstance(producer, _OnDemand) else producer

    def checked_options(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """The options as they are sent. Raises `BadInput`."""
        check_options(name, options)
        task = self.tasks.get(name)
        serializer = options.get("serializer") or getattr(task, "serializer", self.conf.task_serializer)
        checks.check_serializer(name, serializer, self.conf.accept_content)
        options = dict(options)
        # By its name, Celery refuses one that is not in the topology; a `kombu.Queue` it would declare.
        options["queue"] = getattr(options.get("queue"), "name", options.get("queue"))
        options["countdown"] = checks.delay(
            options.pop("countdown", None), options.pop("eta", None), is_retry=bool(options.get("retries"))
        )
        if options["countdown"] and not options.get("retries"):
            checks.check_delayed_route(name, options)
        options["expires"] = checks.lifetime(options.get("expires", getattr(task, "expires", None)))
        for limit in ("time_limit", "soft_time_limit"):
            # Unless said for this message, the limits are those of the worker: the message would carry the
            # publisher's, of which the worker's broker may know nothing.
            said = options.get(limit)
            options[limit] = None if said == getattr(task, limit, None) else said
            checks.check_time_limit(name, limit, options[limit], self.settings.known_consumer_timeout)
        # Without it, a message that no queue takes is confirmed and dropped.
        options["mandatory"] = True
        # Kombu would repeat a publish that may have arrived, unmarked and for as long as it takes.
        options["retry"] = False
        if options.get("task_id") is not None or options.get("retries"):
            _mark_repeat(options)
        # Fixed here, so that a repeated publish carries the same id and can be told to be one.
        options["task_id"] = checks.checked_id(options.get("task_id"))
        return options


class _OnDemand(Producer):
    """A producer for who needs one before it is known whether a connection is."""


class _Tasks(TaskRegistry):
    """The tasks of an application, each of which checks its arguments, whatever `base` it was made with."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app

    def __setitem__(self, name: str, task: Any) -> None:
        if not isinstance(task, self._app.Task):
            # What its own base has said comes first.
            kind = type(task)
            task.__class__ = type(kind.__name__, (kind, self._app.Task), {"__module__": kind.__module__})
        super().__setitem__(name, task)


class _AMQP(AMQP):
    """Celery's side of messages, which knows when a worker publishes the next step of a task."""

    # upstream: not reported; remove when Celery says so in the options of what it publishes
    def _retry_publish(self, publish: Callable[..., Any], *args: Any, **options: Any) -> Any:
        token = _next_step.set(True)
        try:
            return super()._retry_publish(publish, *args, **options)
        finally:
            _next_step.reset(token)


@contextmanager
def _logged(name: str, options: dict[str, Any]) -> Iterator[None]:
    """Log what became of the message that is published in the block."""
    began = time.time()
    task_id = options["task_id"]
    facts = {"retries": options.get("retries") or None, "delay": options["countdown"]}
    try:
        yield
    except ProjError as error:
        event = events.PUBLISH_UNKNOWN if isinstance(error, OutcomeUnknown) else events.PUBLISH_REFUSED
        events.say(log, logging.WARNING, event, task_id, name, f"not published: {error}", **facts)
        raise
    words = f"published, to be executed in {facts['delay']} s" if facts["delay"] else "published"
    events.say(log, logging.INFO, events.PUBLISHED, task_id, name, words, at=began, **facts)


def _mark_repeat(options: dict[str, Any]) -> None:
    """Let the worker look for a stored success before it executes the task."""
    options["headers"] = {**(options.get("headers") or {}), queues.REPEAT_HEADER: True}
