"""What becomes of the timers of tasks that have ended."""

import gc
import weakref
from types import SimpleNamespace

from kombu.asynchronous.hub import Hub
from kombu.asynchronous.timer import Timer

from proj import app
from proj.worker import timers


def _ran(timer: Timer, timers_of_tasks: int) -> list[str]:
    """What is called of a timer in which so many were cancelled among two that were not."""
    called: list[str] = []
    timer.call_after(0, called.append, ("second",))
    for _ in range(timers_of_tasks):
        timer.call_after(3600, called.append, ("of a task",)).cancel()
    timer.call_after(-1, called.append, ("first",))
    timers.clear(timer)
    for _, entry in timer:
        if entry is None:
            return called
        entry()
    raise AssertionError("the timer does not wait")


def test_cancelled_timers_are_dropped() -> None:
    """And the memory that they hold; the others fire in their order."""
    timer = Timer()
    of_a_task = timer.call_after(3600, print)
    held = weakref.ref(of_a_task)
    of_a_task.cancel()
    del of_a_task
    gc.collect()
    # When this fails, kombu drops them itself, and `proj.worker.timers` can go.
    assert held()

    assert _ran(timer, timers.FEW) == ["first", "second"]
    assert len(timer) == 0
    assert not held()


def test_few_timers_are_left_alone() -> None:
    """A clearance costs more than they do."""
    timer = Timer()
    assert _ran(timer, timers.FEW - 2) == ["first", "second"]
    assert len(timer) == timers.FEW - 2


def test_a_worker_clears_the_timers_of_its_loop() -> None:
    """The step is one of each worker, and hangs its clearance into the loop."""
    assert "proj.worker.timers:TimersStep" in app.steps["consumer"]
    timer = Timer()
    hub = Hub(timer)
    for _ in range(timers.FEW + 1):
        timer.call_after(3600, print).cancel()
    step = timers.TimersStep(SimpleNamespace(hub=hub))
    step.register_with_event_loop(SimpleNamespace(), hub)
    interval = next(entry for _, _, entry in timer.queue if not entry.cancelled)
    interval()
    assert not any(entry.cancelled for _, _, entry in timer.queue)
    hub.close()
