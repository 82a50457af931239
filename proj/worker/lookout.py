"""Stores the ends of messages that the broker itself made dead letters.

When a message reaches its delivery limit, or expires in its queue, no worker has it to store its end. Callers
read only the result store, and may lack the permission to read dead letters. So workers survey these.

A second queue on the dead-letter exchange would be simpler, but would break the promise: the broker discards
a dead letter once every bound queue has confirmed it, and would do so when only `proj.dead` is gone.
"""

import threading
import time
from datetime import datetime, timedelta
from typing import Any, Final

import celery
from celery import bootsteps, states
from celery.app.task import Context
from celery.utils.log import get_logger

from proj import dead_letters, queues
from proj.dead_letters.end import End, is_stored_later
from proj.dead_letters.letter import DeadLetter
from proj.enqueue import checks
from proj.errors import BrokerUnreachable, DeadLettered
from proj.rabbitmq import connection
from proj.results import stored_exception
from proj.results.store import stored_at
from proj.worker import burial, watchers

log = get_logger(__name__)

#: Seconds between two queries of the number of dead letters, each one round trip. Callers that wait for a
#: result wait up to this much longer.
INTERVAL: Final = 5.0

#: Seconds after which dead letters are surveyed even if their number is the same.
REFRESH: Final = 60.0

#: The pause after a survey, as a multiple of its duration.
PAUSE: Final = 20

#: Dead letters in one survey, the oldest first. After it, other readers, such as people, read as many.
MAX_LETTERS: Final = 10_000

#: Ends stored in one survey, so that the worker's main process is not held up.
MAX_STORED: Final = 100

#: Seconds for that, in which other readers wait.
STORE_TIME: Final = 2.0

#: Bytes of messages with callbacks from which on no further ends are stored in one survey. The arguments of
#: callbacks are in memory until then; those of the message itself are not.
MAX_BYTES: Final = 64 * 2**20


class LookoutStep(bootsteps.StartStopStep):
    """Runs the `Lookout` of a worker."""

    requires = ("celery.worker.components:Pool",)  # so that no process of the pool inherits the thread

    def create(self, worker: Any) -> Any:
        self._lookout = Lookout(worker.app, worker)
        return self._lookout


class Lookout:
    """Surveys dead letters from its own thread, over its own connection.

    One worker at a time surveys, and skips the ends that others have stored.
    """

    def __init__(self, app: celery.Celery, worker: Any) -> None:
        """`worker` is Celery's `WorkController`."""
        self._app = app
        self._worker = worker
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        #: The number of dead letters at the last survey; None when some of them are still to be handled.
        self._seen: int | None = None
        self._next = self._not_before = 0.0
        #: Dead letters whose end is known to be stored.
        self._settled: set[tuple[str, str | None]] = set()
        self._warned = False
        self._problem = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no further survey."""
        self._stopped.set()

    def _run(self) -> None:
        if not self._app.backend.persistent:
            return  # results travel as messages to their callers, and are not stored
        broker = self._app.connection_for_read(heartbeat=0)
        while not self._stopped.wait(INTERVAL):
            try:
                self._turn(broker)
            except (dead_letters.Busy, BrokerUnreachable):
                pass  # retried at the next interval
            except Exception as error:
                self._not_before = time.monotonic() + REFRESH
                if (problem := str(error)) != self._problem:
                    log.warning("Dead letters cannot be read; callers that wait get no answer: %s", problem)
                self._problem = problem
        connection.abandon(broker)

    def _turn(self, broker: Any) -> None:
        """Survey the dead letters if there may be new ones."""
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
        """Store the ends that the broker made. Returns False when some are left for the next survey."""
        found: list[_End] = []
        settled: set[tuple[str, str | None]] = set()
        all_are_settled = True
        kept = 0

        def take(letter: DeadLetter) -> None:
            nonlocal all_are_settled, kept
            key = letter.id, letter.last
            if not is_stored_later(letter) or not checks.is_id(letter.id):
                return
            if key in self._settled:
                settled.add(key)
            elif len(found) < MAX_STORED and kept < MAX_BYTES:
                found.append(_End(letter))
                kept += found[-1].kept
            else:
                all_are_settled = False

        # Stored before others read: another worker would store the same, and what is redriven lives.
        with dead_letters.survey(self._app, MAX_LETTERS, take):
            until = time.monotonic() + STORE_TIME
            for end in found:
                if end.is_stored(self._app):
                    settled.add(end.key)
                    continue
                # The next survey checks that it is stored.
                all_are_settled = False
                error = end.store(self._app)
                # By the worker's event loop, which alone may use the connection for events.
                self._worker.consumer.call_soon(self._tell, end, error)
                if time.monotonic() > until:
                    break
        self._settled = settled
        return all_are_settled

    def _tell(self, end: "_End", error: Exception) -> None:
        dispatcher = self._worker.consumer.event_dispatcher
        watchers.tell_failure(dispatcher, end.key[0], end.reason, error, end.headers)

    def _warn(self, count: int) -> None:
        if count > MAX_LETTERS and not self._warned:
            log.warning(
                "There are %d dead letters, and only the oldest %d are read: callers that wait for others"
                " get no answer (redrive or drop some: proj dead --help)",
                count,
                MAX_LETTERS,
            )
        self._warned = count > MAX_LETTERS


class _End(End):
    """An end that is stored if it is not yet."""

    #: The error of its last attempt, such as the signal that killed its process.
    _last_error = ""

    def __init__(self, letter: DeadLetter) -> None:
        super().__init__(letter)
        self.key = letter.id, letter.last
        self._id = letter.id
        if letter.foreign:
            self._last_error = f": {letter.foreign.problem}"
        # When that is unknown, any end that is stored is its own.
        self._died = datetime.fromisoformat(letter.last or "0001-01-01T00:00:00Z")
        self.headers = letter.headers
        embedded = letter.embedded
        #: At most so many bytes of its body are kept.
        self.kept = len(letter.body) if any(embedded.values()) else 0
        self._context = Context({**embedded, **letter.headers, "id": letter.id})

    def is_stored(self, app: celery.Celery) -> bool:
        """Whether an end of the message is stored, not counting failures before its redrive."""
        meta = app.backend.get_task_meta(self._id)
        last = meta["result"]
        if meta["status"] == states.RETRY and isinstance(last, BaseException):
            self._last_error = f": {burial.text(stored_exception.words(last))}"
        if meta["status"] != states.FAILURE:
            return meta["status"] in states.READY_STATES
        # The broker records whole seconds. A failure of the same second may be of before, unless it is what a
        # survey stores.
        margin = timedelta(seconds=0 if self.has(stored_exception.words(last)) else 1)
        stored = stored_at(meta)
        return not stored or stored >= self._died + margin

    def store(self, app: celery.Celery) -> Exception:
        """Store the end; returns its error."""
        error = DeadLettered(f"{self.words}{self._last_error} (see: proj dead show {self._id})")
        app.backend.mark_as_failure(self._id, error, request=self._context)
        return error
