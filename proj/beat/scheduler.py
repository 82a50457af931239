"""The scheduler of `celery beat`, which enqueues periodic tasks; two of them are one."""

import logging
from datetime import datetime
from typing import Any, Final

from celery import beat

from proj.beat import entry as entries
from proj.beat.alive import Alive
from proj.beat.history import History
from proj.beat.leader import Leader
from proj.enqueue import find_task
from proj.errors import (
    BadInput,
    BrokerRefused,
    BrokerUnreachable,
    ExitCode,
    OutcomeUnknown,
    ProjError,
    ResultStoreError,
)

log = logging.getLogger("proj.beat")

#: Seconds between two looks at who leads, and between two attempts to enqueue a run.
_LOOK: Final = 0.5

#: What is late while the broker or the result store fails; an entry has words of its own.
_ALL_LATER: Final = "what is due is enqueued later"
_RECORDED_LATER: Final = "what ran last is recorded later"


class Scheduler(beat.Scheduler):
    """Enqueues each due run, and repeats that until the broker has confirmed it, while it leads.

    The id of a run is made of its entry and its due time, and each run is marked as a possible repeat. So a
    run that two beats enqueue around a takeover is executed once, as soon as its success is stored.
    """

    Entry = entries.Entry

    #: Celery's own producer waits for an unreachable broker without a timeout, and so delays all entries.
    producer = None

    def __init__(self, app: Any, *args: Any, lazy: bool = False, **options: Any) -> None:
        """With `lazy`, only for what `celery beat` prints at its start."""
        self._leader = Leader(app)
        self._history = History(app)
        self._alive = Alive(app.settings)
        #: The due time of each entry's last run; None while it has to be read.
        self._last: dict[str, datetime] | None = None
        #: The reason that was said last for each thing that is late.
        self._problems: dict[str, str] = {}
        super().__init__(app, *args, lazy=lazy, **options)
        if not lazy:
            self._leader.start()

    def setup_schedule(self) -> None:
        """Check all entries. Celery's own `celery.backend_cleanup` is none: workers delete old results.

        Ends the program with one line about the first entry that cannot be enqueued, or the result store.
        """
        try:
            for name, given in self.app.conf.beat_schedule.items():
                self.schedule[name] = entries.entry_of(name, given, self.app)
            is_shared = self._history.is_shared
        except ProjError as error:
            log.critical("beat: %s", error)
            code = ExitCode.USAGE if isinstance(error, BadInput) else error.exit_code
            raise SystemExit(int(code)) from None
        if not is_shared:
            log.warning(
                "beat: the result store is no database, so that another beat does not know what was enqueued"
            )

    def tick(self, *_: Any, **__: Any) -> float:
        """Enqueue what is due. Returns the seconds until the next look."""
        if self._leader.refusal:
            log.critical("beat: %s", self._leader.refusal)
            raise SystemExit(int(self._leader.refusal.exit_code))
        self._alive.beat(leads=self._leader.leads)
        if not self._leader.leads:
            self._last = None
            return _LOOK
        try:
            if self._last is None:
                self._last = self._history.read(self.schedule)
            soonest = min((self._run_due(entry) for entry in list(self.schedule.values())), default=_LOOK)
        except (BrokerUnreachable, ResultStoreError) as error:
            self._say(_ALL_LATER, error)
            return _LOOK
        self._problems.pop(_ALL_LATER, None)
        self._record()
        return max(0.0, min(soonest, _LOOK))

    def close(self) -> None:
        """End the leader's thread. Gives the exit code of a refusal, which Celery's service forgets."""
        self._leader.stop()
        self._alive.end()
        super().close()
        if self._leader.refusal:
            raise SystemExit(int(self._leader.refusal.exit_code))

    def _run_due(self, entry: entries.Entry) -> float:
        """Enqueue the due runs of one entry. Returns the seconds until the next one is due."""
        assert self._last is not None
        if entry.name not in self._last and not self._begin(entry):
            return _LOOK
        for due in entry.due_since(self._last[entry.name], self.app.now()):
            if not self._leader.leads:
                return _LOOK
            self._alive.beat(leads=True)  # each publish may take all of its time
            if not self._enqueue(entry, due):
                return _LOOK
            self._last[entry.name] = due
            self._history.keep(entry.name, due)
            self._record()
        last = self._last[entry.name]
        next_one = entry.due_after(last)
        return float((next_one - self.app.now()).total_seconds()) if next_one > last else _LOOK

    def _begin(self, entry: entries.Entry) -> bool:
        """Begin with a new entry, whose first run is due one interval later, once that is recorded."""
        assert self._last is not None
        now = self.app.now()
        self._history.keep(entry.name, now)
        if is_recorded := self._record():
            self._last[entry.name] = now
        return is_recorded

    def _record(self) -> bool:
        """Whether the result store has what ran last. A run does not wait for that: it has one id."""
        try:
            self._history.save()
        except ResultStoreError as error:
            self._say(_RECORDED_LATER, error)
            return False
        self._problems.pop(_RECORDED_LATER, None)
        return True

    def _enqueue(self, entry: entries.Entry, due: datetime) -> bool:
        """Whether the run needs no further attempt. Raises `BrokerUnreachable`."""
        later = f"{entry.name} is enqueued later"
        try:
            args, kwargs = entry.arguments()
            find_task(self.app, entry.task).apply_async(
                args, kwargs, task_id=entry.run_id(due), **entry.sent_options()
            )
        except BadInput as error:
            log.error("beat: the run of %s that was due at %s cannot be enqueued: %s", entry.name, due, error)
        except (BrokerRefused, OutcomeUnknown, entries.NotComputed) as error:
            self._say(later, error)
            return False
        self._problems.pop(later, None)
        return True

    def _say(self, what: str, error: ProjError) -> None:
        """Log a problem once, as long as it stays the same."""
        if self._problems.get(what) != error.message:
            self._problems[what] = error.message
            log.warning("beat: %s: %s", what, error)
