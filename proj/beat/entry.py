"""An entry of the schedule: which task is due when, and the id of each of its runs."""

import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.schedules import BaseSchedule, crontab, schedule

from proj.enqueue import find_task
from proj.enqueue.app import App
from proj.enqueue.arguments import check_call, given_arguments
from proj.enqueue.routing import check_queue, queue_of
from proj.errors import BadInput, ProjError, did_you_mean
from proj.logs.printable import key_shown, shown
from proj.rabbitmq import failures

#: The name space of the ids of runs (RFC 9562, version 5).
_RUNS: Final = uuid.UUID("8b3f3b5e-2d0c-5c5e-9a54-6f1f0f2a7c11")


#: The time that a takeover may take.
TAKEOVER: Final = timedelta(seconds=10)

#: How far a change of the clocks moves them, at most: at Troll station.
_CHANGE: Final = timedelta(hours=2)

#: What an entry has, as Celery documents it.
_KEYS: Final = ("task", "schedule", "args", "kwargs", "options")

#: Options that each run has of its own.
_OF_A_RUN: Final = frozenset({"args", "kwargs", "task_id"})

#: What Celery and Python raise for other slips, such as an interval of NaN or a route to an unknown queue.
_SLIPS: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Missed(StrEnum):
    """Which of the runs that were missed, while no beat ran or its broker was down, are made up for."""

    #: The last one.
    ONCE = "once"
    #: Each of them.
    EACH = "each"


class NotComputed(ProjError):
    """A lazy argument has raised an exception."""


class Entry(ScheduleEntry):
    """Celery's entry, whose due times do not depend on when it was looked at.

    An option `missed` beside those of `apply_async` says which missed runs are made up for; see `Missed`.
    """

    @property
    def missed(self) -> Missed:
        """Raises `BadInput`."""
        given = self.options.get("missed", Missed.ONCE)
        try:
            return Missed(given)
        except ValueError:
            hint = did_you_mean(str(given), list(Missed)) or f"missed is one of: {', '.join(Missed)}"
            raise BadInput(f"there is no missed={shown(given)}", hint) from None

    def check(self, app: App) -> None:
        """Raises `BadInput` when its runs cannot be enqueued, as far as that is known before they are due."""
        if type(self.schedule) is schedule and self.schedule.run_every <= timedelta(0):
            raise BadInput("its interval must be above 0 seconds")
        task = find_task(app, self.task)
        self._check_options(app)
        with suppress(NotComputed):  # later it may
            args, kwargs = self.arguments()
            check_call(task.name, args, kwargs, task.parameters)
            if queue := queue_of(task, args, kwargs, self.options.get("queue")):
                check_queue(app, queue)

    def _check_options(self, app: App) -> None:
        if not isinstance(self.options, dict):
            raise BadInput(f"options are a dict, got {shown(self.options)}")
        if taken := sorted(_OF_A_RUN & self.options.keys()):
            raise BadInput(f"the option {taken[0]} cannot be given: each run has its own")
        if self.options.get("relative") or getattr(self.schedule, "relative", False):
            raise BadInput("relative cannot be given: an interval counts from the last run", "use a crontab")
        _ = self.missed
        app.checked_options(self.task, self._given_options)

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of one run; those that are a `BeatLazyFunc` are computed for it.

        Raises `BadArguments` and `NotComputed`.
        """
        args, kwargs = given_arguments(self.task, self.args, self.kwargs)
        try:
            return tuple(map(_now, args)), {name: _now(value) for name, value in kwargs.items()}
        except Exception as error:  # the function is the user's
            raise NotComputed(
                f"an argument cannot be computed: {type(error).__name__}: {failures.words(error)}"
            ) from error

    @property
    def _given_options(self) -> dict[str, Any]:
        return {name: value for name, value in self.options.items() if name != "missed"}

    def sent_options(self) -> dict[str, Any]:
        """The options of `apply_async`."""
        options = self._given_options
        # As Celery's own beat does, so that the task can tell.
        return options | {"headers": {"celery_beat_task": True} | (options.get("headers") or {})}

    def run_id(self, due: datetime) -> str:
        """The id of the run that is due then: the same, whoever enqueues it, and however often."""
        return str(uuid.uuid5(_RUNS, f"{self.name} {due.timestamp():.6f}"))

    def due_after(self, last: datetime) -> datetime:
        """When it is due next, after it was due then, in UTC; not later than then when it is never due again.

        In UTC, since Python adds and compares times of one zone by its wall clock.
        """
        last = last.astimezone(UTC)
        if type(self.schedule) is schedule:
            due: datetime = last + self.schedule.run_every
            return due
        if isinstance(self.schedule, crontab):
            return self._due_by_the_clock(last)
        # Such as `solar`, which only says how long it takes from now.
        now, clock = self.schedule.now(), self.schedule.nowfun
        self.schedule.nowfun = lambda: now  # or the time of a run would depend on how long this takes
        try:
            due = now.astimezone(UTC) + self.schedule.remaining_estimate(last)
        finally:
            self.schedule.nowfun = clock
        # Rounded, since it may be computed; and up, or the next one would be the same again.
        return due.replace(microsecond=0) + timedelta(seconds=bool(due.microsecond))

    def _due_by_the_clock(self, last: datetime) -> datetime:
        """The next run of a crontab. A time that comes twice is the first one; one left out is as much later.

        Celery computes as if the zone were UTC what the wall clock shows next, and so meets no change.
        """
        zone, due = self.schedule.tz, last
        # By the clock as it was before a change: what is left out is still ahead of it then.
        clock = min(last + zone.utcoffset(each.astimezone(zone)) for each in (last, last - _CHANGE))
        while due <= last:
            start, delta, _ = self.schedule.remaining_delta(clock, tz=UTC)
            clock = start + delta
            due = clock.replace(tzinfo=zone).astimezone(UTC)
        return due

    def due_since(self, last: datetime, now: datetime) -> Iterator[datetime]:
        """The due times of the runs to enqueue now, in their order and in UTC.

        Those of the last seconds are never skipped, since no beat may have led then; see `TAKEOVER`.
        """
        last, now = last.astimezone(UTC), now.astimezone(UTC)
        if self.missed is Missed.ONCE:
            last = max(last, self._before_last_due(last, now))
        due = self.due_after(last)
        while last < due <= now:
            next_one = self.due_after(due)
            if self.missed is Missed.EACH or due >= now - TAKEOVER or not due < next_one <= now:
                yield due
            last, due = due, next_one

    def _before_last_due(self, last: datetime, now: datetime) -> datetime:
        """A time before the last due time and before a takeover, near them: a gap may be of a year."""
        if type(self.schedule) is schedule:
            every: timedelta = self.schedule.run_every
            return last + max(0, min((now - TAKEOVER - last) // every, (now - last) // every - 1)) * every
        if not isinstance(self.schedule, crontab):
            return last
        back = 2 * TAKEOVER
        while now - back > last and self.due_after(now - back) > now:
            back *= 2
        return now - back


def entry_of(name: Any, given: Any, app: App) -> Entry:
    """The entry that a schedule has under this name.

    Raises `BadInput`, with the name, when its runs cannot be enqueued.
    """
    words = f"entry {shown(name)} of the schedule"
    try:
        if not isinstance(name, str):
            raise BadInput("its name is a text")
        _check_keys(given)
        entry = Entry(**dict(given, name=name, app=app))
        entry.check(app)
    except BadInput as error:
        raise BadInput(f"{words}: {error.message}", error.hint) from None
    except _SLIPS as error:
        raise BadInput(f"{words}: {failures.words(error)}") from error
    return entry


def _check_keys(given: Any) -> None:
    """Raises `BadInput` for what Celery cannot make an entry of."""
    if not isinstance(given, dict):
        raise BadInput(f"an entry is a dict, got {shown(given)}")
    if unknown := [key for key in given if key not in {*_KEYS, "relative"}]:
        hint = did_you_mean(str(unknown[0]), _KEYS) or f"an entry has: {', '.join(_KEYS)}"
        raise BadInput(f"there is no key {key_shown(unknown[0])}", hint)
    if not isinstance(every := given.get("schedule"), int | float | timedelta | BaseSchedule):
        raise BadInput(f"its schedule is seconds, a timedelta or such as crontab(…), got {shown(every)}")


def _now(value: Any) -> Any:
    return value() if isinstance(value, BeatLazyFunc) else value
