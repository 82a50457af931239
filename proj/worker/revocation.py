"""Revocations in the result store, since workers forget theirs when they restart."""

import queue
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import celery
from billiard import current_process
from celery import states
from celery.exceptions import BackendGetMetaError, BackendStoreError, Ignore
from celery.utils.log import get_logger

from proj import queues
from proj.errors import Ignored
from proj.results.store import store_error, stored_at

log = get_logger(__name__)

#: Billiard's name for a process that no pool has started.
MAIN_PROCESS: Final = "MainProcess"

#: States of a task that has not begun, as far as is known. One that has begun is its worker's.
_NOT_BEGUN: Final = states.UNREADY_STATES - {states.STARTED}


class Revocations:
    """Stores revocations from its own thread, so that the worker's event loop waits for no store."""

    def __init__(self, app: celery.Celery) -> None:
        self._app = app
        self._waiting: queue.SimpleQueue[Iterable[str]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def store(self, task_ids: Iterable[str]) -> None:
        """Store `REVOKED` soon under each id whose task has not begun; after an error, under no other."""
        self._waiting.put(task_ids)
        if not self._thread:
            self._thread = threading.Thread(target=self._run, name="revocations", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                for task_id in self._waiting.get():
                    meta = self._app.backend.get_task_meta(task_id)
                    # One that is revoked already may have been redriven since.
                    if meta["status"] in _NOT_BEGUN or _is_revoked(meta):
                        self._app.backend.mark_as_revoked(task_id, "revoked")
            except Exception as error:  # of any kind of store; each further id would take as long to fail
                problem = store_error(self._app, error, "written")
                log.error("Revoked only until this worker ends: %s", problem)


def check(task: celery.Task, request: Any) -> None:
    """Raise `Ignore` when the message was revoked while the broker held it, or this worker's pool did.

    The store is queried only for messages that were delayed, redriven, or may be repeats. While it is down
    the task is executed, as Celery does with repeats. A repeat of a task that ended with `Ignore`, which also
    stores `REVOKED`, is executed.
    """
    if request.called_directly or request.is_eager:
        return
    if current_process().name == MAIN_PROCESS:
        _check_memory(task, request)
    since = _revocable_since(request)
    if since is None:
        return
    try:
        meta = task.backend.get_task_meta(request.id)
        stored = stored_at(meta)
        revoked = _is_revoked(meta) and (stored.timestamp() if stored else 0.0) >= since
    except BackendGetMetaError as error:
        log.warning("Cannot check whether %s[%s] is revoked: %s", task.name, request.id, error)
        return
    if revoked:
        with suppress(BackendStoreError):
            # With the name of its task: the message has come, and the revocation may age.
            task.backend.store_result(request.id, meta["result"], states.REVOKED, request=request)
        raise Ignore("revoked")


def _check_memory(task: celery.Task, request: Any) -> None:
    """Raise `Ignore` when the message was revoked while it waited in this worker's pool for a thread."""
    from celery.worker.state import revoked  # only in a worker: others need not import it

    if request.id in revoked:
        with suppress(BackendStoreError):
            task.backend.mark_as_revoked(request.id, "revoked", request=request)
        raise Ignore("revoked")


def _is_revoked(meta: Mapping[str, Any]) -> bool:
    return meta["status"] == states.REVOKED and not isinstance(meta["result"], Ignored)


def _revocable_since(request: Any) -> float | None:
    """From when on, in seconds since 1970, stored revocations count; None if there can be none."""
    headers = vars(request)
    if headers.get(queues.REDRIVES_HEADER):
        redriven = headers.get(queues.REDRIVEN_HEADER)
        return redriven if isinstance(redriven, float) else None
    if (request.delivery_info or {}).get("redelivered"):  # also set for a message that is marked as a repeat
        return 0
    deaths = headers.get("x-death")
    was_delayed = isinstance(deaths, list) and any(
        isinstance(death, dict) and death.get("queue") in queues.DELAY_QUEUES for death in deaths
    )
    return 0 if was_delayed else None
