"""The callers' side of a task: it checks the arguments and enqueues."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import celery
from celery.app.utils import find_app
from kombu.exceptions import EncodeError

from proj.enqueue import checks
from proj.enqueue.app import App, is_unchecked
from proj.enqueue.arguments import check_call, given_arguments
from proj.enqueue.definition import refuse_coroutine
from proj.enqueue.options import given_options
from proj.enqueue.parameters import Parameters
from proj.errors import BadTask, UnknownTask, did_you_mean
from proj.logs.printable import shown

if TYPE_CHECKING:
    from proj.enqueue.typed import Result

#: Characters of an unknown name that are compared with known ones: AMQP's maximum.
_LONGEST_NAME: Final = 255


class Task(celery.Task):
    """A task whose arguments are checked before it is sent, and again before it is executed."""

    #: Switches off Celery's count of arguments: they are checked here with their types.
    typing = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a task that Celery cannot execute, before it is registered. Raises `BadTask`."""
        super().__init_subclass__(**options)
        name = cls.name or cls.__qualname__
        refuse_coroutine(name, cls.run)
        for limit in ("time_limit", "soft_time_limit"):
            if not checks.is_time_limit(value := getattr(cls, limit)):
                raise BadTask(f"{name}: {limit} must be 0 or more seconds, got {shown(value)}")

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Enqueue the task, and return once the broker has confirmed it.

        The options are those of `App.send_task`, except that `expires=None` stands for never. Raises
        `BadArguments`, and the errors of `App.send_task`. With Celery's `task_always_eager`, the task is
        executed in this call instead.
        """
        args, kwargs = given_arguments(self.name, args, kwargs)
        options = given_options(options) if options else options
        template = None if options else self.app.templates.find(self)
        if template or not is_unchecked(options):  # none is found while a task is executed
            check_call(self.name, args, kwargs, self.parameters)
        if self.soft_time_limit and self.time_limit and self.soft_time_limit > self.time_limit:
            # Celery refuses it with a `ValueError`.
            raise BadTask(
                f"{self.name}: soft_time_limit must not be above time_limit, "
                f"got {self.soft_time_limit:g} and {self.time_limit:g}"
            )
        if template:
            try:
                result = self.app.send_from(template, args, kwargs, self.AsyncResult)
            except EncodeError:
                pass  # Celery can send it
            else:
                result.ignored = template.ignore_result
                return result
        if self.app.conf.task_always_eager:
            options = self.app.checked_options(self.name, options)
        return super().apply_async(args, kwargs, **options)

    def check_arguments(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, converted to the task's annotations. Raises `BadArguments`."""
        return self.parameters.check(args, kwargs)

    @property
    def usage(self) -> str:
        """The task's signature for people: `proj.tasks.add(x, y)`."""
        return f"{self.name}({', '.join(self.parameters.names)})"

    @functools.cached_property
    def parameters(self) -> Parameters:
        """The task's parameters. Raises `BadTask`."""
        return Parameters(self.name, self.run)


def enqueue(
    name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
) -> "Result[Any]":
    """Enqueue the task of this name; the options are those of `Task.apply_async`.

    The application is Celery's `current_app` if that is an `App`, or else `proj.app`. Raises `UnknownTask`,
    and the errors of `Task.apply_async`.
    """
    result: Result[Any] = find_task(default_app(), name).apply_async(args, kwargs, **options)
    return result


def default_app() -> App:
    """Celery's `current_app` if that is an `App`, or else `proj.app`."""
    app: App = celery.current_app if isinstance(celery.current_app, App) else find_app("proj")
    return app


def own_tasks(app: celery.Celery) -> dict[str, Task]:
    """The application's tasks by name, sorted, without Celery's own."""
    app.loader.import_default_modules()
    return {name: task for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")}


def find_task(app: celery.Celery, name: str) -> Task:
    """The application's task of this name. Raises `UnknownTask`, with the most similar known name."""
    tasks = own_tasks(app)
    if isinstance(name, str) and name in tasks:
        return tasks[name]
    raise unknown_task(name, tasks)


def unknown_task(name: str, known: Iterable[str]) -> UnknownTask:
    """The error for a name that is not one of the known tasks, with the most similar that is."""
    hint = did_you_mean(str(name)[:_LONGEST_NAME], known, likeness=0.4)
    return UnknownTask(f"there is no task {shown(name)}", hint or f"known tasks: {', '.join(known)}")
