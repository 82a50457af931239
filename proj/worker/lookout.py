"""Ends that the broker made: workers look at the dead letters, and store how their messages ended.

When a message reaches its delivery limit, or expires in its queue, no worker has it and can store that.
Whoever waits for its result reads the result store only, and has no right to read dead letters.

A second queue on the exchange of dead letters would be simpler, and would break the promise. The broker lets
a dead letter go once each queue that is bound has confirmed it: it would do so without `proj.dead` too.
"""

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import celery
from celery import bootsteps, states
from celery.app.task import Context
from celery.utils.log import get_logger

from proj import dead_letters, queues
from proj.dead_letters.letter import DeadLetter
from proj.dead_letters.reasons import Reason
from proj.enqueue import checks
from proj.errors import BrokerUnreachable
from proj.rabbitmq import connection
from proj.results import stored_exception
from proj.worker import burial

log = get_logger(__name__)

#: Seconds between two questions for the number of dead letters: how long whoever waits may wait longer. A
#: question is one round trip.
INTERVAL: Final = 5.0

#: Seconds after which dead letters are looked at also when their number is the same.
REFRESH: Final = 60.0

#: How many times the duration of a look has to go by before the next one.
PAUSE: Final = 20

#: Dead letters looked at, the oldest first. Each look makes later ones, also those of people, read as many.
MAX_LETTERS: Final = 10_000

#: Dead letters held in memory at a time. Each may have 16 MiB.
CHUNK: Final = 50

#: Ends stored after one look, so that the worker's own process is not kept from its work.
MAX_STORED: Final = 100

#: What the broker does by itself. Of what a worker rejected, that worker has stored the end.
_BY_THE_BROKER: Final = (Reason.DELIVERY_LIMIT, Reason.EXPIRED, Reason.MAXLEN)


class DeadLettered(Exception):
    """How a message ended that the broker made a dead letter: the reason, and the command that shows it."""


class LookoutStep(bootsteps.StartStopStep):
    """Looks at dead letters from a thread of the worker, on a connection of its own."""

    requires = ("celery.worker.components:Pool",)  # so that no process of the pool inherits the thread

    def create(self, worker: Any) -> Any:
        self._lookout = Lookout(worker.app)
        return self._lookout


class Lookout:
    """The thread; one worker at a time looks, and each sees what others have stored."""

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        #: The number of dead letters at the last look; None when there is more to do.
        self._seen: int | None = None
        self._next = self._not_before = 0.0
        #: Dead letters whose end is known to be stored.
        self._settled: set[tuple[str, str | None]] = set()
        self._warned = False
        self._problem = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Look no more; a look that is under way ends by itself."""
        self._stopped.set()

    def _run(self) -> None:
        if not self._app.backend.persistent:
            return  # results travel as messages, and no reply could be forged here
        broker = self._app.connection_for_read(heartbeat=0)
        while not self._stopped.wait(INTERVAL):
            try:
                self._turn(broker)
            except (dead_letters.Busy, BrokerUnreachable):
                pass  # the next time
            except Exception as error:
                self._not_before = time.monotonic() + REFRESH
                if (problem := str(error)) != self._problem:
                    log.warning("Dead letters cannot be read, so their waiters get no answer: %s", problem)
                self._problem = problem
        connection.abandon(broker)

    def _turn(self, broker: Any) -> None:
        """Look, when there may be something new."""
        with connection.bounded(broker, self._app.settings.proj_publish_timeout):
            count = broker.default_channel.queue_declare(queues.dead_queue.name, passive=True).message_count
        now = time.monotonic()
        if not count:
            self._seen = count
            self._settled.clear()
        elif now >= self._not_before and (count != self._seen or now >= self._next):
            self._seen = None
            if self._look():
                self._seen = count
            self._problem = ""
            self._warn(count)
            ended = time.monotonic()
            self._not_before, self._next = ended + PAUSE * (ended - now), ended + REFRESH

    def _look(self) -> bool:
        """Store the ends that the broker made; False when some are to be looked at again."""
        found: list[_End] = []
        settled: set[tuple[str, str | None]] = set()
        all_are_settled = True

        def note(letter: DeadLetter) -> None:
            nonlocal all_are_settled
            key = letter.id, letter.last
            if letter.reason not in _BY_THE_BROKER or not checks.is_id(letter.id):
                return
            if key in self._settled:
                settled.add(key)
            elif len(found) < MAX_STORED:
                found.append(_End(letter))
            else:
                all_are_settled = False

        dead_letters.survey(self._app, MAX_LETTERS, CHUNK, note)
        for end in found:
            if end.is_stored(self._app):
                settled.add(end.key)
            else:
                end.store(self._app)
                # The next look sees whether the store has taken it.
                all_are_settled = False
        self._settled = settled
        return all_are_settled

    def _warn(self, count: int) -> None:
        if count > MAX_LETTERS and not self._warned:
            log.warning(
                "There are %d dead letters. Only the oldest %d are read; waiters for the others get no answer"
                " (redrive or drop some: proj dead --help)",
                count,
                MAX_LETTERS,
            )
        self._warned = count > MAX_LETTERS


class _End:
    """How the message of a dead letter ended, without its body."""

    #: What its last attempt ended with, such as the signal that killed its process.
    _last_error = ""

    def __init__(self, letter: DeadLetter) -> None:
        self.key = letter.id, letter.last
        self._id = letter.id
        self._words = Reason(letter.reason).words
        self._died = datetime.fromisoformat(letter.last) if letter.last else datetime.now(UTC)
        self._context = Context({**letter.embedded, **letter.headers, "id": letter.id})

    def is_stored(self, app: celery.Celery) -> bool:
        """Whether an end of the message is stored, and not that of an attempt before it was redriven."""
        meta = app.backend.get_task_meta(self._id)
        if meta["status"] == states.RETRY and isinstance(last := meta["result"], BaseException):
            self._last_error = f": {burial.text(stored_exception.words(last))}"
        if meta["status"] != states.FAILURE:
            return meta["status"] in states.READY_STATES
        done = meta.get("date_done")
        done = datetime.fromisoformat(done) if isinstance(done, str) else done
        # The broker tells the second.
        return not done or done.replace(tzinfo=UTC) >= self._died + timedelta(seconds=1)

    def store(self, app: celery.Celery) -> None:
        error = DeadLettered(f"{self._words}{self._last_error} (see: proj dead show {self._id})")
        app.backend.mark_as_failure(self._id, error, request=self._context)
