"""Lets each worker look for old results once a minute; `proj.results.ageing` deletes them."""

import threading
from typing import Any, Final

import celery
from celery import bootsteps
from celery.utils.log import get_logger

from proj import dead_letters
from proj.results.patience import reason_of

log = get_logger(__name__)

#: Seconds between two looks of this worker: less than a minute, to take over from one that has ended.
INTERVAL: Final = 30.0


class AgeingStep(bootsteps.StartStopStep):
    """Runs the `Sweeper` of a worker, where results are kept in a database and expire."""

    requires = ("celery.worker.components:Pool",)  # so that no process of the pool inherits the thread

    def include_if(self, worker: Any) -> bool:
        settings = worker.app.settings
        return bool(settings.proj_result_expires and settings.deletes_results)

    def create(self, worker: Any) -> Any:
        return Sweeper(worker.app)


class Sweeper:
    """Deletes old results from a thread of its own, so that no task waits for it."""

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ageing", daemon=True)
        self._problem = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin no further step."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self._turn()
                self._problem = ""
            except Exception as error:
                # One attempt, and one line for each problem: the next look comes soon enough.
                if (problem := reason_of(error)) != self._problem:
                    log.warning("Old results cannot be deleted: %s", problem)
                self._problem = problem

    def _turn(self) -> None:
        from proj.results.ageing import Ageing  # here, since it imports SQLAlchemy

        ageing = Ageing(self._app.backend, self._app.settings.proj_result_expires)
        deleted = ageing.turn(self._stopped.is_set, self._nothing_is_dead)
        if deleted:
            log.info("Deleted %d results, older than %d s", deleted, self._app.settings.proj_result_expires)

    def _nothing_is_dead(self) -> bool:
        try:
            return dead_letters.is_empty(self._app)
        except Exception as error:  # such as a broker that is down: the successes need none
            log.debug("Failures are kept: %s", error)
            return False
