"""One delivery to a worker, and what becomes of its message when the task does not just end."""

import logging
from datetime import UTC, datetime
from enum import StrEnum, auto
from typing import Any, Final

from celery import states
from celery.app.trace import ExceptionInfo
from celery.exceptions import (
    BackendGetMetaError,
    BackendStoreError,
    InvalidTaskError,
    Reject,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
    WorkerTerminate,
)
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.utils.serialization import create_exception_cls
from celery.worker import request

from proj import queues
from proj.dead_letters.reasons import Reason
from proj.enqueue import checks
from proj.logs import events, formats
from proj.logs.printable import shortened
from proj.worker import burial, pools, shape

log = get_logger(__name__)


#: Headers that are about this very message. Celery would give all that it does not know to a retry.
_OF_THIS_DELIVERY: Final = (
    queues.TURN_HEADER,
    queues.DELIVERIES_HEADER,
    "x-delivery-count",
    "x-acquired-count",
)


class End(StrEnum):
    """What allows a worker to acknowledge a message: one of these, and it is stored or confirmed."""

    #: Its task ran, and how that ended is stored.
    RAN = auto()
    #: A success was found under its id.
    FOUND = auto()
    REVOKED = auto()
    #: A copy of it is confirmed in another queue.
    COPIED = auto()


class Request(request.Request):
    """A delivery of Celery's, which loses no message, and says what becomes of it.

    Celery acknowledges a message for many reasons, an error of its own among them. Here it can only do so
    once an `End` is recorded; without one, `acknowledge` makes a dead letter.
    """

    _end: End | None = None

    #: The task was ended for good, and must not be tried again by itself.
    _over = False

    #: Why the message is rejected, once it is, and the exception in the worker's main process.
    _reason = Reason.FAILED
    _exception: str | None = None

    #: It was said that the message is given back: its task is ended, and it is left unacknowledged.
    _cancelled = False

    def __init__(self, message: Any, **options: Any) -> None:
        """Raises `InvalidTaskError` for what is no request to execute a task, and what Celery trips over."""
        super().__init__(message, **options)
        shape.check(self)
        self.time_limits = self._limits()
        for name in _OF_THIS_DELIVERY:
            self.request_dict.pop(name, None)
        if message.headers.get(queues.REPEAT_HEADER):
            # What Celery looks at before it looks for a stored success. The broker's own flag does not know
            # of a message that was published twice.
            self.delivery_info["redelivered"] = True
        self.say(
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
        for limit in (hard, soft):
            if not checks.is_time_limit(limit):
                raise InvalidTaskError(f"a time limit is a number of seconds, got {limit!r}")
        settings = self.app.settings
        for limit in (hard, soft):
            if limit and limit >= settings.proj_consumer_timeout:
                raise InvalidTaskError(
                    f"its time limit must be below the broker's consumer_timeout, got {limit:g} and "
                    f"{settings.proj_consumer_timeout}"
                )
        hard = hard or self.task.time_limit
        soft = soft or self.task.soft_time_limit or settings.proj_task_soft_time_limit
        return hard, None if soft >= (hard or settings.proj_task_time_limit) else soft

    @property
    def deliveries(self) -> int:
        """How often the message was given back before, and those that it is a copy of."""
        counts = map(self.message.headers.get, (queues.DELIVERIES_HEADER, "x-delivery-count"))
        return sum(count for count in counts if isinstance(count, int))

    def execute_using_pool(self, pool: Any, **options: Any) -> Any:
        """Hand the task to the pool. Raises `TaskRevokedError`, upon which Celery frees the slot."""
        try:
            result = super().execute_using_pool(pool, **options)
            pools.on_lost_error(result, self._on_tracer_error)
            return result
        except TaskRevokedError:
            raise
        except Exception as error:
            pools.forget_job(pool, self.id)
            # A pool that executes in this very thread raises what the task's tracer did.
            reason = Reason.FAILED if self.time_start else Reason.INVALID
            self.bury(reason, f"the pool cannot take it: {error!r}")
            raise TaskRevokedError(self.id) from error

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        # Celery 5.7 asks for the level of its log before that is set up, and so never says it.
        self.say(logging.DEBUG, events.STARTED, "started", at=self.time_start)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Make a message whose task was killed at its time limit a dead letter, at once."""
        if not soft:
            self._end_at_limit(TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def maybe_expire(self) -> bool:
        """Never: Celery would take it for revoked, and remember the id, so that a redrive would be lost."""
        return False

    def revoked(self) -> bool:
        """Whether the message is not to be executed; then it is dealt with, and its slot is free."""
        if self.acknowledged:
            return True
        if self.expires and datetime.now(UTC) > self.expires:
            self.bury(Reason.EXPIRED, f"its time was over at {self.expires.isoformat()}")
            return True
        revoked = bool(super().revoked())
        if revoked and self._end:
            self.say(logging.INFO, events.REVOKED, "revoked")
        return revoked

    def _announce_revoked(self, *args: Any) -> None:
        # upstream: not reported; remove when Celery stores a revocation before it acknowledges, and says so
        try:
            self._end = End.REVOKED
            super()._announce_revoked(*args)
        except BackendStoreError as error:
            self._end = None
            self._exception = repr(error)
            self.give_back(Reason.STORE_UNREACHABLE)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        if self.time_start:
            self.say(logging.WARNING, events.REVOKED, "revoked: terminated")
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
                pools.wait_for_no_thread()
                # With `-P solo` this interrupts the task; the error would be taken for its own.
                raise WorkerTerminate(EX_FAILURE) from None

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event about the task; what an exception says may be longer than the broker takes."""
        short = {
            key: shortened(value, formats.LONGEST_TEXT) if isinstance(value, str) else value
            for key, value in fields.items()
        }
        super().send_event(type, **short)

    def acknowledge(self) -> None:
        """Acknowledge the message, if its end is recorded; otherwise it becomes a dead letter."""
        if self._over:
            self.reject()
        elif self._end or not self.task.acks_late:
            super().acknowledge()
        else:
            self.bury(Reason.INVALID, "Celery ended it without executing it")

    def end_as_copy(self) -> None:
        """Acknowledge the message: a copy of it is confirmed."""
        self._end = End.COPIED
        self.acknowledge()

    def give_back(self, reason: Reason) -> None:
        """Let another worker have the message, for a reason that is not its own."""
        self._reason = reason
        self.reject(requeue=True)

    def bury(self, reason: Reason, problem: object = None) -> None:
        """Make the message a dead letter that is not executed, and store so under its id."""
        if not self.acknowledged:
            burial.bury(self.app, self.id, self.name, reason, problem, self._context)
            super().reject()

    def reject(self, requeue: bool = False) -> None:
        requeue = requeue and not self._over
        if requeue:
            self._say_given_back(self._reason)
        elif not self.acknowledged:
            words = f"became a dead letter: {self._reason.words}"
            self.say(logging.WARNING, events.DEAD_LETTERED, words, reason=self._reason)
        super().reject(requeue=requeue)

    def on_success(self, failed__retval__runtime: Any, **options: Any) -> Any:
        """Acknowledge what ran, and what a success is stored of; Celery reports others as successes too."""
        failed, shown, _ = failed__retval__runtime
        if not failed and shown is None:
            # Its tracer's answer for a duplicate, and for an error of its own before the task began.
            try:
                self._end = End.FOUND if self._success_is_stored() else None
            except BackendGetMetaError as error:
                self._exception = repr(error)
                return self.give_back(Reason.STORE_UNREACHABLE)
            if self._end:
                # Celery does so only for the first in each of its processes.
                words = "is a duplicate: it succeeded already, and is not executed"
                self.say(logging.INFO, events.DUPLICATE, words)
        else:
            self._end = End.RAN
        return super().on_success(failed__retval__runtime, **options)

    def on_retry(self, exc_info: Any) -> Any:
        self._end = End.COPIED
        return super().on_retry(exc_info)

    def _success_is_stored(self) -> bool:
        """Raises `BackendGetMetaError`."""
        return bool(self.task.backend.get_task_meta(self.id)["status"] == states.SUCCESS)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Tell an exception from a process that ended under its task, and store how that ended."""
        self._end = End.RAN
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
            # Before another worker has it, whose end must not be written over.
            self.task.backend.mark_as_retry(self.id, error, request=self._context)
        elif isinstance(error, Reject):
            self._reason = Reason.REJECTED
        return super().on_failure(exc_info, *args, **kwargs)

    def _on_tracer_error(self, error: BaseException) -> None:
        """End a delivery whose tracer raised, as over a next step of a duplicate that cannot be published."""
        if not self.acknowledged:
            self.on_failure(ExceptionInfo((type(error), error, error.__traceback__)))

    def _end_at_limit(self, error: TimeLimitExceeded) -> None:
        """Note that the task was killed at its hard time limit, which is told twice, in any order."""
        if not self._over:
            self._over, self._reason = True, Reason.TIME_LIMIT
            words = "failed: hard time limit exceeded, its process is killed"
            self.say(logging.ERROR, events.FAILED, words, exception=repr(error))

    def _say_given_back(self, reason: Reason) -> None:
        if not self.acknowledged and not self._cancelled:
            words = f"given back: {reason.words}"
            if self._exception:
                words += f": {self._exception}"
            self.say(logging.WARNING, events.GIVEN_BACK, words, reason=reason, exception=self._exception)

    def say(self, level: int, event: str, words: str, **fields: Any) -> None:
        events.say(log, level, event, self.id, self.name, words, **fields)
