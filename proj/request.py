"""One delivery to a worker, and what becomes of its message when the task does not just end."""

import atexit
import logging
import os
from typing import Any

import click
from celery import states
from celery.exceptions import InvalidTaskError, Reject, TimeLimitExceeded, WorkerLostError, WorkerTerminate
from celery.platforms import EX_FAILURE, EX_OK
from celery.utils.log import get_logger
from celery.utils.serialization import create_exception_cls
from celery.worker import request

from proj import config, events, queues
from proj.reasons import Reason

log = get_logger(__name__)


class Request(request.Request):
    """A delivery of Celery's, which loses no message, and says what becomes of it."""

    #: The task was ended for good, and must not be tried again by itself.
    _over = False

    #: Why the message is rejected, once it is, and the exception in the worker's main process.
    _reason = Reason.FAILED
    _exception: str | None = None

    #: It was said that the message is given back: its task is ended, and it is left unacknowledged.
    _cancelled = False

    def __init__(self, message: Any, **options: Any) -> None:
        """Raises `InvalidTaskError`, which makes a dead letter, for what is no request to execute a task.

        Any other error would leave the message in the worker's hands for good, and its slot with it.
        """
        try:
            super().__init__(message, **options)
            self.time_limits = self._limits()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidTaskError(f"the message is no request to execute a task: {error!r}") from error
        if self.request_dict.get(queues.REPEAT_HEADER):
            # What Celery looks at before it looks for a stored success. The broker's own flag does not know
            # of a message that was published twice.
            self.delivery_info["redelivered"] = True
        self._say(
            logging.INFO,
            events.RECEIVED,
            "received",
            retries=self.request_dict.get("retries") or None,
            redelivered=message.delivery_info.get("redelivered") or None,
        )

    def _limits(self) -> tuple[float | None, float | None]:
        """The hard and the soft limit, in seconds; no soft one where it is not below the hard one.

        Celery's pool begins to count the hard limit when the soft one is over, so a lower one was never kept.
        """
        hard, soft = self.time_limits
        if not all(limit is None or isinstance(limit, int | float) for limit in (hard, soft)):
            raise TypeError(f"time limits are numbers, got {hard!r} and {soft!r}")
        hard = hard or self.task.time_limit
        soft = soft or self.task.soft_time_limit or config.load().proj_task_soft_time_limit
        return hard, None if hard and soft and soft >= hard else soft

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        # Celery 5.7 asks for the level of its log before that is set up, and so never says it.
        self._say(logging.DEBUG, events.STARTED, "started", at=self.time_start)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Make a message whose task was killed at its time limit a dead letter, at once."""
        if not soft:
            self._end_at_limit(TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def maybe_expire(self) -> bool:
        """Whether the message's time is over; then it becomes a dead letter instead of being dropped."""
        if super().maybe_expire():
            self._over, self._reason = True, Reason.EXPIRED
        return self._over

    def revoked(self) -> bool:
        before = self._already_revoked
        revoked = bool(super().revoked())
        if revoked and not before and not self._over:
            self._say(logging.INFO, events.REVOKED, "revoked")
        return revoked

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if self.time_start:
            self._say(logging.WARNING, events.REVOKED, "revoked: terminated")
        super().terminate(pool, signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End the task and leave its message to the broker, who gives it to another worker."""
        # The worker asks for no retry only when it ends.
        self._say_given_back(Reason.CONNECTION_LOST if emit_retry else Reason.SHUTDOWN)
        self._cancelled = True
        try:
            super().cancel(pool, signal, emit_retry)
        except NotImplementedError:  # only processes can be ended
            if not emit_retry:
                _wait_for_no_thread()
                # With `-P solo` this interrupts the task; the error would be taken for its own.
                raise WorkerTerminate(EX_FAILURE) from None

    def acknowledge(self) -> None:
        if self._over:
            self.reject()
        else:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        requeue = requeue and not self._over
        if requeue:
            self._say_given_back(self._reason)
        elif not self.acknowledged:
            words = f"became a dead letter: {self._reason.words}"
            self._say(logging.WARNING, events.DEAD_LETTERED, words, reason=self._reason)
        super().reject(requeue=requeue)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell an exception from a process that ended under its task, and store how that ended."""
        # Billiard wraps what it raised in the worker's main process.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, SystemExit):
            error = WorkerLostError(f"the process of the task exited with code {error.code}")
        elif isinstance(error, KeyboardInterrupt):
            error = WorkerLostError("the process of the task was ended by KeyboardInterrupt")
        elif isinstance(error, MemoryError):
            # Celery would end the whole worker over it, and each worker that gets the message after that.
            exc_info.exception = create_exception_cls("MemoryError", "builtins")(*error.args)
        if isinstance(error, TimeLimitExceeded):
            self._end_at_limit(error)
        elif isinstance(error, WorkerLostError):
            self._reason, self._exception = Reason.WORKER_LOST, repr(error)
        elif isinstance(error, Reject):
            self._reason = Reason.REJECTED
        ended = super().on_failure(exc_info, *args, **kwargs)
        if isinstance(error, WorkerLostError):
            self.task.backend.store_result(self.id, error, states.RETRY, request=self._context)
        return ended

    def _end_at_limit(self, error: TimeLimitExceeded) -> None:
        """Note that the task was killed at its hard time limit, which is told twice, in any order."""
        if not self._over:
            self._over, self._reason = True, Reason.TIME_LIMIT
            words = "failed: hard time limit exceeded, its process is killed"
            self._say(logging.ERROR, events.FAILED, words, exception=repr(error))

    def _say_given_back(self, reason: Reason) -> None:
        if not self.acknowledged and not self._cancelled:
            words = f"given back: {reason.words}"
            if self._exception:
                words += f": {self._exception}"
            self._say(logging.WARNING, events.GIVEN_BACK, words, reason=reason, exception=self._exception)

    def _say(self, level: int, event: str, words: str, **fields: Any) -> None:
        events.say(log, level, event, self.id, self.name, words, **fields)


def _wait_for_no_thread() -> None:
    """Let the process end with its command, and not wait for a thread that still executes a task.

    Python waits for each; before 3.13 it did not for one that it was interrupted in waiting for.
    """
    if context := click.get_current_context(silent=True):  # else a program runs the worker, and ends itself
        context.find_root().call_on_close(_exit)


def _exit() -> None:
    # What Python does before it ends, besides waiting: the worker's heartbeat is removed, Celery's files too.
    atexit._run_exitfuncs()
    os._exit(EX_OK)
