"""Messages that were revoked while the broker held them: the store says so, since workers forget it."""

from typing import Any

import celery
from celery import states
from celery.exceptions import BackendGetMetaError, Ignore
from celery.utils.log import get_logger

from proj import queues
from proj.errors import Ignored

log = get_logger(__name__)


def check(task: celery.Task) -> None:
    """Raise `Ignore` for an execution of a message that was revoked while it waited elsewhere.

    Only what was delayed, or may be a repeat, costs a look-up, and what was redriven does not: it is to be
    executed. While the store is down the task is executed, as Celery does it with what may be a repeat.
    So is a repeat of what ended with `Ignore`, whose state is the same.
    """
    request = task.request
    if request.called_directly or not _has_waited(request):
        return
    try:
        meta = task.backend.get_task_meta(request.id)
        revoked = meta["status"] == states.REVOKED and not isinstance(meta["result"], Ignored)
    except BackendGetMetaError as error:
        log.warning("It is not known whether %s[%s] is revoked: %s", task.name, request.id, error)
        return
    if revoked:
        raise Ignore("revoked")


def _has_waited(request: Any) -> bool:
    headers = vars(request)
    if headers.get(queues.REDRIVES_HEADER):
        return False
    if (request.delivery_info or {}).get("redelivered"):  # also of a message that is marked as a repeat
        return True
    deaths = headers.get("x-death")
    return isinstance(deaths, list) and any(
        isinstance(death, dict) and death.get("queue") in queues.DELAY_QUEUES for death in deaths
    )
