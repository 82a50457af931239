"""Which entries of a schedule are refused at the start of beat; no broker and no result store is asked."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule

from proj import app
from proj.beat.entry import entry_of
from proj.beat.scheduler import Scheduler
from proj.errors import BadInput
from proj.tasks import add

GOOD: dict[str, Any] = {"task": "proj.tasks.add", "schedule": 1.0, "args": (1, 2)}


def set_up(entry: object) -> None:
    before = app.conf.beat_schedule
    app.conf.beat_schedule = {"nightly": entry}
    try:
        Scheduler(app, lazy=True).setup_schedule()
    finally:
        app.conf.beat_schedule = before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"options": {"queue": "slow"}}, "there is no queue 'slow'"),
        ({"options": {"prioritty": 1}}, "there is no option prioritty (did you mean priority?)"),
        ({"options": {"priority": 77}}, "priority must be a whole number from 0 to"),
        ({"options": {"expires": -1}}, "expires must be above 0 seconds, got -1"),
        ({"options": {"countdown": 9, "expires": 5}}, "it expires before it may start (delay 9 s, expires"),
        ({"options": {"serializer": "pickle"}}, "workers do not accept 'pickle'"),
        ({"options": {"headers": "x"}}, "headers must be a dict"),
        ({"options": {"headers": {"id": "x"}}}, "a header cannot be named 'id'"),
        ({"options": {"task_id": "a"}}, "task_id cannot be given: each run has its own"),
        ({"options": {"args": (3, 4)}}, "args cannot be given: each run has its own"),
        ({"options": {"missed": ["each"]}}, "missed is one of: once, each"),
        ({"options": ["queue"]}, "options are a dict, got ['queue']"),
        ({"kwargs": ["x"]}, "keyword arguments are a dict with names as keys, got ['x']"),
        ({"kwargs": {"z": 1}}, "z"),
        ({"args": 5}, "arguments are a list or a tuple, got 5"),
        ({"args": "12"}, "arguments are a list or a tuple, got '12'"),
        ({"args": (1, {3})}, "y"),
        ({"args": ()}, "x"),
        ({"optons": {"priority": 1}}, "there is no key optons (did you mean options?)"),
        ({"nonsense": 1}, "there is no key nonsense (an entry has: task, schedule, args, kwargs, options)"),
        (
            {"schedule": "*/5 * * * *"},
            "its schedule is seconds, a timedelta or such as crontab(…), got '*/5 * * * *'",
        ),
        ({"schedule": None}, "its schedule is seconds, a timedelta or such as crontab(…), got None"),
        ({"schedule": float("nan")}, "NaN"),
        ({"schedule": -1}, "its interval must be above 0 seconds"),
        ({"task": None}, "there is no task None"),
        ({"task": "proj.tasks.ad"}, "did you mean proj.tasks.add?"),
    ],
)
def test_entry_that_cannot_be_enqueued(
    change: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One line with its name and what is wrong, in place of an error for each run or a traceback."""
    with pytest.raises(SystemExit, match=r"^2$"):
        set_up(GOOD | change)

    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert line.startswith("beat: entry 'nightly' of the schedule: ")
    assert words in line
    assert "\n" not in line


@pytest.mark.celery_docs("Periodic Tasks: relative")
@pytest.mark.parametrize(
    "change",
    [
        {"options": {"relative": True}},
        {"relative": True},
        {"schedule": schedule(30, relative=True)},
    ],
)
def test_interval_by_the_clock(change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """It would be a plain interval, without a word."""
    with pytest.raises(SystemExit, match=r"^2$"):
        set_up(GOOD | change)

    assert "relative cannot be given: an interval counts from the last run (use a crontab)" in caplog.text


@pytest.mark.parametrize("entry", [5, "proj.tasks.add", ["task"], None])
def test_entry_that_is_none(entry: object, caplog: pytest.LogCaptureFixture) -> None:
    """Something else where the dict of an entry belongs."""
    with pytest.raises(SystemExit, match=r"^2$"):
        set_up(entry)

    assert "beat: entry 'nightly' of the schedule: an entry is a dict, got" in caplog.text


def test_entry_without_a_text_as_name() -> None:
    """Its last run is kept under its name."""
    with pytest.raises(BadInput, match="entry 1 of the schedule: its name is a text"):
        entry_of(1, GOOD, app)


def _raises() -> int:
    raise FileNotFoundError


@pytest.mark.parametrize(
    "change",
    [
        {"args": [1], "kwargs": {"y": 2}},
        {"args": (BeatLazyFunc(int), BeatLazyFunc(_raises))},
        {"kwargs": {"y": BeatLazyFunc(int)}, "args": (1,)},
        {"options": {"missed": "each", "expires": 60, "priority": 3, "headers": {"mine": 1}, "countdown": 5}},
        {"options": {"queue": "proj.tasks", "link": add.s(1)}},
        {"schedule": timedelta(minutes=1), "options": None, "kwargs": None},
        {"schedule": crontab()},
        {"relative": False},
    ],
)
def test_entry_that_can_be_enqueued(change: dict[str, Any]) -> None:
    """One whose argument cannot be computed yet, too."""
    set_up(GOOD | change)
