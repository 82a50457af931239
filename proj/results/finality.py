"""Decides which state of a task may replace the stored one: ends are final, and newer attempts win.

Several writers may store states under one id: a worker that lost its connection and the worker that got the
message next, a retry that began before the previous attempt had stored its state, a redrive, a repeat.
"""

from typing import Any, Final

from celery import states

from proj import queues

#: Retries that are distinguished within one life of a message. A redrive begins the next life.
_RETRIES: Final = 1 << 16

#: The highest number of an attempt, redrives included. The store's column has 31 bits, and PostgreSQL refuses
#: to compare it with a greater number, so the first attempt of the next life must fit too.
LAST: Final = (1 << 31) - _RETRIES - 1


def attempt_of(request: Any) -> int:
    """The number of the attempt, from its redrives and its retries; later attempts have higher numbers.

    A state that is stored without a request counts as the last attempt.
    """
    if request is None:
        return LAST
    redrives = _count(getattr(request, queues.REDRIVES_HEADER, 0))
    return min(redrives * _RETRIES + min(_count(getattr(request, "retries", 0)), _RETRIES - 1), LAST)


def retries_of(attempt: int) -> int:
    """The number of retries since the message was published or redriven."""
    return attempt % _RETRIES


def may_replace(state: str, attempt: Any, stored_state: Any, stored_attempt: Any) -> Any:
    """Whether the state of an attempt replaces the stored one; in terms of columns, a condition in SQL.

    A success is final and replaces every other state. Any other state replaces states of the same or earlier
    attempts. An end also replaces a failure or revocation in the same life of the message: a repeat with the
    same id starts its retries at 0, and its caller waits for its end. A state that is no end replaces no end
    in the same life: a revocation stays in force for the attempt that begins after it.
    """
    if state == states.SUCCESS:
        return stored_state != states.SUCCESS
    life = attempt // _RETRIES * _RETRIES
    has_ended = (stored_state == states.FAILURE) | (stored_state == states.REVOKED)
    if state in states.READY_STATES:
        may = (stored_attempt <= attempt) | (has_ended & (stored_attempt < life + _RETRIES))
    else:
        has_not_ended = (stored_state != states.FAILURE) & (stored_state != states.REVOKED)
        may = (stored_attempt <= attempt) & (has_not_ended | (stored_attempt < life))
    return (stored_state != states.SUCCESS) & may


def _count(value: object) -> int:
    """The value of a header, which may be anything, as a count."""
    return max(0, value) if isinstance(value, int) else 0
