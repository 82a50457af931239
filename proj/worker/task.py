"""The base of every task: what a worker does beside executing its function."""

import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final

import celery
from celery import states
from celery.app.task import get_actual_ignore_result
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Retry

from proj.enqueue import task
from proj.enqueue.definition import result_of
from proj.errors import BrokerUnreachable, Ignored
from proj.worker import revocation

#: Errors that are over after a while, more likely than not.
TRANSIENT: Final = (ConnectionError, TimeoutError, BrokerUnreachable)

#: Seconds between two attempts, at most.
LONGEST_BACKOFF: Final = 600


class Task(task.Task):
    """The base of every task of the application: checked, retried with back-off, its end always stored."""

    #: What becomes of a delivery whose task does not just end.
    Request = "proj.worker.request:Request"

    #: What is retried after 1, 2, 4 … seconds with jitter; a task may add to it.
    autoretry_for = TRANSIENT
    retry_backoff = 1
    retry_backoff_max = LONGEST_BACKOFF

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
        """Enqueue the task; a retry, once it is stored that there is one."""
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
