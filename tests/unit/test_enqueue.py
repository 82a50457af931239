"""The pure parts of publishing."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proj.enqueue import MAX_DELAY, _delay, find_task
from proj.errors import BadInput, ExitCode, UnknownTask


@given(st.floats(0, MAX_DELAY))
def test_delay_is_whole_seconds_rounded_up(countdown: float) -> None:
    """The broker holds whole seconds; a fraction must not make a task early, nor 0 a delay."""
    assert (_delay(countdown, None) or 0) == math.ceil(countdown)


@given(st.timedeltas(min_value=timedelta(seconds=1), max_value=timedelta(days=3000)))
def test_eta_is_never_early(ahead: timedelta) -> None:
    """The delay of an eta reaches up to it or a second beyond, with a zone or without."""
    eta = datetime.now(UTC) + ahead

    for moment in (eta, eta.replace(tzinfo=None)):
        delay = _delay(None, moment)
        assert delay is not None
        assert eta <= datetime.now(UTC) + timedelta(seconds=delay)
        assert delay <= math.ceil(ahead.total_seconds())


def test_no_delay_is_none() -> None:
    """Without either, and with an eta of this moment, it is now."""
    assert _delay(None, None) is None
    assert _delay(0, None) is None
    assert _delay(None, datetime.now(UTC)) is None


@pytest.mark.parametrize("countdown", [-1, -0.001, math.nan, math.inf, MAX_DELAY + 1])
def test_delay_that_cannot_be_held_is_refused(countdown: float) -> None:
    """Negative, no number, or longer than 28 bits of seconds."""
    with pytest.raises(BadInput):
        _delay(countdown, None)


def test_eta_in_the_past_is_refused() -> None:
    """It says which."""
    with pytest.raises(BadInput, match="2020-01-01T00:00:00 is in the past"):
        _delay(None, datetime(2020, 1, 1))


def test_countdown_and_eta_exclude_each_other() -> None:
    """Two answers to one question."""
    with pytest.raises(BadInput, match="exclude"):
        _delay(1, datetime.now(UTC))


def test_unknown_task_is_told_with_the_nearest() -> None:
    """And it is bad data, not a failure."""
    with pytest.raises(
        UnknownTask, match=r"'proj.tasks.sleep_dot' \(did you mean proj.tasks.sleep_dots\?\)"
    ) as told:
        find_task("proj.tasks.sleep_dot")
    assert told.value.exit_code is ExitCode.BAD_DATA
