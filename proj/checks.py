"""What can be wrong with a message before it is sent: its arguments, its id, its times."""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from kombu.utils.uuid import uuid
from pydantic import ValidationError

from proj.errors import BadArguments, BadInput

#: The longest delay that the broker's 28 delay queues can hold, in seconds: 8.5 years.
MAX_DELAY: Final = 2**28 - 1

#: The latest that a message can expire, in seconds from now: 10 years. RabbitMQ refuses more with 406; tried
#: on 3.10.8 and 4.0.5.
MAX_LIFETIME: Final = 10 * 365 * 24 * 60 * 60

#: What the result store's column for ids can hold (`celery.backends.database.models.Task`).
MAX_ID_LENGTH: Final = 155

#: What a message has room for, in bytes (AMQP's short string).
_MAX_ID_BYTES: Final = 255

#: Seconds that an `eta` may lie in the past and still mean "now".
_ETA_TOLERANCE: Final = 1


def check_json(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what would be written, and could not be read by all. Raises `BadArguments`.

    Celery's own encoder, which knows more types, refuses the rest.
    """
    try:
        json.dumps((args, kwargs), allow_nan=False, ensure_ascii=False, default=lambda _: None).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadArguments(f"{name}: JSON cannot carry the arguments: {error}") from error


def check_serializer(name: str, serializer: str, accepted: Sequence[str]) -> None:
    """Refuse what no worker reads: a message must not carry code. Raises `BadInput`."""
    if serializer not in accepted:
        raise BadInput(f"{name}: no worker reads {serializer!r}", f"they read: {', '.join(accepted)}")


def checked_id(task_id: str | None) -> str:
    """The id, a new one when there is none. Raises `BadInput`."""
    if task_id is None:
        return str(uuid())
    if not isinstance(task_id, str):
        raise BadInput(f"an id is a text, got {task_id!r}")
    if not 1 <= len(task_id) <= MAX_ID_LENGTH or not task_id.isprintable():
        raise BadInput(f"an id is 1 to {MAX_ID_LENGTH} printable characters, got {task_id[:200]!r}")
    if len(task_id.encode()) > _MAX_ID_BYTES:
        raise BadInput(f"an id has at most {_MAX_ID_BYTES} bytes in UTF-8, got {task_id!r}")
    return task_id


def delay(countdown: float | None, eta: datetime | None) -> int | None:
    """Whole seconds from now, rounded up, or None for "now". Raises `BadInput`."""
    if countdown is not None and eta is not None:
        raise BadInput("countdown and eta exclude each other")
    if eta is not None:
        if not isinstance(eta, datetime):
            raise BadInput(f"an eta is a datetime, got {eta!r}")
        countdown = _seconds_until(eta)
        if countdown < -_ETA_TOLERANCE:
            raise BadInput(f"the eta {eta.isoformat()} is in the past")
        countdown = max(0, countdown)
    if countdown is None:
        return None
    if not isinstance(countdown, int | float):
        raise BadInput(f"a countdown is a number of seconds, got {countdown!r}")
    if not countdown >= 0:
        raise BadInput(f"a countdown is 0 or more seconds, got {countdown:g}")
    if countdown > MAX_DELAY:
        raise BadInput(f"a delay of {countdown:g} s is longer than the {MAX_DELAY} s that can be held")
    return math.ceil(countdown) or None


def lifetime(expires: float | datetime | None) -> float | datetime | None:
    """The `expires` option. Raises `BadInput`."""
    if isinstance(expires, int | float) and not expires > 0:
        raise BadInput(f"expires must be above 0 seconds, got {expires:g}")
    seconds = _seconds_until(expires) if isinstance(expires, datetime) else expires
    if isinstance(seconds, int | float) and seconds > MAX_LIFETIME:
        raise BadInput(f"expires is {seconds:g} s ahead, and at most {MAX_LIFETIME} s can be counted")
    return expires


def _seconds_until(moment: datetime) -> float:
    """From now; a moment without a zone is in UTC."""
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()


def problem(error: ValidationError, parameters: list[str]) -> str:
    """The first thing that is wrong with the arguments, in words."""
    first = error.errors(include_url=False)[0]
    where, *inside = first["loc"]
    got = repr(first["input"])
    match first["type"]:
        case "missing_argument" | "missing_keyword_only_argument":
            return f"argument {where} is missing"
        case "unexpected_positional_argument":
            return f"too many arguments, {got} is left over"
        case "unexpected_keyword_argument":
            return f"there is no argument {where}"
        case "multiple_argument_values":
            return f"argument {where} is given twice"
    name = parameters[where] if isinstance(where, int) and where < len(parameters) else where
    path = ".".join(map(str, (name, *inside)))
    return f"argument {path}: {first['msg'].removeprefix('Value error, ')}, got {got}"
