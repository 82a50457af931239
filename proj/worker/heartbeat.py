"""The heartbeat that a worker writes, from the loop that also handles its messages, and from nowhere else.

Celery's timer is a thread in some workers, and in all of them while a pool drains; a thread would go on
beating for a loop that stands still. So a beat that does not come from the loop's thread is dropped.
"""

import atexit
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from celery import bootsteps
from celery.concurrency import solo
from celery.signals import task_prerun, worker_shutting_down
from celery.utils.log import get_logger

from proj.health import heartbeat
from proj.health.heartbeat import CONNECTING, NOT_CONSUMING, READY, STARTING, STOPPING, Heartbeat
from proj.results.patience import STORE_PATIENCE

log = get_logger(__name__)

#: Seconds between two beats of a loop that turns. A beat takes a few tenths of a millisecond.
INTERVAL: Final = 1.0

#: Seconds that one turn of the loop may take, besides the time that one operation on the broker's socket is
#: given (`PROJ_PUBLISH_TIMEOUT`): the main process tries for 2 to 7 seconds to store that a task was lost.
TURN: Final = 10.0

#: Seconds that may pass between two beats while the loop does not turn, since there is no connection: to
#: resolve a name without a server takes up to 30, TCP and each of four steps of the handshake 4. Then the
#: topology is declared, at a broker that may go down at that moment.
CONNECT: Final = 80.0


class HeartbeatStep(bootsteps.StartStopStep):
    """Writes the heartbeat of this worker; one that cannot be written is logged once, and does no harm."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, c: Any, **options: Any) -> None:
        super().__init__(c, **options)
        settings = c.app.settings
        pid = os.getpid()
        self._patience = INTERVAL + settings.proj_publish_timeout
        self._task_limit = settings.proj_task_time_limit
        self._grace = settings.proj_shutdown_grace
        self._state_dir = str(settings.state_dir)
        self._file = heartbeat.file_of(self._state_dir, c.hostname, pid)
        self._thread = threading.get_ident()
        self._beat = Heartbeat(
            c.hostname, pid, heartbeat.identity(pid) or "", heartbeat.machine(), STARTING, 0, 0
        )
        self._stopping_until: float | None = None
        self._writing = False
        self._failing = False
        c.heartbeat = self

    def include_if(self, c: Any) -> bool:
        # Without Celery's event loop there is nothing that could beat: gevent and eventlet.
        return c.hub is not None

    def create(self, c: Any) -> None:
        heartbeat.clear_leftovers(self._state_dir)
        # Here at the latest, whatever ends the worker.
        atexit.register(self.remove)
        worker_shutting_down.connect(self._on_shutting_down)
        if isinstance(c.pool, solo.TaskPool):
            task_prerun.connect(self._on_prerun)
        self.beat(STARTING, CONNECT)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called for each connection; the loop cancels the timer when it loses that."""
        hub.call_soon(self._turned, c)
        hub.call_repeatedly(INTERVAL, self._turned, c)

    def stop(self, c: Any) -> None:
        """Called when the connection is lost, and at the worker's end."""
        self.connecting()

    def close(self, c: Any) -> None:
        """Called at the worker's end only, by whatever it is caused."""
        self._on_shutting_down()

    def connecting(self) -> None:
        """A beat of a worker that waits for its broker: to be given before each attempt, and in between."""
        self.beat(CONNECTING, CONNECT)

    def beat(self, state: str, promise: float, task: str | None = None) -> None:
        """Write a beat, and the promise that the next one comes within so many seconds."""
        if threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        due = now + self._patience + promise
        self._beat = self._beat._replace(state=state, beat=now, due=due, task=task)
        if self._stopping_until is not None:
            self._beat = self._beat._replace(state=STOPPING, due=max(due, self._stopping_until))
        # The handler of a signal may come here in the middle of a write; then that is done again.
        if self._writing:
            return
        self._writing = True
        try:
            written = None
            while written is not self._beat:
                written = self._beat
                self._write(written)
        finally:
            self._writing = False

    def remove(self) -> None:
        """Say that this worker has ended in good order."""
        if os.getpid() == self._beat.pid:
            with suppress(OSError):
                os.unlink(self._file)

    def _write(self, beat: Heartbeat) -> None:
        try:
            heartbeat.write(self._file, beat)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("No heartbeat, so proj health takes this worker for dead: %s", error)
            self._failing = True

    def _turned(self, c: Any) -> None:
        consumes = c.connection and c.task_consumer and c.task_consumer.queues
        self.beat(READY if consumes else NOT_CONSUMING, TURN)

    def _on_shutting_down(self, **_: Any) -> None:
        if self._stopping_until is None:
            # A task that keeps the loop is not ended with the grace period.
            self._stopping_until = max(time.monotonic() + self._grace + CONNECT, self._beat.due)
        self.beat(STOPPING, 0, self._beat.task)

    def _on_prerun(self, task: Any, task_id: str, **_: Any) -> None:
        limit = (task.request.timelimit or [None])[0] or task.time_limit or self._task_limit
        promise = limit + STORE_PATIENCE + TURN
        if self._beat.task:  # one task calls the other, and goes on after it
            promise = max(promise, self._beat.due - time.monotonic())
        self.beat(self._beat.state, promise, f"{task.name}[{task_id}]")


@contextmanager
def beating(step: HeartbeatStep, conn: Any) -> Iterator[None]:
    """Beat before the block and in the waits of `conn.ensure_connection` in it.

    kombu tries for ever, and sleeps up to 30 seconds between two attempts. Each second of them it calls its
    `callback`; Celery passes one of its own there, and takes none from us.
    """
    connect = conn.ensure_connection

    def ensure_connection(*args: Any, callback: Any, **options: Any) -> Any:
        def waited() -> None:
            step.connecting()
            callback()

        return connect(*args, callback=waited, **options)

    step.connecting()
    conn.ensure_connection = ensure_connection
    try:
        yield
    finally:
        del conn.ensure_connection
