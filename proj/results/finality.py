"""Which state of a task may replace another one in the result store: ends are final, and newer attempts win.

Several writers may have something to say about one id: a worker that was cut off and the one that got the
message after it, a retry that began before its predecessor said that there is one, a redrive, a repeat.
"""

from typing import Any, Final

from celery import states

from proj import queues

#: Retries that are told apart within one life of a message. A redrive begins the next life.
_RETRIES: Final = 1 << 16

#: The highest attempt, redrives included: the store's column has 31 bits, and the first attempt of the life
#: after it has to be a number for them too. PostgreSQL refuses a statement that compares with a greater one.
LAST: Final = (1 << 31) - _RETRIES - 1


def attempt_of(request: Any) -> int:
    """The number of the attempt, from its redrives and its retries; a later one has a higher number.

    Whoever stores a state without a request has no attempt, and comes last.
    """
    if request is None:
        return LAST
    redrives = _count(getattr(request, queues.REDRIVES_HEADER, 0))
    return min(redrives * _RETRIES + min(_count(getattr(request, "retries", 0)), _RETRIES - 1), LAST)


def retries_of(attempt: int) -> int:
    """The retries of an attempt since its message was published, or redriven."""
    return attempt % _RETRIES


def may_replace(state: str, attempt: int, stored_state: Any, stored_attempt: Any) -> Any:
    """Whether the state of an attempt replaces what is stored; for columns of a table, the condition in SQL.

    A success is final, and replaces all else. Any other state replaces those of its own attempt and of older
    ones. An end also replaces any end in the same life of the message: a repeat with the same id counts its
    retries anew, and whoever waits for it waits for its end. What is no end replaces none in the same life: a
    revocation holds for the attempt that begins after it.
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
    """What a header says, which may be anything."""
    return max(0, value) if isinstance(value, int) else 0
