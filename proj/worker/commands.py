"""Remote control commands that replace Celery's commands of the same names."""

import signal
from typing import Any

from celery.utils.functional import maybe_list
from celery.utils.log import get_logger
from celery.worker import control, state

from proj.enqueue import checks
from proj.enqueue.routing import check_queue
from proj.errors import BadInput

log = get_logger(__name__)


def install() -> None:
    """Replace the commands for all workers of this process."""
    control.control_command()(shutdown)
    control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")(revoke)
    control.control_command(
        variadic="task_id", args=[("signal", str)], signature="<signal> [id1 [id2 [... [idN]]]]"
    )(terminate)
    limits = [("task_name", str), ("soft", float), ("hard", float)]
    control.control_command(args=limits, signature="<task_name> <soft_secs> [hard_secs]")(time_limit)
    control.control_command(args=[("queue", str)], signature="<queue>")(add_consumer)
    for command in (pool_grow, pool_shrink):
        control.control_command(args=[("n", int)], signature="[N=1]")(command)
    control.control_command(args=[("max", int), ("min", int)], signature="[max [min]]")(autoscale)
    control.control_command()(election)


def shutdown(_state: Any, msg: str = "Got shutdown from remote", **_: Any) -> dict[str, str]:
    """Shut down the worker as SIGTERM does, with the grace period for its tasks, and answer before."""
    log.warning(msg)
    signal.raise_signal(signal.SIGTERM)
    return {"ok": "shuts down when its tasks have ended"}


def revoke(
    _state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **_: Any
) -> dict[str, str]:
    """Revoke tasks by their ids, and store this, so that it outlasts a restart of all workers.

    A task that this worker executes goes on, unless it is to `terminate`. Celery's own command stores each
    revocation before the next one, and meanwhile its worker does nothing else.
    """
    task_ids = list(dict.fromkeys(maybe_list(task_id) or []))
    state.revoked.update(task_ids)
    active = {request.id for request in state.active_requests}
    waiting = [each for each in task_ids if each not in active and checks.is_id(each)]
    _state.consumer.revocations.store(waiting)
    if not terminate:
        log.info("Tasks flagged as revoked: %s", ", ".join(map(str, task_ids)))
        return {"ok": f"tasks {task_ids} flagged as revoked"}
    known = [request for request in map(state.requests.get, task_ids) if request]
    for request in known:
        log.info("Terminating %s", request.id)
        request.terminate(_state.consumer.pool, signal)
    return {"ok": f"terminate: {', '.join(request.id for request in known) or 'tasks unknown'}"}


def terminate(_state: Any, signal: Any, task_id: Any, **_: Any) -> dict[str, str]:
    """Revoke tasks by their ids, and send this signal to the processes that execute them."""
    return revoke(_state, task_id, terminate=True, signal=signal)


def time_limit(_state: Any, task_name: Any = None, hard: Any = None, soft: Any = None, **_: Any) -> Any:
    """Set the time limits of a task, below the broker's consumer_timeout, which ends the worker's channel."""
    try:
        for option, limit in (("time_limit", hard), ("soft_time_limit", soft)):
            if not checks.is_time_limit(limit):
                return {"error": f"a time limit is a number of seconds, got {limit!r}"}
            checks.check_time_limit(str(task_name), option, limit, _state.app.settings.proj_consumer_timeout)
    except BadInput as error:
        return {"error": str(error)}
    return control.time_limit(_state, task_name, hard, soft)


def add_consumer(_state: Any, queue: Any, **_: Any) -> Any:
    """Consume from a queue of the topology. Celery would declare any other, without dead-lettering."""
    try:
        check_queue(_state.app, queue)
    except BadInput as error:
        return {"error": str(error)}
    return control.add_consumer(_state, queue)


def pool_grow(_state: Any, **_: Any) -> dict[str, str]:
    """Refused: the worker fetches one message for each slot that it had at its start."""
    return _fixed("more slots would stay idle")


def pool_shrink(_state: Any, **_: Any) -> dict[str, str]:
    """Refused: the worker fetches one message for each slot that it had at its start."""
    return _fixed("with fewer slots, some of them would wait while other workers are idle")


def autoscale(_state: Any, **_: Any) -> dict[str, str]:
    """Refused: the worker fetches as many messages as it was started for."""
    return _fixed("another range would not change that")


def election(_state: Any, **_: Any) -> dict[str, str]:
    """Refused: Celery's own ends each worker that does not know what the winner is to do."""
    return {"error": "workers elect none: of two beats one leads, and each message goes to one worker"}


def _fixed(effect: str) -> dict[str, str]:
    """The answer to a change of the number of slots: on quorum queues, no prefetch count changes later."""
    return {
        "error": f"the number of messages that a worker fetches is fixed at its start, and {effect}: "
        "restart it with another --concurrency or --autoscale"
    }
