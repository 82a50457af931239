"""How an attempt ended, as events of `proj.logs.events`, from Celery's signals, in the process of the task.

Celery's worker logs lines of its own about a message, with less in them. They are dropped: these signals and
`proj.worker.request` log the same, with the reason and for the right message.
"""

import logging
from typing import Any, Final

from amqp.exceptions import ConnectionError as BrokerClosed
from celery import signals
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from celery.utils.serialization import get_pickled_exception
from kombu.utils.encoding import safe_repr, safe_str

from proj.logs import events

log = get_logger(__name__)

#: Celery's loggers whose lines below this level are all dropped.
_QUIET: Final = {
    # That a message was received.
    "celery.worker.strategy": logging.WARNING,
    # What `proj.worker.request` logs.
    "celery.worker.request": logging.CRITICAL,
}


def install() -> None:
    """Let the workers of this process log events; what is installed twice works once."""
    signals.task_success.connect(_succeeded)
    signals.task_retry.connect(_retried)
    signals.task_failure.connect(_failed)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    # By their names: a program that only publishes need not import Celery's worker.
    logging.getLogger("celery.app.trace").addFilter(_is_not_of_a_task)
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_is_not_of_a_request)
    logging.getLogger("celery.worker.loops").addFilter(_is_not_of_a_lost_connection)


def _succeeded(sender: Any, result: Any, runtime: float, **_: Any) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    shown = saferepr(result, sender.resultrepr_maxsize)
    words = f"succeeded in {runtime}s: {shown}"
    fields = {"runtime": round(runtime, 6), "result": shown}
    _say(sender, sender.request, logging.INFO, events.SUCCEEDED, words, **fields)


def _retried(sender: Any, request: Any, reason: Any = None, **_: Any) -> None:
    # Celery sends it without a reason for a task that it gives back.
    if reason:
        fields = {"exception": repr(reason.exc), "delay": reason.when}
        _say(sender, request, logging.INFO, events.RETRIED, f"retry: {reason}", **fields)


def _failed(sender: Any, task_id: str, exception: Any, einfo: Any, **_: Any) -> None:
    # Celery also sends it in the main process, where `proj.worker.request` logs the failure.
    if sender.request.id != task_id:
        return
    expected = bool(sender.throws) and isinstance(exception, sender.throws)
    shown = safe_repr(get_pickled_exception(exception))
    # In one line: the traceback is in the result store too, and `proj dead show` shows it.
    _say(
        sender,
        sender.request,
        logging.INFO if expected else logging.ERROR,
        events.FAILED,
        f"raised {'expected' if expected else 'unexpected'}: {shown}",
        exception=shown,
        traceback=safe_str(einfo.traceback),
    )


def _say(task: Any, request: Any, level: int, event: str, words: str, **fields: Any) -> None:
    # `shadow` is the name that the message gives the task for logs.
    name = getattr(request, "shadow", None) or task.name
    events.say(log, level, event, request.id, name, words, **fields)


def _is_not_of_a_task(record: logging.LogRecord) -> bool:
    # upstream: not reported; remove when Celery can leave out its own lines about tasks
    return not hasattr(record, "data")


def _is_not_of_a_request(record: logging.LogRecord) -> bool:
    """False for a line about a request, which `proj.worker.request` logs too, unless it reports an error."""
    from celery.worker.request import Request  # here, since only a worker has these lines

    arguments = record.args if isinstance(record.args, tuple) else ()
    return bool(record.exc_info) or not any(isinstance(each, Request) for each in arguments)


def _is_not_of_a_lost_connection(record: logging.LogRecord) -> bool:
    """False for the traceback of a second read from a connection that is lost.

    When Celery's event loop ends over that, it may have a read scheduled, which it does first. The consumer
    reports the loss.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, OSError | BrokerClosed)
