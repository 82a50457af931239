"""The pure parts of publishing."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.checks import MAX_DELAY, MAX_LIFETIME, checked_id, delay, lifetime
from proj.enqueue import find_task
from proj.errors import BadArguments, BadInput, ExitCode, UnknownTask


@given(st.floats(0, MAX_DELAY))
def test_delay_is_whole_seconds_rounded_up(countdown: float) -> None:
    """The broker holds whole seconds; a fraction must not make a task early, nor 0 a delay."""
    assert (delay(countdown, None) or 0) == math.ceil(countdown)


@given(st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=3000)))
def test_eta_is_never_early(ahead: timedelta) -> None:
    """The delay of an eta reaches up to it or a second beyond, with a zone or without."""
    eta = datetime.now(UTC) + ahead

    for moment in (eta, eta.replace(tzinfo=None)):
        seconds = delay(None, moment)
        assert seconds is not None
        assert eta <= datetime.now(UTC) + timedelta(seconds=seconds)
        assert seconds <= math.ceil(ahead.total_seconds())


def test_no_delay_is_none() -> None:
    """Without either, and with an eta of this moment, it is now."""
    assert delay(None, None) is None
    assert delay(0, None) is None
    assert delay(None, datetime.now(UTC)) is None


@pytest.mark.parametrize("countdown", [-1, -0.001, math.nan, math.inf, MAX_DELAY + 1])
def test_delay_that_cannot_be_held_is_refused(countdown: float) -> None:
    """Negative, no number, or longer than 28 bits of seconds."""
    with pytest.raises(BadInput):
        delay(countdown, None)


def test_eta_in_the_past_is_refused() -> None:
    """It says which."""
    with pytest.raises(BadInput, match="2020-01-01T00:00:00 is in the past"):
        delay(None, datetime(2020, 1, 1))


def test_countdown_and_eta_exclude_each_other() -> None:
    """Two answers to one question."""
    with pytest.raises(BadInput, match="exclude"):
        delay(1, datetime.now(UTC))


@pytest.mark.parametrize(
    "expires",
    [0, -1, math.nan, math.inf, MAX_LIFETIME + 1, datetime(2999, 1, 1), datetime(2999, 1, 1, tzinfo=UTC)],
)
def test_expires_that_cannot_be_counted_is_refused(expires: float | datetime) -> None:
    """Over at once, no number, or later than the broker takes."""
    with pytest.raises(BadInput, match="expires"):
        lifetime(expires)


@pytest.mark.parametrize("expires", [None, 0.001, MAX_LIFETIME, datetime(2020, 1, 1)])
def test_expires_that_can_be_counted_is_left_as_it_is(expires: float | datetime | None) -> None:
    """A moment that is over is one as well: the message becomes a dead letter at once."""
    assert lifetime(expires) == expires


def test_unknown_task_is_told_with_the_nearest() -> None:
    """And it is bad data, not a failure."""
    with pytest.raises(
        UnknownTask, match=r"'proj.tasks.sleep_dot' \(did you mean proj.tasks.sleep_dots\?\)"
    ) as told:
        find_task("proj.tasks.sleep_dot")
    assert told.value.exit_code is ExitCode.BAD_DATA


def test_text_is_no_list_of_arguments() -> None:
    """A comma that is missing makes a text of a tuple of one."""
    with pytest.raises(BadArguments, match=r"a list or a tuple, got '!' \(is a comma missing\?\)"):
        find_task("proj.tasks.sleep_dots").apply_async("!")


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=155))
def test_id_fits_a_message(task_id: str) -> None:
    """An id is refused exactly when its bytes are more than a message has room for."""
    if len(task_id.encode()) <= 255:
        assert checked_id(task_id) == task_id
    else:
        with pytest.raises(BadInput, match="at most 255 bytes"):
            checked_id(task_id)
