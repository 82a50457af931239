"""One delivery to a worker: when its message is acknowledged, requeued, or made a dead letter."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum, auto
from typing import Any, Final

from celery import states
from celery.app.trace import ExceptionInfo
from celery.exceptions import (
    BackendGetMetaError,
    BackendStoreError,
    Ignore,
    InvalidTaskError,
    Reject,
    TaskRevokedError,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
    WorkerTerminate,
)
from celery.platforms import EX_FAILURE
from celery.utils.log import get_logger
from celery.utils.serialization import create_exception_cls
from celery.worker import request
from celery.worker.state import revoked as revoked_tasks
from celery.worker.state import revoked_stamps
from kombu.utils.encoding import safe_repr, safe_str

from proj import queues
from proj.dead_letters.reasons import Reason
from proj.enqueue import checks
from proj.logs import events, spans
from proj.worker import burial, pools, replies, shape, watchers

log = get_logger(__name__)


#: Headers that belong to this message only. Celery copies all headers that it does not know to a retry.
_DELIVERY_HEADERS: Final = (
    queues.DUE_HEADER,
    queues.TURN_HEADER,
    queues.DELIVERIES_HEADER,
    "x-delivery-count",
    "x-acquired-count",
)


class End(StrEnum):
    """Why a worker may acknowledge a message; recorded once the end is stored or the copy is confirmed."""

    #: Its task ran, and the result is stored.
    RAN = auto()
    #: A success was stored under its id before.
    FOUND = auto()
    REVOKED = auto()
    #: A copy of it is confirmed in another queue.
    COPIED = auto()


class Request(request.Request):
    """Celery's request, which acknowledges a message only when an `End` is recorded, and logs each outcome.

    Celery acknowledges messages for many reasons, including errors of its own. Without an `End`,
    `acknowledge` makes a dead letter instead.
    """

    _end: End | None = None

    #: The task was killed at its time limit, and is not retried by itself.
    _over = False

    #: Why the message is rejected, and the exception in the worker's main process.
    _reason = Reason.FAILED
    _exception: str | None = None

    #: The task was cancelled, its message is left unacknowledged, and that is logged.
    _cancelled = False

    #: What the store has of a duplicate.
    _stored: Any = None

    def __init__(self, message: Any, *, is_shallow: bool = False, **options: Any) -> None:
        """`is_shallow`: its body is nested to so few levels that it can be copied, and each pool accepts it.

        Raises `InvalidTaskError` for a malformed message, on which Celery would fail later.
        """
        self.is_shallow = is_shallow
        super().__init__(message, **options)
        shape.check(self)
        self.time_limits = self._limits()
        headers = self.request_dict
        for name in _DELIVERY_HEADERS:
            headers.pop(name, None)
        if message.headers.get(queues.REPEAT_HEADER):
            # Celery checks this flag before it looks for a stored success. The broker does not set it for a
            # message that was published twice.
            self.delivery_info["redelivered"] = True
        if log.isEnabledFor(logging.INFO):
            self._say_received()

    def _say_received(self) -> None:
        waited = self.waited
        self.say(
            logging.INFO,
            events.RECEIVED,
            "received" if waited is None else f"received, waited {waited} s",
            waited=waited,
            retries=self.request_dict.get("retries") or None,
            redelivered=self.message.delivery_info.get("redelivered") or None,
        )

    def _limits(self) -> tuple[float | None, float | None]:
        """The hard and the soft time limit in seconds; without a soft one unless it is below the hard one.

        Celery's pool checks the hard limit only after the soft one, so it would ignore a lower hard limit.
        """
        hard, soft = self.time_limits
        settings, task = self.app.settings, self.task
        for limit in (hard, soft):
            if limit is None:
                continue
            if not checks.is_time_limit(limit):
                raise InvalidTaskError(f"a time limit is a number of seconds, got {limit!r}")
            if limit >= settings.proj_consumer_timeout:
                raise InvalidTaskError(
                    f"its time limit must be below the broker's consumer_timeout, got {limit:g} and "
                    f"{settings.proj_consumer_timeout}"
                )
        hard = hard or task.time_limit
        soft = soft or task.soft_time_limit or settings.proj_task_soft_time_limit
        return hard, None if soft >= (hard or settings.proj_task_time_limit) else soft

    @property
    def waited(self) -> float | None:
        """For how many seconds the message could have been executed, by two clocks: the publisher's and ours.

        None when no program of ours has published it.
        """
        due = self.message.headers.get(queues.DUE_HEADER)
        if not isinstance(due, float) or not math.isfinite(due):
            return None
        # Below 0 when the publisher's clock is ahead.
        return max(0.0, round(time.time() - due, 3))

    @property
    def deliveries(self) -> int:
        """How often the message was given back before, including the originals that it is a copy of."""
        counts = map(self.message.headers.get, (queues.DELIVERIES_HEADER, "x-delivery-count"))
        return sum(count for count in counts if isinstance(count, int))

    def execute_using_pool(self, pool: Any, **options: Any) -> Any:
        """Hand the task to the pool. Raises `TaskRevokedError` on failure, and Celery then frees the slot."""
        try:
            if not self.is_shallow:
                pools.check_sendable(pool, self.request_dict)
            if not self.time_limits[1]:
                pool = pools.without_soft_limit(pool)  # Celery would take the task's
            result = super().execute_using_pool(pool, **options)
            pools.on_lost_error(result, self._on_tracer_error)
            return result
        except TaskRevokedError:
            raise
        except Exception as error:
            # A pool that executes tasks in this thread raises the errors of Celery's tracer.
            reason = Reason.FAILED if self.time_start else Reason.INVALID
            self.bury(reason, f"the pool cannot accept it: {error!r}")
            raise TaskRevokedError(self.id) from error

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        # Celery 5.7 reads the log level before logging is set up, so it never logs this.
        self.say(logging.DEBUG, events.STARTED, "started", at=self.time_start)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Make a message a dead letter at once when its task was killed at its time limit."""
        if soft:
            words = f"exceeded its soft time limit of {timeout:g} s"
            self.say(logging.WARNING, events.SOFT_TIME_LIMIT, words, time_limit=timeout)
        else:
            self._end_at_limit(TimeLimitExceeded(timeout))
        super().on_timeout(soft, timeout)

    def maybe_expire(self) -> bool:
        """Never: Celery would record the id as revoked, and lose a redrive. `revoked` checks it instead."""
        return False

    def revoked(self) -> bool:
        """Whether the message must not be executed. If so, it is settled, and its slot is free."""
        if self.acknowledged:
            return True
        if self.expires and datetime.now(UTC) > self.expires:
            self.bury(Reason.EXPIRED, f"its expiry time was {self.expires.isoformat()}")
            return True
        if not (self.id in revoked_tasks or revoked_stamps):  # as most
            return False
        revoked = True
        with self._may_be_revoked():
            revoked = bool(super().revoked())
        if revoked and self._end:
            self.say(logging.INFO, events.REVOKED, "revoked")
        return revoked

    @contextmanager
    def _may_be_revoked(self) -> Iterator[None]:
        """Let Celery acknowledge the message in the block, after it has stored that it is revoked."""
        before, self._end = self._end, End.REVOKED
        try:
            yield
        except BackendStoreError as error:
            self._end, self._exception = None, repr(error)
            self.give_back(Reason.STORE_UNREACHABLE)
        finally:
            if not self.acknowledged:
                self._end = before

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the task and acknowledge its message. Without processes in the pool, the task runs on."""
        with self._may_be_revoked():
            try:
                super().terminate(pool, signal)
            except NotImplementedError:
                log.warning("%s[%s] is not terminated: only processes can be ended", self.name, self.id)
                return
        if self.time_start:
            self.say(logging.WARNING, events.REVOKED, "revoked: terminated")

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """End the task and leave its message unacknowledged; the broker delivers it to another worker."""
        # Celery passes `emit_retry=False` only when the worker ends.
        self._log_given_back(Reason.CONNECTION_LOST if emit_retry else Reason.SHUTDOWN)
        self._cancelled = self.message.is_given_back = True
        try:
            super().cancel(pool, signal, emit_retry)
        except NotImplementedError:  # only processes can be ended
            if not emit_retry:
                pools.wait_for_no_thread()
                # With `-P solo` this interrupts the task; another error would count as the task's own.
                raise WorkerTerminate(EX_FAILURE) from None
        except Exception as error:  # of the task's `on_retry`, which gets no traceback here
            log.error("on_retry of %s[%s] raised %r", self.name, self.id, error)
            super().cancel(pool, signal, emit_retry=False)  # what is left of it

    def send_event(self, type: str, **fields: Any) -> None:
        """Send an event about the task, with its texts shortened to what the broker accepts."""
        if not watchers.are_sent(self.eventer):
            return
        short = {
            key: watchers.cut(value) if isinstance(value, str) else value for key, value in fields.items()
        }
        super().send_event(type, **short)

    def acknowledge(self) -> None:
        """Acknowledge the message if its end is recorded; otherwise make it a dead letter."""
        if self._over:
            self.reject()
        elif self._end or not self.task.acks_late:
            if self._reason is Reason.WORKER_LOST and not self.task.retry_on_worker_lost:
                words = "succeeded before its process was lost"
                self.say(logging.WARNING, events.SUCCEEDED, words, exception=self._exception)
            super().acknowledge()
        else:
            self.bury(Reason.INVALID, "Celery ended it without executing it")

    def end_as_copy(self) -> None:
        """Acknowledge the message, whose copy is confirmed."""
        self._end = End.COPIED
        self.acknowledge()

    def give_back(self, reason: Reason) -> None:
        """Requeue the message, for a reason that is not the message's fault."""
        self._reason = reason
        self.reject(requeue=True)

    def bury(self, reason: Reason, problem: object = None) -> None:
        """Make the message a dead letter without executing it, and store this under its id."""
        if not self.acknowledged:
            error = burial.bury(self.app, self.id, self.name, reason, problem, self._context)
            super().reject()
            # After the event of the rejection, which is no end.
            watchers.tell_failure(self.eventer, self.id, reason, error, self.request_dict)

    def reject(self, requeue: bool = False) -> None:
        requeue = requeue and not self._over
        if requeue:
            self._log_given_back(self._reason)
        elif not self.acknowledged:
            words = f"became a dead letter: {self._reason.words}"
            self.say(logging.WARNING, events.DEAD_LETTERED, words, reason=self._reason)
            spans.dead_lettered(self.request_dict, self.name, self.id, self._reason)
        super().reject(requeue=requeue)

    def on_success(self, failed__retval__runtime: Any, **options: Any) -> Any:
        """Acknowledge the message if its task ran or its success is stored.

        Celery reports its own errors before the task's start as successes too.
        """
        failed, shown, _ = failed__retval__runtime
        if not failed and shown is None:
            # Celery's tracer reports this for a duplicate, and for its own errors before the task's start.
            try:
                self._end = End.FOUND if self._success_is_stored() else None
            except BackendGetMetaError as error:
                self._exception = repr(error)
                return self.give_back(Reason.STORE_UNREACHABLE)
            if self._end:
                self._reply_again()
                # Celery logs only the first duplicate in each of its processes.
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
        self._stored = self.task.backend.get_task_meta(self.id)
        return bool(self._stored["status"] == states.SUCCESS)

    def _reply_again(self) -> None:
        """Send the stored success, which the worker that stored it may not have sent."""
        replies.reply(self.app, self.id, states.SUCCESS, self._stored["result"], self._context)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Settle a failed task: an exception, a killed process, a time limit, or `Reject`."""
        self._end = End.RAN
        # Billiard wraps errors that it raises in the worker's main process.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, SystemExit):
            error = WorkerLostError(f"the process of the task exited with code {error.code}")
        elif isinstance(error, KeyboardInterrupt):
            error = WorkerLostError("the process of the task was ended by KeyboardInterrupt")
        elif isinstance(error, MemoryError):
            # Celery would end this worker, and then each worker that gets the message.
            exc_info.exception = create_exception_cls("MemoryError", "builtins")(*error.args)
        if isinstance(error, TimeLimitExceeded):
            self._end_at_limit(error)
        elif isinstance(error, WorkerLostError):
            self._reason, self._exception = Reason.WORKER_LOST, repr(error)
            # Stored before another worker gets the message, whose end must not be overwritten.
            self.task.backend.mark_as_retry(self.id, error, request=self._context)
        elif isinstance(error, Ignore):
            self.say(logging.INFO, events.IGNORED, "ignored")
        elif isinstance(error, Reject):
            self._reason = Reason.REJECTED
            shown, raised = safe_repr(error), safe_str(exc_info.traceback)
            self.say(logging.WARNING, events.REJECTED, shown, exception=shown, traceback=raised)
        elif isinstance(error, Terminated):
            with self._may_be_revoked():
                super().on_failure(exc_info, *args, **kwargs)
            return None
        return super().on_failure(exc_info, *args, **kwargs)

    def _on_tracer_error(self, error: BaseException) -> None:
        """Settle a delivery whose tracer raised, such as when a duplicate's next step cannot be published."""
        if not self.acknowledged:
            self.on_failure(ExceptionInfo((type(error), error, error.__traceback__)))

    def _end_at_limit(self, error: TimeLimitExceeded) -> None:
        """Record that the task was killed at its hard time limit; Celery reports this twice, in any order."""
        if not self._over:
            self._over, self._reason = True, Reason.TIME_LIMIT
            words = "failed: hard time limit exceeded, its process is killed"
            self.say(logging.ERROR, events.FAILED, words, exception=repr(error))

    def _log_given_back(self, reason: Reason) -> None:
        if not self.acknowledged and not self._cancelled:
            words = f"given back: {reason.words}"
            if self._exception:
                words += f": {self._exception}"
            self.say(logging.WARNING, events.GIVEN_BACK, words, reason=reason, exception=self._exception)

    def say(self, level: int, event: str, words: str, **fields: Any) -> None:
        events.say(log, level, event, self.id, self.name, words, **fields)
