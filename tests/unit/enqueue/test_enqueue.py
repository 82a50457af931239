"""The pure parts of publishing."""

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from proj import app
from proj.enqueue import enqueue, find_task
from proj.enqueue.app import App
from proj.enqueue.checks import MAX_DELAY, MAX_LIFETIME, checked_id, delay, lifetime
from proj.errors import BadArguments, BadInput, BrokerUnreachable, ExitCode, UnknownTask


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


@pytest.mark.parametrize(
    "expires", [Decimal(5), True, "soon", timedelta(1), date(2999, 1, 1), [], 10**400, datetime.max], ids=repr
)
def test_expires_that_is_no_time_is_refused(expires: Any) -> None:
    """Whatever it is."""
    with pytest.raises(BadInput, match="expires"):
        lifetime(expires)


def test_retry_that_is_late_is_due_now() -> None:
    """Its message would be a dead letter otherwise."""
    assert delay(None, datetime(2020, 1, 1), is_retry=True) is None
    assert delay(-1, None, is_retry=True) is None
    assert delay(2, None, is_retry=True) == 2


HALF = "\ud800"


WRONG: dict[str, list[Any]] = {
    "countdown": ["1", Decimal(1), timedelta(1), [1], 10**400],
    "eta": ["2999-01-01", date(2999, 1, 1), 5],
    "expires": [Decimal(5), "soon", timedelta(1)],
    "priority": [-1, 256, "5", 1.5, True, 10**30],
    "queue": ["", 5, b"proj.tasks", ["proj.tasks"], "x" * 256, HALF],
    "exchange": [5, {}, HALF],
    "routing_key": [5, "x" * 256, HALF],
    "reply_to": [5, "x" * 256],
    "shadow": [5, "x" * 5000],
    "headers": [
        *([], "x", {1: 2}, {"x" * 256: 1}, {"x": object()}, {HALF: 1}, {"x": 10**30}),
        *({"x": "y" * 200_000}, {f"x{n}": n for n in range(20_000)}, {"x": {"y": {1, 2}}}),
        *({name: "x"} for name in ("id", "task", "group", "retries", "headers", "get", "compression")),
    ],
    "time_limit": [-1, math.nan, math.inf, "5", True, Decimal(5)],
    "soft_time_limit": [-1, math.nan, []],
    "link": [5, "proj.tasks.add", [5], {}, len],
    "link_error": [5, [None]],
    "compression": ["nonsense", 5, [], {}],
    "serializer": ["pickle", "nonsense", 5, ["json"]],
    "retries": [-1, "1", 1.5, True],
    "ignore_result": ["yes", 1],
    "task_id": [5, "", HALF, "x" * 10**6, []],
    "argsrepr": [5, "x" * 5000],
}


@pytest.mark.parametrize("option", ["exchange", "routing_key"])
def test_delay_excludes_an_address(option: str) -> None:
    """Celery would send the message to the queue of its task, without a word."""
    with pytest.raises(BadInput, match=f"a delay and {option}= exclude each other"):
        find_task(app, "proj.tasks.add").apply_async((1, 2), None, countdown=5, **{option: "elsewhere"})


@pytest.mark.parametrize(
    ("option", "value"),
    [(option, value) for option, values in WRONG.items() for value in values],
    ids=lambda value: ascii(value)[:20],
)
def test_option_that_cannot_be_sent_is_refused(option: str, value: Any) -> None:
    """In one line, before there is a broker to be asked."""
    with pytest.raises(BadInput) as refused:
        find_task(app, "proj.tasks.add").apply_async((1, 2), **{option: value})
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1000


@given(
    st.sampled_from([*WRONG, "group_id", "root_id", "parent_id", "retry", "mandatory"]),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.decimals()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.lists(st.integers() | st.text())
    | st.dictionaries(st.text() | st.integers(), st.text() | st.integers() | st.floats()),
)
def test_any_option_is_sent_or_refused(option: str, value: Any) -> None:
    """What passes comes to the broker, which there is none of."""
    with pytest.raises((BadInput, BrokerUnreachable)) as ended:
        find_task(app, "proj.tasks.add").apply_async((1, 2), **{option: value})
    assert str(ended.value).isprintable()


def test_option_that_is_a_slip_is_refused() -> None:
    """Celery would send the message without it."""
    with pytest.raises(BadInput, match=r"no option contdown \(did you mean countdown\?\)"):
        find_task(app, "proj.tasks.add").apply_async((1, 2), contdown=60)


@pytest.mark.parametrize(
    "name", [5, None, [], "x" * 10**6, HALF, b"proj.tasks.add"], ids=lambda name: ascii(name)[:20]
)
def test_what_is_no_name_of_a_task_is_refused(name: Any) -> None:
    """By `enqueue` and by `send_task`."""
    with pytest.raises(UnknownTask, match="there is no task"):
        enqueue(name, (1, 2))
    with pytest.raises(BadInput, match="the name of a task is a text"):
        app.send_task(name, (1, 2))


def test_unknown_task_is_told_with_the_nearest() -> None:
    """And it is bad data, not a failure."""
    with pytest.raises(
        UnknownTask, match=r"'proj.tasks.sleep_dot' \(did you mean proj.tasks.sleep_dots\?\)"
    ) as told:
        find_task(app, "proj.tasks.sleep_dot")
    assert told.value.exit_code is ExitCode.BAD_DATA


def test_text_is_no_list_of_arguments() -> None:
    """A comma that is missing makes a text of a tuple of one."""
    with pytest.raises(BadArguments, match=r"a list or a tuple, got '!' \(is a comma missing\?\)"):
        find_task(app, "proj.tasks.sleep_dots").apply_async("!")


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=155))
def test_id_fits_a_message(task_id: str) -> None:
    """An id is refused exactly when its bytes are more than a message has room for."""
    if len(task_id.encode()) <= 255:
        assert checked_id(task_id) == task_id
    else:
        with pytest.raises(BadInput, match="at most 255 bytes"):
            checked_id(task_id)


@pytest.mark.parametrize(
    ("zone", "utc"), [("UTC", True), ("Asia/Kolkata", True), (None, True), (None, False)]
)
def test_time_of_the_application_is_celerys(zone: str | None, utc: bool) -> None:
    one = App("zones", set_as_current=False)
    one.conf.update(timezone=zone, enable_utc=utc)
    ours, celerys = one.now(), Celery.now(one)
    assert abs(ours - celerys) < timedelta(minutes=1)
    assert (ours.tzinfo, ours.utcoffset()) == (celerys.tzinfo, celerys.utcoffset())
