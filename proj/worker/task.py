"""The base class of every task: how a worker executes and retries it, and stores its end."""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import celery
from billiard import current_process
from celery import states
from celery.app.task import get_actual_ignore_result
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Retry, WorkerShutdown, WorkerTerminate

from proj.enqueue import task
from proj.enqueue.definition import result_of
from proj.errors import TRANSIENT, Ignored, with_transient
from proj.worker import revocation

#: The longest back-off between two attempts, in seconds.
LONGEST_BACKOFF: Final = 600


class Task(task.Task):
    """A task with checked arguments that is retried with back-off, and whose end is always stored."""

    Request = "proj.worker.request:Request"

    #: Errors that are retried, with a back-off of 1, 2, 4 … seconds and jitter; a task may add to them.
    autoretry_for: Sequence[type[Exception]] = TRANSIENT
    retry_backoff = 1
    retry_backoff_max = LONGEST_BACKOFF

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.autoretry_for = with_transient(cls.autoretry_for)

    @classmethod
    def guarded(cls, kind: type[celery.Task], base: type[celery.Task]) -> type[celery.Task]:
        """The class for tasks of this kind, of an application whose tasks have this base.

        It guards how they are executed, whatever both do.
        """
        if issubclass(kind, _Guard):
            return kind
        bases = (_Guard, kind, *(each for each in (base, cls) if not issubclass(kind, each)))
        return type(kind.__name__, bases, {"__module__": kind.__module__, "__doc__": kind.__doc__})

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Enqueue the task. For a retry, store the state RETRY first."""
        if options.get("retries") and options.get("task_id") == self.request.id:
            self._store_retry()
        return super().apply_async(args, kwargs, **options)

    def retry(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        **options: Any,
    ) -> Any:
        """Store the state RETRY and enqueue the next attempt, as `celery.Task.retry`."""
        self.request.retry_exc = exc
        return super().retry(args, kwargs, exc, **options)

    def signature_from_request(
        self, request: Any = None, args: Any = None, kwargs: Any = None, queue: Any = None, **options: Any
    ) -> Any:
        """As `celery.Task`'s, to the queue that the message came from: a retry does not change queues."""
        if queue is None and not {"exchange", "routing_key"} & options.keys():
            key = ((request or self.request).delivery_info or {}).get("routing_key") or ""
            origin = self.app.settings.topology.work_queue_of(key)
            queue = origin.name if origin else None
        return super().signature_from_request(request, args, kwargs, queue, **options)

    def on_replace(self, sig: Any) -> Any:
        """As `celery.Task`'s: the end of what replaces the task is stored under its id, and no end before."""
        try:
            return super().on_replace(sig)
        except Ignore:
            self.request.end_is_stored = True
            raise

    def _store_retry(self) -> None:
        """Store that the task is retried, before the next attempt can store its end."""
        request = self.request
        if not get_actual_ignore_result(self, request) or self.store_errors_even_if_ignored:
            raised = traceback.format_exc() if sys.exception() else None
            self.backend.mark_as_retry(request.id, getattr(request, "retry_exc", None), raised, request)
        request.retry_is_stored = True  # Celery's tracer would store it again, too late

    @property
    def backend(self) -> Any:
        """The result store, or none for a task that its caller executes itself (eager)."""
        if self.request.is_eager and not self.store_eager_result:
            return DisabledBackend(self.app)
        return super().backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        celery.Task.backend.fset(self, backend)


class _Guard(celery.Task):
    """What is done around a task of any base, which may have a `__call__` or `before_start` of its own."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self._guard(super().before_start, task_id, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Execute the task in this process. Raises `BadArguments` before it starts."""
        args, kwargs = self.check_arguments(args, kwargs)
        request = self.request
        revocation.check(self, request)
        result = result_of(self.name, self._guard(super().__call__, *args, **kwargs))
        request.returned = True  # for `proj.enqueue.app.is_unchecked`
        return result

    def _guard(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except Ignore as error:
            self._store_ignored(error)
            raise
        except Retry as error:
            self._refuse_unpublished(error)
            raise
        except Exception:
            raise
        except BaseException as error:
            if self._may_end_the_process(error):
                raise
            raise RuntimeError(f"the task raised {error!r}") from error

    def _may_end_the_process(self, error: BaseException) -> bool:
        """Whether Celery handles what is no `Exception`; else it would never answer the message.

        A process of a pool ends with `SystemExit`, and its message is given back. Threads and `-P solo` have
        no such process.
        """
        request = self.request
        if request.called_directly or request.is_eager or isinstance(error, WorkerShutdown | WorkerTerminate):
            return True
        in_pool = current_process().name != revocation.MAIN_PROCESS
        return in_pool and isinstance(error, SystemExit | KeyboardInterrupt)

    def _store_ignored(self, error: Ignore) -> None:
        """Store `REVOKED` as the end of the task, unless it has stored an end itself."""
        request = self.request
        if request.called_directly or getattr(request, "end_is_stored", False):
            return
        words = f"the task raised Ignore: {error}" if error.args else "the task raised Ignore"
        self.backend.mark_as_failure(
            request.id, Ignored(words), request=request, call_errbacks=False, state=states.REVOKED
        )

    def _refuse_unpublished(self, error: Retry) -> None:
        """Fail a task that raised `Retry` by itself: Celery would acknowledge the message and so lose it."""
        if error.sig is None and not self.request.called_directly:
            raise RuntimeError("the task raised Retry, which publishes nothing: call self.retry()") from error
