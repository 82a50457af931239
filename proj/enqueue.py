"""The base of every task: arguments are checked, and publishing ends as `proj.publish` says."""

import difflib
import functools
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import celery
import kombu
from celery.backends.base import DisabledBackend

from proj import checks, events, publish, queues
from proj.arguments import check_call, given_arguments
from proj.definition import refuse_coroutine, result_of
from proj.errors import (
    BrokerUnreachable,
    OutcomeUnknown,
    ProjError,
    UnknownTask,
)
from proj.parameters import Parameters

log = logging.getLogger(__name__)

#: Errors that are over after a while, more likely than not.
TRANSIENT: Final = (ConnectionError, TimeoutError, BrokerUnreachable)

#: Seconds between two attempts, at most.
LONGEST_BACKOFF: Final = 600


class Task(celery.Task):
    """The base of every task of the application: arguments are checked, and publishing does not lie."""

    #: Without it, a message that no queue takes is confirmed and dropped.
    mandatory = True

    #: What becomes of a delivery whose task does not just end.
    Request = "proj.request:Request"

    #: What is tried again, by itself, after 1, 2, 4 … seconds with jitter; a task may add to it.
    autoretry_for = TRANSIENT
    retry_backoff = 1
    retry_backoff_max = LONGEST_BACKOFF

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a task that Celery cannot execute, before it is registered. Raises `BadTask`."""
        super().__init_subclass__(**options)
        # Of a function, Celery makes a class; with `pydantic=True`, its `run` is a wrapper of Celery's.
        # upstream: not reported; remove when a task has a public name for its function
        refuse_coroutine(cls.name or cls.__qualname__, getattr(cls, "_decorated_fun", cls.run))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the task in this process. Raises `BadArguments` before it starts."""
        args, kwargs = self.check_arguments(args, kwargs)
        try:
            return result_of(self.name, super().__call__(*args, **kwargs))
        except (SystemExit, KeyboardInterrupt) as error:
            if threading.current_thread() is threading.main_thread():
                raise
            # There is no process to end, and Celery's pool of threads would never answer the message.
            raise RuntimeError(f"the task raised {error!r}") from error

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Enqueue the task, and return once the broker has confirmed it.

        Takes the options of `celery.Task.apply_async`. `countdown` (seconds) and `eta` (a `datetime`,
        UTC when it has no zone) are held by the broker to the second, rounded up. A message whose
        `task_id` is given may be a repeat, and is marked as one. Raises the errors that `proj.publish`
        lists. With Celery's `task_always_eager`, the task is executed here and now instead.
        """
        args, kwargs = given_arguments(self.name, args, kwargs)
        check_call(self.name, args, kwargs, self.parameters)
        serializer = options.get("serializer") or self.serializer
        checks.check_serializer(self.name, serializer, self.app.conf.accept_content)
        options["countdown"] = checks.delay(options.pop("countdown", None), options.pop("eta", None))
        options["expires"] = checks.lifetime(options.get("expires", self.expires))
        # Unless said for this message, the limits are those of the worker: the message would carry the
        # publisher's settings, of which the worker's broker may know nothing.
        options.setdefault("time_limit", None)
        options.setdefault("soft_time_limit", None)
        # Kombu would repeat a publish that may have arrived, unmarked and for as long as it takes.
        options["retry"] = False
        if options.get("task_id") is not None or options.get("retries"):
            _mark_repeat(options)
        # Fixed here, so that a repeated publish carries the same id and can be told to be one.
        options["task_id"] = checks.checked_id(options.get("task_id"))
        if self.app.conf.task_always_eager:
            # Celery asks a producer for its serializer; one of its pool would have to connect.
            return super().apply_async(args, kwargs, producer=kombu.Producer(None), **options)
        given = options.pop("producer", None)
        if over := options.pop("connection", None):
            given = self.app.amqp.Producer(over, auto_declare=False)
        apply_async = super().apply_async

        def send(producer: Any) -> Any:
            return apply_async(args, kwargs, producer=producer, **options)

        with _logged(self.name, options):
            one = publish.Publish(
                self.app,
                self.name,
                options["task_id"],
                publish.deadline_of(self.app),
                delayed=bool(options["countdown"]),
            )
            return one.run(send, functools.partial(_mark_repeat, options), given)

    @property
    def backend(self) -> Any:
        """Where results are stored: nowhere, for a task that is executed by the program that calls it."""
        if self.request.is_eager and not self.store_eager_result:
            return DisabledBackend(self.app)
        return super().backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        celery.Task.backend.fset(self, backend)

    def check_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the task's annotations want them. Raises `BadArguments`."""
        return self.parameters.check(args, kwargs)

    @property
    def usage(self) -> str:
        """How the task is called, for people: `proj.tasks.add(x, y)`."""
        return f"{self.name}({', '.join(self.parameters.names)})"

    @functools.cached_property
    def parameters(self) -> Parameters:
        """What the task takes. Raises `BadTask`."""
        return Parameters(self.name, self.run)


def enqueue(
    name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """Enqueue the task of this name; the options are those of `Task.apply_async`.

    Raises `UnknownTask`, and what `Task.apply_async` raises.
    """
    return find_task(name).apply_async(args, kwargs, **options)


def own_tasks(app: celery.Celery) -> dict[str, Task]:
    """The tasks of the application by their names, sorted, without those of Celery itself."""
    app.loader.import_default_modules()
    return {name: task for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")}


def find_task(name: str) -> Task:
    """The registered task of this name. Raises `UnknownTask`, with the nearest name that there is."""
    from proj import app

    tasks = own_tasks(app)
    if name in tasks:
        return tasks[name]
    near = difflib.get_close_matches(name, tasks, 1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(tasks)}"
    raise UnknownTask(f"there is no task {name!r}", hint)


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
