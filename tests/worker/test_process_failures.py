"""A task that ends its process, or that is ended with it, and where its message is afterwards."""

import os
import signal

import pytest

from tests.lib import failing, stores
from tests.lib.bundle import Bundle
from tests.lib.failing import OTHERS, SCRIPTED, Messages
from tests.lib.waiting import eventually


@pytest.mark.celery_docs("Tasks: time_limit, soft_time_limit of a task")
@pytest.mark.used_vhost
def test_time_limits_make_dead_letters_at_once(bundle: Bundle) -> None:
    """A task that is too long is ended, by an exception or with its process, and not tried again.

    A hard limit of its own or of its message needs no soft one. It may be below that of the settings or task.
    """
    bundle.add_task(SCRIPTED)
    bundle.add_task(OTHERS)
    soft, hard = 2, 5
    limits = {"PROJ_TASK_SOFT_TIME_LIMIT": str(soft), "PROJ_TASK_TIME_LIMIT": str(hard)}
    bundle.worker("--concurrency=4", env=limits)
    messages: Messages = {
        "soft": ("scripted", ("sleep",), {}),
        "hard": ("scripted", ("stubborn",), {}),
        "of-the-task": ("bounded", (), {}),
        "of-the-message": ("unbounded", (), {"time_limit": 1}),
    }
    failing.enqueue(bundle, messages)

    letters = failing.dead_letters(bundle, len(messages))

    assert {letters[task_id]["x-death"][0]["reason"] for task_id in messages} == {"rejected"}
    assert [failing.attempts(bundle, task_id) for task_id in ("soft", "hard")] == [1, 1]
    ends = failing.outcomes(bundle, *messages)
    assert ends["soft"]["error"].startswith("SoftTimeLimitExceeded")
    for task_id, limit in (("hard", hard), ("of-the-task", 1), ("of-the-message", 1)):
        assert ends[task_id]["error"].startswith(f"TimeLimitExceeded: TimeLimitExceeded({limit}")


@pytest.mark.used_vhost
@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_exit_where_no_process_ends_makes_a_dead_letter_at_once(bundle: Bundle, pool: str) -> None:
    """The task has failed, whatever it raised, and its slot takes the next message."""
    raised = {"exit": "SystemExit(3)", "interrupt": "KeyboardInterrupt()", "cancelled": "CancelledError()"}
    bundle.add_task(SCRIPTED)
    bundle.worker("-P", pool)
    failing.enqueue(bundle, {action: ("scripted", (action,), {}) for action in raised})

    failing.dead_letters(bundle, len(raised))

    errors = {task_id: end["error"] for task_id, end in failing.outcomes(bundle, *raised).items()}
    assert errors == {each: f"RuntimeError: the task raised {words}" for each, words in raised.items()}
    assert bundle.proj("enqueue", "add", "1", "2", "--wait").stdout == "3\n"


@pytest.mark.used_vhost
@pytest.mark.long
def test_killer_of_its_process_is_told_apart_from_an_exception(bundle: Bundle) -> None:
    """A process that ends under its task, as when memory runs out, is tried up to the delivery limit."""
    bundle.add_task(SCRIPTED)
    errors = {
        "kill": "signal 9 (SIGKILL)",
        "exit": "exited with code 3",
        "interrupt": "ended by KeyboardInterrupt",
    }
    bundle.worker(f"--concurrency={len(errors)}")
    failing.enqueue(bundle, {action: ("scripted", (action,), {}) for action in errors})

    letters = failing.dead_letters(bundle, len(errors))

    eventually("their ends are stored", lambda: stores.states(bundle) == dict.fromkeys(errors, "FAILURE"))
    ends = failing.outcomes(bundle, *errors)
    for action, error in errors.items():
        assert letters[action]["x-death"][0]["reason"] == "delivery_limit"
        assert failing.attempts(bundle, action) == 6
        end = ends[action]
        assert end["error"].startswith("DeadLettered: delivery limit: WorkerLostError: ")
        assert error in end["error"]
        assert f"proj dead show {action}" in end["error"]


@pytest.mark.used_vhost
def test_task_for_a_process_that_has_just_gone_is_executed_by_the_next(bundle: Bundle) -> None:
    """The worker gets the message before it notices that the free process was killed."""
    worker = bundle.worker().ready()
    (free,) = worker.children()
    os.kill(worker.process.pid, signal.SIGSTOP)
    bundle.enqueue("add", "1", "2", "--id", "late")
    eventually("the message is delivered", lambda: not bundle.depth("proj.tasks"))
    free.kill()
    os.kill(worker.process.pid, signal.SIGCONT)

    worker.says("[late] succeeded")

    assert [line.id for line in worker.lines("received")] == ["late"]


# --- Controls: without its protection, the same fault loses the message


@pytest.mark.used_vhost
def test_control_without_late_acknowledgement_a_killed_worker_loses_its_message(bundle: Bundle) -> None:
    """Acknowledged at its start, the task dies with its worker."""
    bundle.switch_off("celeryconfig.py", '"task_acks_late": True', '"task_acks_late": False')
    worker = bundle.worker().ready()
    bundle.enqueue("sleep-dots", "600", "--id", "it")
    worker.started("it")
    # The broker hands out a second one to the only slot when it has the acknowledgement of the first.
    bundle.enqueue("add", "1", "2", "--id", "next")
    eventually("the task is acknowledged", lambda: bundle.depth("proj.tasks") == 0)

    worker.kill()

    other = bundle.worker(log="other.log").ready()
    other.says("[next] succeeded")
    failing.assert_lost(bundle, other)


@pytest.mark.long
def test_control_without_delivery_limit_a_killer_goes_round_for_ever(bundle: Bundle) -> None:
    """Only the limit stops it."""
    bundle.add_task(SCRIPTED)
    bundle.switch_off(
        "queues.py", '"x-delivery-limit": DELIVERY_LIMIT', '"x-delivery-limit": NO_DELIVERY_LIMIT'
    )
    bundle.worker("--concurrency=2")
    failing.enqueue_scripted(bundle, "kill")

    eventually("it is executed beyond the limit", lambda: failing.attempts(bundle) > 6)

    assert bundle.depth("proj.dead") == 0
