"""When runs are due, and which of them are published after a gap: no clock but the given one."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import celery
import pytest
from celery.schedules import BaseSchedule, crontab
from hypothesis import given
from hypothesis import strategies as st

from proj import app
from proj.beat.entry import TAKEOVER, Entry, entry_of
from proj.errors import BadInput

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


def entry(schedule: Any, zone: str = "Europe/Berlin", kind: type[Entry] = Entry, **settings: Any) -> Entry:
    of_zone = celery.Celery("periodic", set_as_current=False)
    of_zone.conf.timezone = zone
    return kind(name="e", task="t", schedule=schedule, app=of_zone, **settings)


def due_times(of: Entry, begin: datetime, end: datetime) -> list[datetime]:
    found = []
    while (begin := of.due_after(begin)) <= end:
        found.append(begin)
    return found


@pytest.mark.celery_docs("Periodic Tasks: crontab, time zones")
@pytest.mark.parametrize(("day", "hours"), [((2026, 3, 29), 23), ((2026, 3, 30), 24), ((2026, 10, 25), 25)])
def test_a_daily_run_stays_at_its_local_time(day: tuple[int, int, int], hours: int) -> None:
    """When the clocks change, the next is 23 or 25 hours later."""
    noon = datetime(*day, tzinfo=UTC).replace(hour=12)
    runs = due_times(entry(crontab(hour=12, minute=0)), noon - 36 * HOUR, noon)
    assert [later - earlier for earlier, later in pairwise(runs)] == [hours * HOUR]


@pytest.mark.parametrize("day", [(2026, 3, 29), (2026, 10, 25)])
def test_an_interval_knows_no_time_zone(day: tuple[int, int, int]) -> None:
    """Each hour of a day of 23 or 25 hours has its run."""
    begin = datetime(*day, tzinfo=UTC)
    assert len(due_times(entry(3600.0), begin, begin + 24 * HOUR)) == 24


@pytest.mark.parametrize("minutes", [0, 1, 30, 59, 60, 90, 119, 120])
def test_the_next_run_is_later_even_in_an_hour_that_comes_twice(minutes: int) -> None:
    """Else beat would publish runs of the first such hour in the second."""
    last = datetime(2026, 10, 25, tzinfo=UTC) + minutes * MINUTE
    assert last < entry(crontab()).due_after(last) <= last + HOUR + MINUTE


#: Zones, and a time (UTC) two to three hours before their clocks change.
CHANGES = [
    ("Europe/Berlin", datetime(2026, 3, 28, 22, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 24, 22, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 3, 8, 4, tzinfo=UTC)),
    ("America/New_York", datetime(2026, 11, 1, 3, tzinfo=UTC)),
    ("America/Santiago", datetime(2026, 9, 6, 1, tzinfo=UTC)),  # at midnight
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 12, tzinfo=UTC)),  # by half an hour
]
CHANGE = pytest.mark.parametrize(("name", "before"), CHANGES, ids=[f"{name} {at:%m}" for name, at in CHANGES])

SCHEDULES = [
    30.0,
    3600.0,
    crontab(),
    crontab(minute="*/20"),
    crontab(hour="*/2", minute=0),
    crontab(hour="0-2", minute="0,30"),
]


@CHANGE
@given(
    st.sampled_from(SCHEDULES),
    st.sampled_from(["once", "each"]),
    st.timedeltas(timedelta(0), 6 * HOUR),
    st.timedeltas(timedelta(0), 3 * HOUR),
)
def test_the_zone_of_a_time_does_not_matter(
    name: str, before: datetime, schedule: Any, missed: str, after: timedelta, gap: timedelta
) -> None:
    """Python compares and adds times of one zone by its wall clock; no run may be lost or doubled by it."""
    of, zone = entry(schedule, name, options={"missed": missed}), ZoneInfo(name)
    last = before + after
    now = last + gap
    due = list(of.due_since(last, now))
    assert due == sorted(set(due))
    assert list(of.due_since(last.astimezone(zone), now.astimezone(zone))) == due
    assert list(of.due_since(last, now.astimezone(zone))) == due


@pytest.mark.parametrize("missed", ["once", "each"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@CHANGE
def test_a_beat_that_looks_often_runs_each(name: str, before: datetime, schedule: Any, missed: str) -> None:
    """While the clocks change, too: which runs there are does not depend on when beat looks."""
    of, zone = entry(schedule, name, options={"missed": missed}), ZoneInfo(name)
    last = now = since = before + 1.5 * HOUR
    found: list[datetime] = []
    while now < before + 4 * HOUR:
        now += 29 * SECOND
        found += of.due_since(last.astimezone(zone), now.astimezone(zone))
        last = found[-1] if found else last
    assert found == due_times(of, since, now)


@pytest.mark.parametrize(
    ("when", "begin", "hours"),
    [
        ({"hour": 2, "minute": 30}, (2026, 3, 29, 0), [1.5]),
        ({"hour": 2, "minute": "0,30"}, (2026, 3, 29, 0), [1, 1.5]),
        ({"hour": "2,3", "minute": 0}, (2026, 3, 29, 0), [1]),
        ({"minute": "*/30"}, (2026, 3, 29, 0), [0.5, 1, 1.5, 2, 2.5, 3]),
        ({"hour": 2, "minute": "0,30"}, (2026, 10, 24, 23), [1, 1.5]),
        ({"minute": "*/30"}, (2026, 10, 24, 23), [0.5, 1, 1.5, 3]),
    ],
)
def test_an_hour_that_is_left_out_or_comes_twice(
    when: dict[str, Any], begin: tuple[int, int, int, int], hours: list[float]
) -> None:
    """A time that is left out is an hour later, and one that comes twice has one run, whenever beat looks."""
    since = datetime(*begin, tzinfo=UTC)
    each = [since + number * HOUR for number in hours]
    of = entry(crontab(**when))
    assert due_times(of, since, since + 3 * HOUR) == each
    for minute in range(180):
        looked = since + minute * MINUTE
        assert due_times(of, looked, since + 3 * HOUR) == [due for due in each if due > looked]


@pytest.mark.parametrize("schedule", [60.0, crontab()])
def test_after_a_gap_the_last_run_or_each(schedule: Any) -> None:
    begin = datetime(2026, 11, 28, 12, tzinfo=UTC)
    now = begin + 90 * MINUTE + 3 * TAKEOVER
    last = begin + 90 * MINUTE
    assert list(entry(schedule).due_since(begin, now)) == [last]
    each = entry(schedule, options={"missed": "each"})
    assert list(each.due_since(begin, now)) == [begin + n * MINUTE for n in range(1, 91)]


@pytest.mark.parametrize("gap", [timedelta(seconds=45), 5 * HOUR, timedelta(days=3), timedelta(days=3650)])
@pytest.mark.parametrize(
    "when", [{}, {"minute": "*/7"}, {"hour": 3, "minute": 30}, {"day_of_week": 1, "hour": 2}]
)
def test_the_last_run_before_now_is_found_however_long_the_gap(when: dict[str, Any], gap: timedelta) -> None:
    """In a few steps: not each minute of ten years is looked at."""
    now = datetime(2026, 11, 28, 12, 0, 20, tzinfo=UTC)
    each = due_times(entry(crontab(**when)), max(now - gap, now - timedelta(days=8)), now)
    looks = []

    class Looking(Entry):
        def due_after(self, last: datetime) -> datetime:
            looks.append(last)
            return super().due_after(last)

    of = entry(crontab(**when), kind=Looking)
    assert list(of.due_since(now - gap, now)) == each[-1:]
    assert len(looks) < 100


def test_runs_of_a_takeover_are_never_skipped() -> None:
    begin = datetime(2026, 11, 28, 12, tzinfo=UTC)
    runs = list(entry(1.0).due_since(begin, begin + HOUR))
    assert set(runs) >= {begin + HOUR - timedelta(seconds=n) for n in range(10)}
    assert len(runs) <= 12


class At(BaseSchedule):
    """Due at these times, some of them with microseconds as computed ones have; then never again."""

    def __init__(self, times: list[datetime]) -> None:
        super().__init__()
        self.times = times

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        later = (each for each in self.times if each > last_run_at)
        remaining: timedelta = next(later, self.times[-1]) - self.now()
        return remaining


BEGIN = datetime(2026, 10, 24, 12, tzinfo=UTC)  # with a change of the clocks in the next days


@given(
    st.lists(st.timedeltas(SECOND / 10, 48 * HOUR), min_size=1, max_size=20, unique=True),
    st.sampled_from(["once", "each"]),
)
def test_a_schedule_of_any_class_is_due_at_its_times_and_no_oftener(
    after: list[timedelta], missed: str
) -> None:
    """Rounded up to seconds, however long it takes to compute them, and in any time zone."""
    times = sorted(BEGIN + each for each in after)
    seconds = sorted({each.replace(microsecond=0) + SECOND * bool(each.microsecond) for each in times})
    of = entry(At(times), options={"missed": missed})
    due = list(of.due_since(BEGIN, BEGIN + 49 * HOUR))
    assert due == (seconds if missed == "each" else seconds[-1:])
    assert list(of.due_since(due[-1], BEGIN + 49 * HOUR)) == []


@pytest.mark.parametrize("interval", [0, -1.0])
def test_an_interval_is_above_zero(interval: float) -> None:
    """Else its runs would never end."""
    with pytest.raises(BadInput, match="entry 'e' of the schedule: its interval must be above 0"):
        entry_of("e", {"task": "proj.tasks.add", "schedule": interval}, app)


def test_a_run_has_one_id() -> None:
    """Of its entry and its due time, so that two beats that publish it publish one id twice."""
    begin = datetime(2026, 11, 28, 12, tzinfo=UTC)
    assert entry(1.0).run_id(begin) == entry(5.0).run_id(begin)
    assert entry(1.0).run_id(begin) != entry(1.0).run_id(begin + timedelta(seconds=1))
