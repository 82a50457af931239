"""Checks of a message before it is sent: its id, its times, its limits."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeGuard

from proj.errors import BadInput
from proj.logs.printable import shown

#: The longest delay that the broker's 28 delay queues can hold, in seconds: 8.5 years.
MAX_DELAY: Final = 2**28 - 1

#: The longest time until a message expires, in seconds: 10 years. RabbitMQ refuses more with 406; tried on
#: 3.10.8 and 4.0.5.
MAX_LIFETIME: Final = 10 * 365 * 24 * 60 * 60

#: Characters of the result store's column for ids (`celery.backends.database.models.Task`).
MAX_ID_LENGTH: Final = 155

#: Bytes of an id that a message can hold (AMQP's short string).
_MAX_ID_BYTES: Final = 255

#: How many ids are made of one read of random bytes, and the digits that mark an id as random (RFC 9562).
_IDS_AT_ONCE: Final = 64
_VARIANTS: Final = "89ab"

#: Levels of nested lists and dicts in an argument of a task. A worker passes arguments to its processes with
#: pickle, which fails at less than 500.
MAX_NESTING: Final = 100

#: Seconds by which an `eta` may lie in the past and still mean "now".
_ETA_TOLERANCE: Final = 1


def is_deeper(value: object, limit: int) -> bool:
    """Whether lists and dicts are nested in more than `limit` levels; the outermost is level 1."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def check_serializer(name: str, serializer: object, accepted: Sequence[str]) -> None:
    """Refuse a serializer that workers do not accept: a message must not carry code. Raises `BadInput`."""
    if serializer not in accepted:
        raise BadInput(
            f"{name}: workers do not accept {shown(serializer)}", f"they accept: {', '.join(accepted)}"
        )


def new_id() -> str:
    """A random id, as of `uuid.uuid4`."""
    return _random_id(os.urandom(16).hex())


def checked_id(task_id: str | None) -> str:
    """The given id, or a new one. Raises `BadInput`."""
    if task_id is None:
        return new_id()
    if not isinstance(task_id, str):
        raise BadInput(f"an id is a text, got {shown(task_id)}")
    if not 1 <= len(task_id) <= MAX_ID_LENGTH or not task_id.isprintable():
        raise BadInput(f"an id is 1 to {MAX_ID_LENGTH} printable characters, got {shown(task_id)}")
    if not is_id(task_id):
        raise BadInput(f"an id has at most {_MAX_ID_BYTES} bytes in UTF-8, got {task_id!r}")
    return task_id


def new_ids() -> Iterator[str]:
    """New ids, in less time each than one alone. Not for a forked process too."""
    while True:
        digits = os.urandom(16 * _IDS_AT_ONCE).hex()
        for at in range(0, len(digits), 32):
            yield _random_id(digits[at : at + 32])


def _random_id(digits: str) -> str:
    """The id of 32 random digits. `uuid.uuid4` makes the same of them, and takes five times as long."""
    variant = _VARIANTS[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def is_id(value: object) -> TypeGuard[str]:
    """Whether the value can be the id of a message and of a stored result."""
    return (
        isinstance(value, str)
        and 1 <= len(value) <= MAX_ID_LENGTH
        and value.isprintable()
        and len(value.encode()) <= _MAX_ID_BYTES
    )


def is_time_limit(limit: object) -> TypeGuard[float | None]:
    """Whether this is a number of seconds; None and 0 stand for the limit of the task or of the worker."""
    return limit is None or (
        isinstance(limit, int | float) and not isinstance(limit, bool) and math.isfinite(limit) and limit >= 0
    )


def check_time_limit(name: str, option: str, limit: float | None, consumer_timeout: int | None) -> None:
    """Refuse a time limit that is not below the broker's consumer timeout. Raises `BadInput`.

    A publisher may not know this timeout (None). Workers do, and make such a message a dead letter.
    """
    if limit and consumer_timeout and limit >= consumer_timeout:
        raise BadInput(
            f"{name}: {option} must be below the broker's consumer_timeout, "
            f"got {limit:g} and {consumer_timeout}",
            "lower it, or raise consumer_timeout in the broker's configuration and PROJ_CONSUMER_TIMEOUT",
        )


def check_delayed_route(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an exchange or routing key for a delayed message, which needs a queue. Raises `BadInput`."""
    for option in ("exchange", "routing_key"):
        if options.get(option):
            raise BadInput(f"{name}: a delay and {option}= exclude each other", "name the queue with queue=")


def delay(countdown: float | None, eta: datetime | None, *, is_retry: bool = False) -> int | None:
    """The delay in whole seconds, rounded up, or None for "now". Raises `BadInput`.

    A retry whose time is in the past is due now: a refusal would make its message a dead letter.
    """
    if countdown is not None and eta is not None:
        raise BadInput("countdown and eta exclude each other")
    if eta is not None:
        if not isinstance(eta, datetime):
            raise BadInput(f"an eta is a datetime, got {shown(eta)}")
        countdown = _seconds_until(eta)
        if countdown < -_ETA_TOLERANCE and not is_retry:
            raise BadInput(f"the eta {eta.isoformat()} is in the past")
        countdown = max(0, countdown)
    if countdown is None:
        return None
    if not isinstance(countdown, int | float):
        raise BadInput(f"a countdown is a number of seconds, got {shown(countdown)}")
    if countdown < 0 and is_retry:
        return None
    if not countdown >= 0:
        raise BadInput(f"a countdown is 0 or more seconds, got {shown(countdown)}")
    if countdown > MAX_DELAY:
        raise BadInput(f"a delay of {shown(countdown)} s is longer than the maximum of {MAX_DELAY} s")
    return math.ceil(countdown) or None


def lifetime(expires: float | datetime | str | None) -> float | datetime | str | None:
    """The checked `expires`: seconds from now, or a moment, which may be in ISO 8601. Raises `BadInput`."""
    if expires is None:
        return None
    seconds = _seconds_to_live(expires)
    if seconds > MAX_LIFETIME:
        raise BadInput(f"expires is {shown(seconds)} s ahead, more than the maximum of {MAX_LIFETIME} s")
    return expires


def check_may_start(name: str, countdown: int | None, expires: float | datetime | str | None) -> None:
    """Refuse a delayed message that is certain to expire before it is executed. Raises `BadInput`."""
    if not countdown or expires is None:
        return
    seconds = _seconds_to_live(expires)
    if seconds <= countdown:
        raise BadInput(
            f"{name}: it expires before it may start (delay {countdown} s, expires {seconds:.6g} s)",
            "raise expires, which may be the task's own, or shorten the delay",
        )


def _seconds_to_live(expires: float | datetime | str) -> float:
    match expires:
        case int() | float() if not isinstance(expires, bool):
            if not expires > 0:
                raise BadInput(f"expires must be above 0 seconds, got {shown(expires)}")
            return expires
        case datetime():
            return _seconds_until(expires)
        case str() if moment := _moment(expires):
            return _seconds_until(moment)
        case _:
            raise BadInput(f"expires is seconds or a datetime, got {shown(expires)}")


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _seconds_until(moment: datetime) -> float:
    """Seconds from now; a moment without a zone is in UTC."""
    try:
        return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    except OverflowError:  # the first or the last day of the calendar, which UTC would move beyond it
        return math.inf if moment.year > 1 else -math.inf
