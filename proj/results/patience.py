"""Retries of result stores of every kind: for how long, and what happens when the store stays down.

A message is acknowledged only when the result of its task is stored. While the store is down, a worker
retries for `STORE_PATIENCE` and takes no more work. After that the task fails with that reason, and its
message becomes a dead letter. Progress, which a task stores while it runs, gets one attempt and is dropped
when that fails.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import celery.exceptions
from celery import states
from celery.backends.base import DisabledBackend
from celery.utils.log import get_logger

from proj import queues
from proj.logs import events
from proj.logs.printable import one_line, shortened
from proj.results import polling, stored_exception
from proj.results.ended import ended

log = get_logger(__name__)

#: Seconds for which a worker retries to store how a task ended: enough for a restart of a database server,
#: and well below the time limits of a task, which count this time too.
STORE_PATIENCE: Final = 30

#: Seconds for which all other operations are retried, such as to read a result: a caller waits for them.
PATIENCE: Final = 2

#: Seconds between two attempts, at most.
ATTEMPT_INTERVAL: Final = 1

#: Seconds without a further attempt to store progress, once one has failed.
PROGRESS_PAUSE: Final = 10

#: The pause is at least so many times as long as the attempt: a store that hangs for `ANSWER_TIMEOUT` costs a
#: task a tenth of its time, however often it reports progress.
_PAUSE_FACTOR: Final = 10

#: States that are stored with retries: ends, and RETRY, which must be stored before the next attempt ends.
#: Any other state is progress: STARTED, and what a task gives to `update_state`.
_KEPT: Final = states.READY_STATES | {states.RETRY}

#: States that must be stored before the message of a task is acknowledged.
_NEEDED: Final = (states.SUCCESS, states.REVOKED)


class Patient:
    """A mix-in for Celery's backend classes, which bounds their retries in time."""

    #: End of the retries of the current operation (`time.monotonic`). Each thread has its own backend.
    _deadline = 0.0

    #: Until then, progress is dropped without an attempt (`time.monotonic`).
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
        """Store a state. Raises `BackendStoreError` for a success or a revocation that cannot be stored.

        Progress is dropped with a warning, after one attempt.

        A failure that cannot be stored is logged, and its message becomes a dead letter all the same. If the
        error were raised, Celery 5.7 would never answer the message in a pool of threads, and would end a
        worker with `-P solo`.
        """
        if state not in _KEPT:
            return self._store_progress(task_id, result, state, traceback, *args, **kwargs)
        # Outside of a task, a retry would block the worker's main process. And the failure may be that the
        # result could not be stored, for which the store was retried already.
        traceback = traceback and shortened(traceback, stored_exception.LONGEST_TEXT)
        task = self.app.current_task  # type: ignore[attr-defined]
        patient = task and not isinstance(result, celery.exceptions.BackendStoreError)
        self._deadline = time.monotonic() + (STORE_PATIENCE if patient else PATIENCE)
        try:
            stored = super().store_result(task_id, result, state, traceback, *args, **kwargs)  # type: ignore[misc]
            if task and state in states.READY_STATES and (request := task.request).id == task_id:
                request.end_is_stored = True  # the task itself may have stored it
        except Exception as error:
            if state in _NEEDED:
                raise celery.exceptions.BackendStoreError(
                    f"the result cannot be stored: {reason_of(error)}", task_id=task_id, state=state
                ) from error
            fields = {"task_id": task_id, "task_name": getattr(kwargs.get("request"), "task", None)}
            log.error("State %s of task %s is not stored: %s", state, task_id, reason_of(error), extra=fields)
            return result
        if state in states.READY_STATES:
            ended.send(
                sender=self.app,  # type: ignore[attr-defined]
                task_id=task_id,
                state=state,
                result=result,
                request=kwargs.get("request"),
            )
        return stored

    def _store_progress(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """Store progress in one attempt, or drop it: a store that is down must not hold the task."""
        began = time.monotonic()
        if began < self._progress_resumes:
            return result
        self._deadline = 0.0
        try:
            return super().store_result(task_id, result, state, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            words = f"dropped its state {state}: {reason_of(error)}"
            if super().exception_safe_to_retry(error):  # type: ignore[misc]
                now = time.monotonic()
                pause = max(PROGRESS_PAUSE, _PAUSE_FACTOR * (now - began))
                self._progress_resumes = now + pause
                words += f" (no further attempt for {pause:.0f} s)"
                with suppress(Exception):
                    self.on_backend_retryable_error(error)  # type: ignore[attr-defined]
            name = getattr(kwargs.get("request"), "task", None)
            events.say(log, logging.WARNING, events.PROGRESS_DROPPED, task_id, name, words)
            return result

    def get_task_meta(self, task_id: str, *args: Any, **kwargs: Any) -> Any:
        """Read a state. Raises `BackendGetMetaError`, which Celery expects when it looks for a success."""
        self._deadline = time.monotonic() + PATIENCE
        try:
            return super().get_task_meta(task_id, *args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            if not super().exception_safe_to_retry(error):  # type: ignore[misc]
                raise  # not an error of the store
            raise celery.exceptions.BackendGetMetaError(reason_of(error), task_id=task_id) from error

    def wait_for(
        self,
        task_id: str,
        timeout: float | None = None,
        interval: float = polling.CELERYS_INTERVAL,
        no_ack: bool = True,
        on_interval: Callable[[], object] | None = None,
    ) -> Any:
        """Wait until the task has ended, and return its state; with Celery's interval, query more often.

        Raises Celery's `TimeoutError` after `timeout` seconds. All of Celery's waits for a store that is
        polled end here.
        """
        if interval != polling.CELERYS_INTERVAL or isinstance(self, DisabledBackend):
            return super().wait_for(task_id, timeout, interval, no_ack, on_interval)  # type: ignore[misc]
        for _ in polling.turns(timeout):
            meta = self.get_task_meta(task_id)
            if meta["status"] in states.READY_STATES:
                return meta
            if on_interval:
                on_interval()
        raise celery.exceptions.TimeoutError("The operation timed out.")

    def mark_as_done(
        self,
        task_id: str,
        result: Any,
        request: Any = None,
        store_result: bool = True,
        state: str = states.SUCCESS,
    ) -> None:
        """Store the result. For a repeat whose task ignores its result, store the success alone."""
        is_ignored = not store_result or getattr(request, "ignore_result", False)
        if is_ignored and self.persistent and getattr(request, queues.REPEAT_HEADER, False):  # type: ignore[attr-defined]
            self.store_result(task_id, None, state, request=request)
        super().mark_as_done(task_id, result, request, store_result, state)  # type: ignore[misc]

    def mark_as_failure(
        self,
        task_id: str,
        exc: BaseException,
        traceback: str | None = None,
        request: Any = None,
        store_result: bool = True,
        call_errbacks: bool = True,
        state: str = states.FAILURE,
    ) -> None:
        """Store the error, then let the task's chain and chord fail, and call its errbacks.

        What cannot be called, such as an errback whose queue is full, is logged: the error that is stored
        stays. Raises `BackendStoreError` for another state, which is an end that must be stored.
        """
        try:
            super().mark_as_failure(  # type: ignore[misc]
                task_id, exc, traceback, request, store_result, call_errbacks, state
            )
        except celery.exceptions.BackendStoreError:
            raise
        except Exception as error:
            words = "The chain, chord or errback of task %s cannot be called: %s"
            log.warning(words, one_line(task_id), one_line(repr(error)))

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: str | None = None, request: Any = None, **options: Any
    ) -> Any:
        """Store that a task is retried, unless that is stored already."""
        if not getattr(request, "retry_is_stored", False):
            super().mark_as_retry(task_id, exc, traceback, request, **options)  # type: ignore[misc]

    def prepare_exception(self, exc: BaseException, serializer: str | None = None) -> Any:
        exc = stored_exception.original(exc)
        stored = super().prepare_exception(exc, serializer)  # type: ignore[misc]
        return stored_exception.with_text(stored, exc)

    def exception_to_python(self, exc: Any) -> Any:
        """The exception that is stored; of anything else that a task has stored, one with it as its text."""
        try:
            rebuilt = super().exception_to_python(exc)  # type: ignore[misc]
        except Exception:  # Celery's own way to read fails for all that is not its dict of an exception
            rebuilt = None
        return stored_exception.read(exc, rebuilt)

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """Whether to retry; Celery asks after each attempt."""
        return time.monotonic() < self._deadline and super().exception_safe_to_retry(exc)  # type: ignore[misc]


def reason_of(error: BaseException | None) -> str:
    """The store's own message, in one line."""
    while isinstance(error, celery.exceptions.BackendError) and error.__cause__:
        error = error.__cause__  # Celery's errors do not include the reason
    # SQLAlchemy adds a link, and the statement with its values, which include the result.
    return " ".join(str(getattr(error, "orig", None) or error).split())
