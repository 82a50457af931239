"""Checks the options of one call before anything is sent."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import celery
import kombu
from amqp import serialization
from celery.app.amqp import AMQP
from kombu import compression

from proj.enqueue import checks
from proj.enqueue.headers import TAKEN
from proj.enqueue.priorities import PRIORITIES
from proj.errors import BadInput, did_you_mean
from proj.logs.printable import one_line, shown
from proj.rabbitmq import decoding

#: Bytes that the headers of a call may take. All headers of a message travel in one frame, and py-amqp and
#: RabbitMQ agree on 131,072 bytes for a frame; Celery's own headers have the rest.
MAX_HEADERS: Final = 112 * 1024

#: What a task may say for all of its messages. `expires` is not among these: None stands for never.
_OF_TASK: Final = frozenset(
    {
        *("queue", "exchange", "routing_key", "priority"),
        *("serializer", "compression", "delivery_mode", "ignore_result"),
    }
)

#: Bytes of AMQP's short string.
_SHORT: Final = 255

#: Bytes of the texts that are displayed in place of the arguments; Celery's own have 1,024 characters.
_LONGEST_REPR: Final = 4096


def check_name(name: str) -> None:
    """Refuse a name that no task can have. Raises `BadInput`."""
    if not name or not _is_short(name):
        raise BadInput(f"the name of a task is a text of at most {_SHORT} bytes, got {shown(name)}")


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without each None that would replace what the task says; `celery call` gives many."""
    return {option: value for option, value in options.items() if value is not None or option not in _OF_TASK}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an option of the wrong type, or one that does not fit into a message. Raises `BadInput`."""
    for option, value in options.items():
        if option not in _KNOWN:
            _refuse_slip(name, option, options)
        fits, expected = _EXPECTED.get(option, _ANYTHING)
        if value is not None and not fits(value):
            raise BadInput(f"{name}: {option} must be {expected}, got {shown(value)}")
    if headers := options.get("headers"):
        if not options.get("retries"):  # Celery gives a retry the headers of the previous attempt
            _refuse_taken(name, headers)
        _check_headers(name, headers)


def _refuse_slip(name: str, option: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that is similar to a known one; kombu would send the message without it."""
    hint = did_you_mean(option, _KNOWN)
    if hint and option not in (options.get("stamped_headers") or ()):
        raise BadInput(f"{name}: there is no option {option}", hint)


def _refuse_taken(name: str, headers: dict[str, Any]) -> None:
    """Refuse a header that would replace one of Celery's, such as the id that the result is stored under."""
    if taken := sorted(TAKEN & headers.keys()):
        raise BadInput(f"{name}: a header cannot be named {taken[0]!r}: Celery reserves this name")


def _check_headers(name: str, headers: dict[str, Any]) -> None:
    try:
        size = len(serialization.dumps("F", [headers]))
    except Exception as error:  # py-amqp raises errors of many kinds
        raise BadInput(f"{name}: headers cannot be sent: {one_line(error)}") from error
    if size > MAX_HEADERS:
        raise BadInput(f"{name}: headers may take {MAX_HEADERS:,} bytes, and take {size:,}")
    if checks.is_deeper(headers, decoding.MAX_NESTING):
        raise BadInput(f"{name}: headers are nested more than {decoding.MAX_NESTING} deep")


def _text_of(most: int) -> Callable[[object], bool]:
    def fits(value: object) -> bool:
        try:
            return isinstance(value, str) and len(value.encode()) <= most
        except UnicodeEncodeError:  # a lone surrogate
            return False

    return fits


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_short, value))


def _is_compression(value: object) -> bool:
    try:
        compression.get_encoder(value)
    except (KeyError, TypeError):
        return False
    return True


def _are_signatures(value: object) -> bool:
    several = value if isinstance(value, list | tuple) else [value]
    # A signature is a dict, even after it was read from a message.
    return all(isinstance(each, dict) and "task" in each for each in several)


_is_short: Final = _text_of(_SHORT)

_Expected = tuple[Callable[[Any], bool], str]
_ANYTHING: Final[_Expected] = (lambda _: True), "anything"
_NAME: Final[_Expected] = _is_short, f"a text of at most {_SHORT} bytes"
_LIMIT: Final[_Expected] = checks.is_time_limit, "0 or more seconds"
_SIGNATURES: Final[_Expected] = _are_signatures, "a signature or a list of them, such as add.s(1)"
_REPR: Final[_Expected] = _text_of(_LONGEST_REPR), f"a text of at most {_LONGEST_REPR} bytes"

#: For each option its check, and what the error reports as expected.
_EXPECTED: Final[dict[str, _Expected]] = {
    "queue": (
        lambda value: isinstance(value, kombu.Queue) or (value != "" and _is_short(value)),
        "the name of a queue",
    ),
    "exchange": (
        lambda value: isinstance(value, kombu.Exchange) or _is_short(value),
        "the name of an exchange",
    ),
    "routing_key": _NAME,
    "reply_to": _NAME,
    "shadow": _REPR,
    "group_id": _NAME,
    "root_id": _NAME,
    "parent_id": _NAME,
    "argsrepr": _REPR,
    "kwargsrepr": _REPR,
    "priority": (
        lambda value: type(value) is int and value in PRIORITIES,
        f"a whole number from 0 to {PRIORITIES[-1]}",
    ),
    "retries": (lambda value: type(value) is int and value >= 0, "0 or a whole number above"),
    "compression": (
        _is_compression,
        "a method that kombu knows, such as gzip",
    ),
    "headers": (_is_table, f"a dict whose keys are texts of at most {_SHORT} bytes"),
    "time_limit": _LIMIT,
    "soft_time_limit": _LIMIT,
    "link": _SIGNATURES,
    "link_error": _SIGNATURES,
    "ignore_result": (lambda value: isinstance(value, bool), "true or false"),
}

#: The options of Celery and kombu.
_KNOWN: Final = frozenset(_EXPECTED).union(
    *(
        inspect.signature(function).parameters
        for function in (
            celery.Celery.send_task,
            celery.Task.apply_async,
            AMQP.as_task_v2,
            kombu.Producer.publish,
        )
    )
)
