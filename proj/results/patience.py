"""How long the result store is tried, and what is done then; the part of a store that is the same for all.

A task is done when its result is stored, and only then is its message acknowledged. While the store is
down, a worker that has a result tries again for `STORE_PATIENCE`, which also keeps it from taking more
work. After that the task has failed, with that reason, and its message goes to the dead-letter queue.
Progress, which a task stores while it runs, gets one attempt and is dropped when that fails.
"""

import logging
import time
from contextlib import suppress
from typing import Any, Final

import celery.exceptions
from celery import current_task, states
from celery.utils.log import get_logger

from proj import queues
from proj.logs import events
from proj.logs.printable import shortened
from proj.results import stored_exception

log = get_logger(__name__)

#: Seconds that a worker tries to store what a task has ended with: enough for a database server to be
#: started anew, and well below the time limits of a task, which go on meanwhile.
STORE_PATIENCE: Final = 30

#: Seconds that all else is tried, such as to read a result: somebody waits for the answer.
PATIENCE: Final = 2

#: Seconds between two attempts, at most.
ATTEMPT_INTERVAL: Final = 1

#: Seconds without a further attempt to store progress, once one has failed.
PROGRESS_PAUSE: Final = 10

#: How much longer than the attempt the pause is at least: a store that hangs for `ANSWER_TIMEOUT` costs a
#: task a tenth of its time, however often that reports its progress.
_PAUSE_FACTOR: Final = 10

#: What is stored with patience: ends, and that there is another attempt, before that can store how it ended.
#: Any other state is progress: STARTED, and what a task gives to `update_state`.
_KEPT: Final = states.READY_STATES | {states.RETRY}

#: What must be stored before the message of a task is acknowledged.
_NEEDED: Final = (states.SUCCESS, states.REVOKED)


class Patient:
    """What every backend class of Celery gets in addition: how long it tries, and what it does then."""

    #: Until when the operation that is under way is tried again. Each thread has a backend of its own.
    _deadline = 0.0

    #: Until when progress is dropped without an attempt.
    _progress_resumes = 0.0

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Store it. Raises `BackendStoreError` for a success or a revocation that cannot be stored.

        Progress is dropped with a warning, after one attempt.

        A failure that cannot be stored is logged: its message becomes a dead letter all the same. Were
        it raised, Celery 5.7 would answer the message of a task in a pool of threads with nothing, for
        good, and end a worker with `-P solo`.
        """
        if state not in _KEPT:
            return self._store_progress(task_id, result, state, traceback, *args, **kwargs)
        # Outside of a task, it is the worker's main process that is kept from all else. And what is to be
        # stored here may be that nothing can be stored.
        traceback = traceback and shortened(traceback, stored_exception.LONGEST_TEXT)
        patient = current_task and not isinstance(result, celery.exceptions.BackendStoreError)
        self._deadline = time.monotonic() + (STORE_PATIENCE if patient else PATIENCE)
        try:
            stored = super().store_result(task_id, result, state, traceback, *args, **kwargs)  # type: ignore[misc]
            if state in states.READY_STATES and current_task and current_task.request.id == task_id:
                current_task.request.end_is_stored = True  # perhaps by the task itself
            return stored
        except Exception as error:
            if state in _NEEDED:
                raise celery.exceptions.BackendStoreError(
                    f"the result cannot be stored: {reason_of(error)}", task_id=task_id, state=state
                ) from error
            said = {"task_id": task_id, "task_name": getattr(kwargs.get("request"), "task", None)}
            log.error("State %s of task %s is not stored: %s", state, task_id, reason_of(error), extra=said)
            return result

    def _store_progress(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store it in one attempt, or drop it: the task must not be held by a store that is down."""
        began = time.monotonic()
        if began < self._progress_resumes:
            return result
        self._deadline = 0.0
        try:
            return super().store_result(task_id, result, state, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            words = f"has its state {state} dropped: {reason_of(error)}"
            if super().exception_safe_to_retry(error):  # type: ignore[misc]
                now = time.monotonic()
                pause = max(PROGRESS_PAUSE, _PAUSE_FACTOR * (now - began))
                self._progress_resumes = now + pause
                words += f" (further progress is not tried for {pause:.0f} s)"
                with suppress(Exception):
                    self.on_backend_retryable_error(error)  # type: ignore[attr-defined]
            name = getattr(kwargs.get("request"), "task", None)
            events.say(log, logging.WARNING, events.PROGRESS_DROPPED, task_id, name, words)
            return result

    def get_task_meta(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        """Read it. Raises `BackendGetMetaError`, which Celery expects when it looks for a stored success."""
        self._deadline = time.monotonic() + PATIENCE
        try:
            return super().get_task_meta(task_id, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if not super().exception_safe_to_retry(error):  # type: ignore[misc]
                raise  # not the store's
            raise celery.exceptions.BackendGetMetaError(reason_of(error), task_id=task_id) from error

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Store the result; of a task that ignores it, the bare success, where a repeat looks for one."""
        is_ignored = not store_result or getattr(request, "ignore_result", False)
        if is_ignored and self.persistent and getattr(request, queues.REPEAT_HEADER, False):  # type: ignore[attr-defined]
            self.store_result(task_id, None, state, request=request)
        super().mark_as_done(task_id, result, request, store_result, state)  # type: ignore[misc]

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, **options: Any
    ) -> Any:
        """Store that a task is tried again; not once more when its next attempt is published."""
        if not getattr(request, "retry_is_stored", False):
            super().mark_as_retry(task_id, exc, traceback, request, **options)  # type: ignore[misc]

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        exc = stored_exception.original(exc)
        stored = super().prepare_exception(exc, serializer)  # type: ignore[misc]
        return stored_exception.with_text(stored, exc)

    def exception_to_python(self, exc: Any) -> Any:
        return stored_exception.read(exc, super().exception_to_python(exc))  # type: ignore[misc]

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Asked by Celery after each attempt."""
        return time.monotonic() < self._deadline and super().exception_safe_to_retry(exc)  # type: ignore[misc]


def reason_of(error: BaseException | None) -> str:
    """The words of the store itself, in one line."""
    while isinstance(error, celery.exceptions.BackendError) and error.__cause__:
        error = error.__cause__  # these say only that it failed
    # SQLAlchemy adds the statement, the result itself among its values, and a link.
    return " ".join(str(getattr(error, "orig", None) or error).split())
