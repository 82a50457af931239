"""Writes a worker's heartbeat, from the thread of the event loop that handles its messages, and no other.

Celery's timer is a thread in some workers, and in all of them while a pool drains. A thread would report a
worker as live whose loop is stuck, so beats from other threads are dropped.
"""

import atexit
import os
import threading
import time
from contextlib import suppress
from typing import Any, Final

from celery import bootsteps
from celery.concurrency import solo
from celery.signals import task_prerun, worker_shutting_down
from celery.utils.log import get_logger

from proj.health import heartbeat
from proj.health.heartbeat import CONNECTING, NOT_CONSUMING, READY, STARTING, STOPPING, Heartbeat
from proj.results.patience import STORE_PATIENCE

log = get_logger(__name__)

#: Seconds between two beats of a running loop. A beat takes a few tenths of a millisecond.
INTERVAL: Final = 1.0

#: Seconds that one turn of the loop may take, in addition to the timeout of one operation on the broker's
#: socket (`PROJ_PUBLISH_TIMEOUT`). The main process needs up to 7 to store that a task was lost.
TURN: Final = 10.0

#: Seconds that may pass between two beats while the worker connects. A look-up of the host takes up to 30
#: without a name server; TCP and each of four steps of the handshake take up to 4. The declaration of the
#: topology follows, during which the broker may go down.
CONNECT: Final = 80.0


class HeartbeatStep(bootsteps.StartStopStep):
    """Writes the heartbeat of this worker. When that fails, it logs one error, and the worker goes on."""

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

    def create(self, c: Any) -> None:
        heartbeat.clear_leftovers(self._state_dir)
        atexit.register(self.remove)
        worker_shutting_down.connect(self._on_shutting_down)
        if isinstance(c.pool, solo.TaskPool):
            task_prerun.connect(self._on_prerun)
        self.beat(STARTING, CONNECT)

    def register_with_event_loop(self, c: Any, hub: Any) -> None:
        """Called for each connection; the loop cancels the timer when the connection is lost."""
        hub.call_soon(self._turned, c)
        hub.call_repeatedly(INTERVAL, self._turned, c)

    def stop(self, c: Any) -> None:
        """Called when the connection is lost, and when the worker ends."""
        self.connecting()

    def close(self, c: Any) -> None:
        """Called only when the worker ends, for whatever cause."""
        self._on_shutting_down()

    def connecting(self) -> None:
        """Beat while the worker waits for its broker: before each attempt to connect, and in between."""
        self.beat(CONNECTING, CONNECT)

    def beat(self, state: str, promise: float, task: str | None = None) -> None:
        """Write a beat, with the promise that the next one follows within so many seconds."""
        if threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        due = now + self._patience + promise
        self._beat = self._beat._replace(state=state, beat=now, due=due, task=task)
        if self._stopping_until is not None:
            self._beat = self._beat._replace(state=STOPPING, due=max(due, self._stopping_until))
        # A signal handler may interrupt a write here; the interrupted call then writes again.
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
        """Remove the heartbeat: this worker has ended properly."""
        if os.getpid() == self._beat.pid:
            with suppress(OSError):
                os.unlink(self._file)

    def _write(self, beat: Heartbeat) -> None:
        try:
            heartbeat.write(self._file, beat)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error(
                    "The heartbeat cannot be written, so proj health reports this worker as dead: %s", error
                )
            self._failing = True

    def _turned(self, c: Any) -> None:
        consumes = c.connection and c.task_consumer and c.task_consumer.queues
        self.beat(READY if consumes else NOT_CONSUMING, TURN)

    def _on_shutting_down(self, **_: Any) -> None:
        if self._stopping_until is None:
            # The grace period does not end a task that blocks the loop (`-P solo`).
            self._stopping_until = max(time.monotonic() + self._grace + CONNECT, self._beat.due)
        self.beat(STOPPING, 0, self._beat.task)

    def _on_prerun(self, task: Any, task_id: str, **_: Any) -> None:
        limit = (task.request.timelimit or [None])[0] or task.time_limit or self._task_limit
        promise = limit + STORE_PATIENCE + TURN
        if self._beat.task:  # a task that calls another one continues after it
            promise = max(promise, self._beat.due - time.monotonic())
        self.beat(self._beat.state, promise, f"{task.name}[{task_id}]")
