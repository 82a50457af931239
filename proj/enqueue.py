"""The base of every task, which knows what arguments its function takes, and what is tried again."""

import difflib
import functools
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import celery
from celery import states
from celery.app.task import get_actual_ignore_result
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Retry

from proj import checks, revocation
from proj.arguments import check_call, given_arguments
from proj.burial import Ignored
from proj.definition import refuse_coroutine, result_of
from proj.door import is_unchecked
from proj.errors import BadTask, BrokerUnreachable, UnknownTask
from proj.parameters import Parameters
from proj.printable import shown

if TYPE_CHECKING:
    from proj.typed import Result

#: Errors that are over after a while, more likely than not.
TRANSIENT: Final = (ConnectionError, TimeoutError, BrokerUnreachable)

#: Seconds between two attempts, at most.
LONGEST_BACKOFF: Final = 600

#: Characters of a name that the nearest one is looked for with: AMQP has room for no more.
_LONGEST_NAME: Final = 255


class Task(celery.Task):
    """The base of every task of the application: its arguments are checked before it is sent and executed."""

    #: Celery need not count the arguments: they are checked here, with their types, and not for a next step.
    typing = False

    #: What becomes of a delivery whose task does not just end.
    Request = "proj.request:Request"

    #: What is tried again, by itself, after 1, 2, 4 … seconds with jitter; a task may add to it.
    autoretry_for = TRANSIENT
    retry_backoff = 1
    retry_backoff_max = LONGEST_BACKOFF

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a task that Celery cannot execute, before it is registered. Raises `BadTask`."""
        super().__init_subclass__(**options)
        name = cls.name or cls.__qualname__
        refuse_coroutine(name, cls.run)
        for limit in ("time_limit", "soft_time_limit"):
            if not checks.is_time_limit(value := getattr(cls, limit)):
                raise BadTask(f"{name}: {limit} must be 0 or more seconds, got {shown(value)}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the task in this process. Raises `BadArguments` before it starts."""
        args, kwargs = self.check_arguments(args, kwargs)
        revocation.check(self)
        try:
            return result_of(self.name, super().__call__(*args, **kwargs))
        except Ignore as error:
            self._store_ignored(error)
            raise
        except Retry as error:
            self._refuse_unpublished(error)
            raise
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

        The options are those of `App.send_task`. Raises `BadArguments`, and what that raises. With Celery's
        `task_always_eager`, the task is executed here and now instead.
        """
        args, kwargs = given_arguments(self.name, args, kwargs)
        if not is_unchecked(options):
            check_call(self.name, args, kwargs, self.parameters)
        if self.soft_time_limit and self.time_limit and self.soft_time_limit > self.time_limit:
            # Celery refuses it with a `ValueError`.
            raise BadTask(
                f"{self.name}: soft_time_limit must not be above time_limit, "
                f"got {self.soft_time_limit:g} and {self.time_limit:g}"
            )
        if options.get("retries") and options.get("task_id") == self.request.id:
            self._store_retry()
        if self.app.conf.task_always_eager:
            options = self.app.checked_options(self.name, options)
        return super().apply_async(args, kwargs, **options)

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        **options: Any,
    ) -> Any:
        """Enqueue the next attempt, once it is stored that there is one; as `celery.Task.retry`."""
        self.request.retry_exc = exc
        return super().retry(args, kwargs, exc, **options)

    def _store_ignored(self, error: Ignore) -> None:
        """Store how the task ended, for who waits for it; an end that the task stored itself stands."""
        request = self.request
        if request.called_directly or getattr(request, "end_is_stored", False):
            return
        words = f"the task raised Ignore: {error}" if error.args else "the task raised Ignore"
        self.backend.mark_as_failure(
            request.id, Ignored(words), request=request, call_errbacks=False, state=states.REVOKED
        )

    def _refuse_unpublished(self, error: Retry) -> None:
        """Let a `Retry` that the task raised by itself be a failure: Celery would acknowledge the message."""
        if error.sig is None and not self.request.called_directly:
            raise RuntimeError("the task raised Retry, which publishes nothing: call self.retry()") from error

    def _store_retry(self) -> None:
        """Store that the task is tried again, before that attempt can store how it ended."""
        request = self.request
        if not get_actual_ignore_result(self, request) or self.store_errors_even_if_ignored:
            raised = traceback.format_exc() if sys.exception() else None
            self.backend.mark_as_retry(request.id, getattr(request, "retry_exc", None), raised, request)
        request.retry_is_stored = True  # Celery's tracer would do it again, too late

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
) -> "Result[Any]":
    """Enqueue the task of this name; the options are those of `Task.apply_async`.

    Raises `UnknownTask`, and what `Task.apply_async` raises.
    """
    result: Result[Any] = find_task(name).apply_async(args, kwargs, **options)
    return result


def own_tasks(app: celery.Celery) -> dict[str, Task]:
    """The tasks of the application by their names, sorted, without those of Celery itself."""
    app.loader.import_default_modules()
    return {name: task for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")}


def find_task(name: str) -> Task:
    """The registered task of this name. Raises `UnknownTask`, with the nearest name that there is."""
    from proj import app

    tasks = own_tasks(app)
    if isinstance(name, str) and name in tasks:
        return tasks[name]
    near = difflib.get_close_matches(str(name)[:_LONGEST_NAME], tasks, 1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(tasks)}"
    raise UnknownTask(f"there is no task {shown(name)}", hint)
