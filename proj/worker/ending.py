"""A worker's end: in good order, in its time, and by force when it hangs.

Celery's cold shutdown runs in the handler of a signal, over whatever the worker does then. It hangs when it
waits for a lock that the interrupted code holds, or reads the answer that this code waits for. And it waits
for all processes of the pool, where code may catch the `SystemExit` that ends a task, and where a task that
has just begun is not ended at all. (Found by sending SIGQUIT right after SIGTERM: 1 in 25 on a busy machine.)
"""

import atexit
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any, Final

from billiard import active_children
from celery import bootsteps
from celery.apps import worker as apps_worker
from celery.platforms import EX_FAILURE, LockFailed
from celery.signals import worker_shutting_down
from celery.utils.log import get_logger

from proj.logs import celery_command

log = get_logger(__name__)

#: Seconds that the processes of the pool have to end at a cold shutdown, and then the worker itself.
_PROCESS_PATIENCE: Final = 10
_WORKER_PATIENCE: Final = 3

#: Seconds for the last line of the log and for what is done at exit, which may hang as well.
_EXIT_PATIENCE: Final = 1


class Worker(apps_worker.Worker):
    """Celery's worker, whose shutdown is bounded: the warm one by the grace period, and then the cold one."""

    _grace: threading.Timer | None = None

    def on_start(self) -> None:
        """As Celery's; a pidfile that cannot be written ends the worker with one line, not a traceback."""
        try:
            super().on_start()
        except LockFailed as error:
            if (problem := celery_command.unusable_file(error)) is None:
                raise
            log.critical("%s", problem)
            raise SystemExit(int(problem.exit_code)) from None

    def begin_grace(self) -> None:
        """Begin the cold shutdown, as SIGQUIT does, when the grace period is over.

        It ends the running tasks, and their messages go to other workers.
        """
        if not self._grace:
            self._grace = threading.Timer(self.app.settings.proj_shutdown_grace, self._end)
            self._grace.daemon = True
            self._grace.start()

    def _end(self) -> None:
        if not _has_ended(self):
            os.kill(os.getpid(), signal.SIGQUIT)

    def stop(self, in_sighandler: bool = False, exitcode: int | None = None) -> None:
        """The warm shutdown, as Celery's; also that of SIGHUP, which sends no signal of Celery."""
        self.begin_grace()
        self.consumer.prepare_end()
        super().stop(in_sighandler, exitcode)

    def wait_for_soft_shutdown(self) -> None:
        """The first step of the cold shutdown, as Celery's; what follows has its time."""
        try:
            super().wait_for_soft_shutdown()
        finally:
            threading.Thread(target=_end_by_force, args=[self], name="ending", daemon=True).start()


def bound_shutdown(instance: Any) -> None:
    """Begin the grace period at SIGTERM, also while a task blocks the worker's loop (`-P solo`)."""

    def begin(how: str, **_: Any) -> None:
        if how == "Warm":
            instance.begin_grace()

    worker_shutting_down.connect(begin, weak=False)


def _has_ended(worker: Any) -> bool:
    """Whether all its parts are stopped. A program that has started a worker itself may go on then."""
    return bool(worker.blueprint.state == bootsteps.TERMINATE)


def _end_by_force(worker: Any) -> None:
    """Kill the pool's processes that have not ended in time, and then end the worker, if it is still there.

    The broker gives the messages to others, as it does when a worker is killed.
    """
    time.sleep(_PROCESS_PATIENCE)
    if _has_ended(worker):
        return
    for process in active_children():
        if process.exitcode is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, signal.SIGKILL)
    time.sleep(_WORKER_PATIENCE)
    if _has_ended(worker):
        return
    last = threading.Thread(target=_say_and_clear, daemon=True)
    last.start()
    last.join(_EXIT_PATIENCE)
    os._exit(EX_FAILURE)


def _say_and_clear() -> None:
    # Exit handlers remove the worker's heartbeat and Celery's files.
    atexit._run_exitfuncs()
    log.critical("the shutdown hung, and was ended by force; unfinished messages go to other workers")
